"""Compiles the CUDA kernels as C++; cuda_shim.h supplies what CUDA defines."""

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from metah_runtime import files
from metah_runtime.cuda.fatbin import SOURCES, cache_folder, source_folder
from metah_runtime.errors import BackendUnavailable

FLAGS = ("-std=c++20", "-O2", "-DMETAH_SHIM", "-shared", "-fPIC", "-pthread")
_SHIM = ("cuda_shim.h", "shim_entries.h")
_HERE = Path(__file__).parent
_ENTRY = re.compile(r"__launch_bounds__\(\w+\)\s+(\w+)\(")
_MACRO = re.compile(r"^(POPC|MMA)_KERNELS\((\d+)\)", re.MULTILINE)
_PREFIXES = {"POPC": ("scan", "count", "sample"), "MMA": ("mma",)}


def kernel_names(text: str) -> list[str]:
    """Return the names of the kernels in a source text."""
    names = _ENTRY.findall(text)
    for macro, width in _MACRO.findall(text):
        names += [f"{prefix}_w{width}" for prefix in _PREFIXES[macro]]
    return names


def build(sources: dict[str, str] | None = None, flags: tuple[str, ...] = ()) -> Path:
    """Compile the kernels as C++; return the library, from the cache if nothing has changed.

    sources: texts to put in place of SOURCES, by name; flags: further compiler options.
    Raises BackendUnavailable without a compiler.
    """
    folder = source_folder()
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise BackendUnavailable("the simulator needs a C++ compiler; fix: install g++ or set CXX")
    texts = {name: (folder / name).read_text() for name in SOURCES} | (sources or {})
    texts |= {name: (_HERE / name).read_text() for name in _SHIM}
    kernels = [name for source in SOURCES for name in kernel_names(texts[source])]
    texts["simulated.cpp"] = '#include "hamming.cu"\n#include "shim_entries.h"\n' + "".join(
        f"METAH_SHIM_ENTRY({kernel})\n" for kernel in kernels
    )
    command = [compiler, *FLAGS, *flags]
    key = hashlib.sha256(repr([sorted(texts.items()), command]).encode()).hexdigest()[:24]
    library = cache_folder() / "simulator" / f"{key}.so"
    if library.is_file():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    with files.new_folder(library.parent / f"{key}.src") as work:
        for name, text in texts.items():
            (work / name).write_text(text)
        target = work / "out.so"
        done = subprocess.run(
            [*command, "-o", str(target), str(work / "simulated.cpp")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise BackendUnavailable(f"the simulator does not compile: {done.stderr[:2000]}")
        target.rename(library)
    shutil.rmtree(library.parent / f"{key}.src", ignore_errors=True)
    return library
