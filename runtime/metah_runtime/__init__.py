"""METAH at run time: images -> packed binary codes -> index -> exact Hamming search. No torch.

The names below are imported when first used, so that a command starts fast.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metah_runtime.index import Index
    from metah_runtime.model.bundle import Bundle
    from metah_runtime.model.encoder import Encoder
    from metah_runtime.results import Matches, RangeMatches
    from metah_runtime.search import CodeIndex

# Read by ONNX Runtime while it is imported: without it, the import leaves a device id and a store
# of events in the home folder, and a long process reports them.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["Bundle", "CodeIndex", "Encoder", "Index", "Matches", "RangeMatches"]

_HOME = {
    "Bundle": "metah_runtime.model.bundle",
    "CodeIndex": "metah_runtime.search",
    "Encoder": "metah_runtime.model.encoder",
    "Index": "metah_runtime.index",
    "Matches": "metah_runtime.results",
    "RangeMatches": "metah_runtime.results",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'metah_runtime' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
