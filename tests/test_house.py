"""The structure of the code: one direction of imports, no circles, one name for one thing."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "metah_runtime": ROOT / "runtime",
    "metah_train": ROOT / "train",
    "metah_export": ROOT / "export",
}
LARGEST = 410


def sources() -> dict[str, Path]:
    """Return module name -> file of the three packages."""
    found = {}
    for package, root in PACKAGES.items():
        for path in sorted((root / package).rglob("*.py")):
            parts = list(path.relative_to(root).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _type_checking(tree: ast.Module) -> set[ast.AST]:
    blocks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    return {inner for block in blocks for inner in ast.walk(block)}


def imports(path: Path, modules: set[str]) -> Iterator[str]:
    """Yield the modules that a file imports, wherever it does, but for type checkers alone."""
    tree = ast.parse(path.read_text())
    skipped = _type_checking(tree)
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in modules:
                    yield full
                elif node.module in modules:
                    yield node.module


def graph() -> dict[str, set[str]]:
    found = sources()
    return {name: set(imports(path, set(found))) - {name} for name, path in found.items()}


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one module (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(edges.get(name, ())):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for name in sorted(edges):
        if name not in index:
            visit(name)
    return found


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert circles(graph()) == []


def test_imports_go_one_way() -> None:
    allowed = {
        "metah_runtime": {"metah_runtime"},
        "metah_train": {"metah_runtime", "metah_train"},
        "metah_export": {"metah_runtime", "metah_train", "metah_export"},
    }
    for name, others in graph().items():
        package = name.partition(".")[0]
        assert {other.partition(".")[0] for other in others} <= allowed[package], name


def test_libraries_know_nothing_of_the_command_line() -> None:
    """A library takes callables for progress and warnings; only commands print."""
    for name, others in graph().items():
        if ".cli" in name or name.endswith(("__main__", ".demo")):
            continue
        assert not [other for other in others if ".cli" in other], name


def test_a_class_name_means_one_thing() -> None:
    places = defaultdict(list)
    for name, path in sources().items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name)
    assert {name: at for name, at in places.items() if len(at) > 1} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_files_are_small(package: str) -> None:
    lines = {
        name: len(path.read_text().splitlines())
        for name, path in sources().items()
        if name.startswith(package)
    }
    assert {name: count for name, count in lines.items() if count > LARGEST} == {}
