"""The modules of metah_train import one another in one direction, and so do its packages."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import metah_train

ROOT = Path(metah_train.__file__).parent
MODULES = {
    ".".join(("metah_train", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in ROOT.rglob("*.py")
}


def imports(path: Path) -> Iterator[str]:
    """Modules of metah_train that a file imports, also inside of functions and for types alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


GRAPH = {
    name: {found for found in imports(path) if found in MODULES and found != name}
    for name, path in MODULES.items()
}


def test_modules_import_one_another_in_one_direction() -> None:
    assert len(GRAPH["metah_train.training.loop"]) > 5
    TopologicalSorter(GRAPH).prepare()


def test_packages_import_one_another_in_one_direction() -> None:
    def part(name: str) -> str:
        return name.split(".")[1]

    packages: dict[str, set[str]] = {}
    for name, found in GRAPH.items():
        if name != "metah_train":
            packages.setdefault(part(name), set()).update(part(other) for other in found)
    for name, found in packages.items():
        found.discard(name)
    TopologicalSorter(packages).prepare()
