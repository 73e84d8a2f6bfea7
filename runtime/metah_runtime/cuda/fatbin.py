"""The compiled kernels: shipped as a fatbin, or compiled once by nvcc and kept by hash."""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from metah_runtime import files
from metah_runtime.errors import BackendUnavailable

SETTINGS = "build.json"  # CMakeLists.txt reads it as well
_TREE = Path(__file__).resolve().parents[2] / "kernels"


def _installed_folder() -> Path:
    """Return the folder that CMake installs to: beside the native core, if there is one."""
    native = find_spec("metah_runtime._native")
    origin = native.origin if native else None
    return Path(origin).parent / "cuda" if origin else Path(__file__).parent


_INSTALLED = _installed_folder()


def source_folder() -> Path:
    """Return the folder of the kernel sources: the source tree's, else the installed one."""
    for folder in (_TREE, _INSTALLED / "kernels"):
        if (folder / SETTINGS).is_file():
            return folder
    raise BackendUnavailable(
        f"the CUDA kernels' sources are neither in {_TREE} nor in {_INSTALLED / 'kernels'}: "
        "the installation is incomplete"
    )


@dataclass(frozen=True)
class BuildSettings:
    """How nvcc builds the kernels: files, the first of which it compiles; options; architectures.

    ptx: architecture of the intermediate code, for cards of all other architectures.
    """

    sources: tuple[str, ...]
    options: tuple[str, ...]
    archs: tuple[int, ...]
    ptx: int


def read_settings(folder: Path) -> BuildSettings:
    """Return the settings in build.json."""
    values = json.loads((folder / SETTINGS).read_text())
    lists = {name: tuple(values[name]) for name in ("sources", "options", "archs")}
    return BuildSettings(**lists, ptx=values["ptx"])


def source_hash(folder: Path) -> str:
    """Return the SHA-256 over the digests of settings and sources, as CMake computes it too."""
    names = (SETTINGS, *read_settings(folder).sources)
    digests = "".join(files.sha256(folder / name) for name in names)
    return hashlib.sha256(digests.encode()).hexdigest()


def load_image() -> bytes:
    """Return the fatbin: the shipped one if it was built from these sources, else compile.

    Raises BackendUnavailable if neither is possible.
    """
    folder = source_folder()
    wanted = source_hash(folder)
    shipped, stamp = _INSTALLED / "hamming.fatbin", _INSTALLED / "hamming.sha256"
    if shipped.is_file() and stamp.is_file() and stamp.read_text().strip() == wanted:
        return shipped.read_bytes()
    return compile_image(folder, fatbin_flags(read_settings(folder)))


def fatbin_flags(settings: BuildSettings) -> tuple[str, ...]:
    """Options of nvcc: code for the architectures that it knows, and PTX for all others."""
    known = _run([_nvcc(), "--list-gpu-code"]).split()
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in settings.archs if f"sm_{a}" in known]
    ptx = f"-gencode=arch=compute_{settings.ptx},code=compute_{settings.ptx}"
    return (*settings.options, *codes, ptx)


def compile_image(folder: Path, flags: tuple[str, ...]) -> bytes:
    """Compile the kernels with nvcc, or take them from the cache of METAH_CACHE.

    The cache's key covers the sources, the flags and nvcc's version.
    """
    nvcc = _nvcc()
    version = _run([nvcc, "--version"])
    key = hashlib.sha256("\n".join([source_hash(folder), *flags, version]).encode()).hexdigest()
    path = cache_folder() / "cuda" / f"{key}.fatbin"
    if path.is_file():
        return path.read_bytes()
    with tempfile.TemporaryDirectory(prefix="metah-") as temporary:
        target = Path(temporary) / "hamming.fatbin"
        source = folder / read_settings(folder).sources[0]
        parallel = ("--threads", "0")  # the architectures at the same time
        _run([nvcc, "-fatbin", *parallel, *flags, "-o", str(target), str(source)])
        image = target.read_bytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, image)
    return image


def cache_folder() -> Path:
    """Return METAH_CACHE, by default ~/.cache/metah."""
    chosen = os.environ.get("METAH_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "metah"


def _nvcc() -> str:
    found = shutil.which("nvcc")
    if found is None:
        raise BackendUnavailable(
            "no compiled CUDA kernels of this version are installed and nvcc is not on PATH; "
            "fix: install a wheel with CUDA kernels, or the CUDA toolkit"
        )
    return found


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[0]
        raise BackendUnavailable(f"nvcc failed on the CUDA kernels: {reason}")
    return done.stdout
