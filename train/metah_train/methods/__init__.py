"""The hashing methods, one file each; this table is the only place that lists them.

A method is a subclass of ``DeepMethod`` or ``ShallowMethod`` (see ``base``). Its module is
imported when the method is first used, so that naming the methods does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metah_train.methods.base import Method

METHODS: dict[str, tuple[str, str]] = {
    "lsh": ("lsh", "LSH"),
    "sh": ("sh", "SH"),
    "itq": ("itq", "ITQ"),
    "ksh": ("ksh", "KSH"),
    "sdh": ("sdh", "SDH"),
    "cnnh": ("cnnh", "CNNH"),
    "dnnh": ("dnnh", "DNNH"),
    "dhn": ("dhn", "DHN"),
    "hashnet": ("hashnet", "HashNet"),
    "thn": ("thn", "THN"),
    "source": ("metah", "Source"),
    "tah": ("metah", "TAH"),
    "metah-e": ("metah", "METAHe"),
    "metah": ("metah", "METAH"),
    "metah-plus": ("metah_plus", "METAHPlus"),
}
"""Name -> (module in this package, class)."""


def method_class(name: str) -> "type[Method[Any]]":
    """Return the class of a method in METHODS."""
    module, attribute = METHODS[name]
    found: type[Method[Any]] = getattr(import_module(f"metah_train.methods.{module}"), attribute)
    return found
