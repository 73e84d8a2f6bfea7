"""Compiles the CUDA kernels as C++; cuda_shim.h supplies what CUDA defines."""

import hashlib
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

from metah_runtime import files
from metah_runtime.cuda import interface
from metah_runtime.cuda.fatbin import cache_folder, read_settings, source_folder
from metah_runtime.errors import BackendUnavailable

FLAGS = ("-std=c++20", "-O2", "-DMETAH_SHIM", "-shared", "-fPIC", "-pthread")
_SHIM = ("cuda_shim.h", "shim_entries.h")
_HERE = Path(__file__).parent
_ENTRY = re.compile(r"__launch_bounds__\(\w+\)\s+(\w+)\(")


def kernel_sources() -> dict[str, str]:
    """Return the texts of the kernels by file name."""
    folder = source_folder()
    return {name: (folder / name).read_text() for name in read_settings(folder).sources}


def kernel_names(texts: dict[str, str]) -> list[str]:
    """Return the names of the kernels in source texts."""
    header = interface.parse(texts[interface.HEADER])
    names = [f"{kind}_w{w}" for w in header.popc_codes for kind in ("scan", "count", "sample")]
    names += [f"{kind}_w{w}" for w in header.mma_tiles for kind in ("mma", "mma_count")]
    return names + [name for text in texts.values() for name in _ENTRY.findall(text)]


def _layout_checks(texts: dict[str, str]) -> str:
    """Return C++ that does not compile unless the structs lie as the host packs them."""
    out = []
    for one in interface.parse(texts[interface.HEADER]).parameters.values():
        codes = one.layout.format.removeprefix("@").removesuffix("0Q")
        out.append(f"static_assert(sizeof({one.name}) == {one.layout.size});\n")
        for i, field in enumerate(one.fields):
            offset = struct.calcsize(f"@{codes[:i]}0{codes[i]}")
            out.append(f"static_assert(offsetof({one.name}, {field}) == {offset});\n")
    return "".join(out)


def build(sources: dict[str, str] | None = None, flags: tuple[str, ...] = ()) -> Path:
    """Compile the kernels as C++; return the library, from the cache if nothing has changed.

    sources: texts to put in place of the kernels', by name; flags: further compiler options.
    Raises BackendUnavailable without a compiler.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise BackendUnavailable("the simulator needs a C++ compiler; fix: install g++ or set CXX")
    texts = kernel_sources() | (sources or {})
    entries = "".join(f"METAH_SHIM_ENTRY({name})\n" for name in kernel_names(texts))
    checks = _layout_checks(texts)
    texts |= {name: (_HERE / name).read_text() for name in _SHIM}
    includes = '#include <cstddef>\n#include "hamming.cu"\n#include "shim_entries.h"\n'
    texts["simulated.cpp"] = includes + checks + entries
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
