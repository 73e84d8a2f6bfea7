"""Write the lock of an extra: ``lock.py PIP_COMPILE LOCK``; what it pins is in constraints.txt.

The lock holds the base install and the extra ``serve`` with the hash of every file, so that
``pip install --require-hashes`` takes nothing else.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

HEAD = """\
# The base install with the extra `serve`, exact and hashed (Linux; Python 3.11 to 3.14):
#     pip install --require-hashes -r serve.lock && pip install --no-deps metah-*.whl
# Written by `make lock` from pyproject.toml and constraints.txt.
"""


def requirements(extra: str) -> list[str]:
    """Return what the base install and an extra ask for; extras of our own are resolved."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    todo, found = [*project["dependencies"], f"metah[{extra}]"], []
    while todo:
        item = todo.pop(0)
        own = re.fullmatch(r"metah\[([\w-]+)\]", item)
        if own:
            todo += project["optional-dependencies"][own[1]]
        else:
            found.append(item)
    return found


def main() -> None:
    compiler, lock = sys.argv[1], ROOT / sys.argv[2]
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "serve.in"), Path(folder, "serve.txt")
        source.write_text("\n".join(requirements("serve")))
        options = ["--generate-hashes", "--strip-extras", "--no-header", "--no-annotate"]
        options += ["--no-emit-index-url", "--no-emit-find-links", "--no-emit-trusted-host"]
        constraints = ["-c", ROOT / "constraints.txt"]
        command = [compiler, "--quiet", *options, *constraints, "-o", made, source]
        subprocess.run(command, check=True)
        lock.write_text(HEAD + made.read_text())


if __name__ == "__main__":
    main()
