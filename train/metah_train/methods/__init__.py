"""The hashing methods, one file each; this table lists them, ``add_method`` adds a user's own.

A method is a subclass of ``DeepMethod`` or ``ShallowMethod`` (see ``base``). Its module is
imported when the method is first used, so that naming the methods does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from metah_runtime.errors import ConfigError

if TYPE_CHECKING:
    from metah_train.methods.base import Method

METHODS: "dict[str, tuple[str, str] | type[Method[Any]]]" = {
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
"""Name -> (module in this package, class), or the class itself."""


def add_method(name: str, kind: "type[Method[Any]]") -> None:
    """Make a class known as a method in this process; raises ConfigError for a name that is taken.

    A run of it is opened, evaluated and exported only where it was added.
    """
    if METHODS.setdefault(name, kind) is not kind:
        raise ConfigError(f"method {name!r} is there already; fix: another name")


def method_class(name: str) -> "type[Method[Any]]":
    """Return the class of a method in METHODS."""
    entry = METHODS[name]
    if not isinstance(entry, tuple):
        return entry
    module, attribute = entry
    found: type[Method[Any]] = getattr(import_module(f"metah_train.methods.{module}"), attribute)
    return found
