"""The compiled kernels: shipped as a fatbin, or compiled once by nvcc and kept by hash."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

from metah_runtime import files
from metah_runtime.errors import BackendUnavailable

SOURCES = ("hamming.cu", "select.cuh", "encoded.cuh")
ARCHS = (80, 90, 100, 120)
OPTIONS = ("-std=c++17", "-O3")
PTX = "-gencode=arch=compute_80,code=compute_80"  # for cards of other architectures
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
        if (folder / SOURCES[0]).is_file():
            return folder
    raise BackendUnavailable(
        f"the CUDA kernels' sources are neither in {_TREE} nor in {_INSTALLED / 'kernels'}: "
        "the installation is incomplete"
    )


def source_hash(folder: Path) -> str:
    """Return the SHA-256 over the digests of the kernel sources, as CMake computes it too."""
    digests = "".join(files.sha256(folder / name) for name in SOURCES)
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
    return compile_image(folder, fatbin_flags())


def fatbin_flags() -> tuple[str, ...]:
    """Options of the fatbin: code for those of ARCHS that nvcc knows, and PTX for all others."""
    known = _run([_nvcc(), "--list-gpu-code"]).split()
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHS if f"sm_{a}" in known]
    return (*OPTIONS, *codes, PTX)


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
        parallel = ("--threads", "0")  # the architectures at the same time
        _run([nvcc, "-fatbin", *parallel, *flags, "-o", str(target), str(folder / SOURCES[0])])
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
