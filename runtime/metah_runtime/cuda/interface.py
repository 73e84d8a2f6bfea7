"""What the kernels and the host must agree on, read from the kernels' own header."""

import re
import struct
from dataclasses import dataclass
from functools import cache
from typing import SupportsIndex

from metah_runtime.cuda.fatbin import source_folder

HEADER = "interface.h"
_DEFINE = re.compile(r"^#define (\w+) (\d+)\b", re.MULTILINE)
_STRUCT = re.compile(r"^struct (\w+) \{(.*?)^\};", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"^\s*(?:const )?(\w+)(\*?) (\w+);", re.MULTILINE)
_FORMATS = {"uint32_t": "I", "uint64_t": "Q"}


@dataclass(frozen=True)
class Parameters:
    """The one parameter of a kernel, a struct of C: its fields in order, and their layout."""

    name: str
    fields: tuple[str, ...]
    layout: struct.Struct

    def __call__(self, **values: SupportsIndex) -> bytes:
        """Return the struct as the GPU reads it; every field must be given, by name."""
        if values.keys() != set(self.fields):
            raise TypeError(f"{self.name} has the fields {self.fields}, got {tuple(values)}")
        return self.layout.pack(*(values[field] for field in self.fields))


@dataclass(frozen=True)
class Interface:
    """Numbers by name, {words: codes a thread}, {words: tiles a warp}, and structs by name."""

    numbers: dict[str, int]
    popc_codes: dict[int, int]
    mma_tiles: dict[int, int]
    parameters: dict[str, Parameters]


def parse(text: str) -> Interface:
    """Return the contents of interface.h."""
    text = re.sub(r"//.*", "", text)
    return Interface(
        numbers={name: int(value) for name, value in _DEFINE.findall(text)},
        popc_codes=_pairs(text, "POPC_WIDTHS"),
        mma_tiles=_pairs(text, "MMA_WIDTHS"),
        parameters={name: _parameters(name, body) for name, body in _STRUCT.findall(text)},
    )


@cache
def load() -> Interface:
    """Return the interface of the installed kernels; BackendUnavailable if they are missing."""
    return parse((source_folder() / HEADER).read_text())


def parameters(name: str, **values: SupportsIndex) -> bytes:
    """Return the parameters of a kernel, the struct ``name`` of interface.h, as bytes."""
    return load().parameters[name](**values)


def _pairs(text: str, macro: str) -> dict[int, int]:
    line = re.search(rf"^#define {macro}\(X\) (.*)$", text, re.MULTILINE)
    found = re.findall(r"X\((\d+), (\d+)\)", line[1]) if line else []
    return {int(words): int(count) for words, count in found}


def _parameters(name: str, body: str) -> Parameters:
    found = _FIELD.findall(body)
    if len(found) != body.count(";"):
        raise ValueError(f"struct {name} of {HEADER} has a field that is not understood")
    formats = ["Q" if star else _FORMATS[kind] for kind, star, _ in found]
    fields = tuple(field for _, _, field in found)
    return Parameters(name, fields, struct.Struct("@" + "".join(formats) + "0Q"))
