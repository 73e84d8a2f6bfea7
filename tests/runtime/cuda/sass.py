"""Reads the machine code of the kernels: what each inner loop costs, without a GPU.

Needs cuobjdump and nvdisasm, of the CUDA toolkit or of the PyPI packages nvidia-cuda-cuobjdump and
nvidia-cuda-nvdisasm.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from metah_runtime.errors import BackendUnavailable

_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One machine instruction: address, opcode with its modifiers, operands."""

    address: int
    opcode: str
    operands: str

    @property
    def target(self) -> int | None:
        """Address that a branch goes to."""
        found = re.search(r"0x([0-9a-f]+)$", self.operands.strip())
        return int(found[1], 16) if self.opcode.startswith("BRA") and found else None


def find_tools() -> str | None:
    """Return the path of cuobjdump if it and nvdisasm are there, else None."""
    nvidia = find_spec("nvidia")
    packages = [Path(folder) for folder in (nvidia and nvidia.submodule_search_locations) or ()]
    extra = [str(bin_folder) for folder in packages for bin_folder in sorted(folder.glob("*/bin"))]
    folders = [os.environ.get("PATH", ""), *extra]
    path = os.pathsep.join(folders)
    tool = shutil.which("cuobjdump", path=path)
    return tool if shutil.which("nvdisasm", path=path) else None


def disassemble(image: bytes, arch: int | None = None) -> dict[str, list[Instruction]]:
    """Return the instructions of each kernel of a cubin, or of a fatbin's code for ``arch`` (90).

    arch may be left out if there is code for one architecture only.
    """
    tool = find_tools()
    if tool is None:
        raise BackendUnavailable(
            "cuobjdump and nvdisasm are missing; "
            "fix: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
        )
    with tempfile.TemporaryDirectory(prefix="metah-") as folder:
        path = Path(folder) / "image.cubin"
        path.write_bytes(image)
        places = os.pathsep.join([str(Path(tool).parent), os.environ.get("PATH", "")])
        done = subprocess.run(
            [tool, "-sass", *([] if arch is None else ["-arch", f"sm_{arch}"]), str(path)],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PATH": places},
        )
    if done.returncode:
        raise BackendUnavailable(f"cuobjdump failed: {done.stderr.strip()[:500]}")
    return parse(done.stdout)


def parse(text: str) -> dict[str, list[Instruction]]:
    """Return the instructions of each kernel in the output of ``cuobjdump -sass``."""
    kernels: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in text.splitlines():
        if "Function :" in line:
            current = kernels.setdefault(line.split("Function :")[1].strip(), [])
        elif found := _LINE.search(line):
            current.append(Instruction(int(found[1], 16), found[2], found[3]))
    return kernels


def hot_loop(code: list[Instruction]) -> list[Instruction]:
    """Return the instructions that a scan runs for each query, or group of 8, without a hit.

    That is the innermost loop around the first VOTE, less what the branch after it skips.
    """
    vote = next(i for i, one in enumerate(code) if one.opcode.startswith("VOTE.ANY"))
    here = code[vote].address
    loops = [
        (one.address - one.target, one.target, one.address)
        for one in code
        if one.target is not None and one.target <= here <= one.address
    ]
    _, start, end = min(loops)
    leave = next(one for one in code[vote:] if one.target is not None)
    skip = leave.target or 0
    return [
        one
        for one in code
        if start <= one.address <= leave.address or skip <= one.address <= end
    ]  # fmt: skip


def opcode_counts(code: list[Instruction]) -> Counter[str]:
    """Count the instructions by the first part of the opcode."""
    return Counter(one.opcode.split(".")[0] for one in code)
