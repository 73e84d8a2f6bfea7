"""Install what `make dist` built as a user would, and use it: `python try_wheel.py DIST`.

The environment is new, its PATH holds nothing but itself: no compiler, no tool, no source tree.
"""

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
TREE = HERE.parents[1]
PACKAGES = ("train/metah_train", "export/metah_export", "runtime/metah_runtime")


def check(ok: object, what: str) -> None:
    if not ok:
        raise SystemExit(f"try_wheel: {what}")


def only(dist: Path, pattern: str) -> Path:
    found = sorted(dist.glob(pattern))
    check(len(found) == 1, f"{dist} must hold one {pattern}, got {len(found)}; fix: make dist")
    return found[0]


def tracked(folder: str) -> set[str]:
    done = subprocess.run(
        ["git", "ls-files", folder], cwd=TREE, capture_output=True, text=True, check=True
    )
    return {name for name in done.stdout.splitlines() if (TREE / name).exists()}


def contents(wheel: Path, sdist: Path) -> None:
    """Compare both files with the tree: all of the packages is there, and nothing foreign."""
    with zipfile.ZipFile(wheel) as archive:
        names = {n: archive.read(n) for n in archive.namelist() if not n.endswith("/")}
    for package in PACKAGES:
        top = package.partition("/")[0] + "/"
        for path in tracked(package):
            name = path.removeprefix(top)
            check(name in names, f"{wheel.name} lacks {name}")
            check(names[name] == (TREE / path).read_bytes(), f"{name} is not the tree's; make dist")
        check(f"{Path(package).name}/py.typed" in names, f"{package} is not typed")
    foreign = [
        n for n in names if not n.startswith(("metah_train/", "metah_export/", "metah_runtime/"))
    ]
    check(all(".dist-info/" in n for n in foreign), f"{wheel.name} holds {foreign}")
    check(any(n.endswith("licenses/LICENSE") for n in foreign), "the wheel has no licence")
    with tarfile.open(sdist) as archive:
        inside = {n.partition("/")[2] for n in archive.getnames()}
    wanted = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "runtime/CMakeLists.txt"}
    wanted |= {*tracked("runtime/csrc"), *tracked("runtime/kernels")}
    check(wanted <= inside, f"{sdist.name} lacks {sorted(wanted - inside)}")


def install_and_use(wheel: Path, where: Path) -> None:
    """Install without and with the extra `cpu`; the first must say what the second adds."""
    venv, bundle = where / "venv", HERE / "tiny.bundle"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    python = venv / "bin" / "python"
    environment = {"PATH": str(venv / "bin"), "HOME": str(where), "LANG": "C.UTF-8"}

    def run(*words: object, status: int = 0) -> str:
        done = subprocess.run(
            [str(word) for word in words],
            cwd=where,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        check(done.returncode == status, f"{words}: exit {done.returncode}\n{done.stdout}")
        return done.stdout

    pinned = ("--only-binary", ":all:", "--constraint", TREE / "constraints.txt", "--quiet")
    pip = (python, "-m", "pip", "--disable-pip-version-check", "install", *pinned)
    run(*pip, wheel)
    said = run(*(venv / "bin" / "metah-search", "add", "index", "--bundle", bundle, "."), status=1)
    check("fix: pip install 'metah[cpu]'" in said, f"the missing extra is not named: {said}")
    run(*pip, f"{wheel}[cpu]")
    print(run(python, "-I", HERE / "tour.py", bundle), end="")


def main() -> None:
    dist = Path(sys.argv[1]).resolve()
    wheel, sdist = only(dist, "metah-*.whl"), only(dist, "metah-*.tar.gz")
    contents(wheel, sdist)
    with tempfile.TemporaryDirectory() as where:
        install_and_use(wheel, Path(where))
    print(f"{wheel.name} and {sdist.name} are complete and work")


if __name__ == "__main__":
    main()
