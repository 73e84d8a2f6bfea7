"""Images: finding files, reading them as the uint8 arrays that a model takes, decoding ahead.

The names below are imported when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metah_runtime.images.find import find_images
    from metah_runtime.images.preprocess import Preprocess, load_image

__all__ = ["Preprocess", "find_images", "load_image"]

_HOME = {"Preprocess": "preprocess", "find_images": "find", "load_image": "preprocess"}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'metah_runtime.images' has no attribute {name!r}")
    module = import_module(f"metah_runtime.images.{_HOME[name]}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
