"""Text from outside made safe to show: what a terminal would obey becomes an escape."""

import os
from typing import Any


def printable(name: str | bytes | os.PathLike[Any]) -> str:
    r"""Return a file name or another short text on one line; see :func:`escaped`."""
    return escaped(os.fsdecode(name), keep="")


def escaped(text: str, keep: str = "\n\t") -> str:
    r"""Return text whose characters can all be shown: others become ``\x1b``, ``\u202e``, ...

    keep: characters that stay although they cannot be shown. Bytes of a file name that are not
    UTF-8 become ``\xff``.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escape(c) for c in text)


def _escape(c: str) -> str:
    number = ord(c)
    if 0xDC80 <= number <= 0xDCFF:  # os.fsdecode's form of an undecodable byte
        return f"\\x{number - 0xDC00:02x}"
    return c.encode("unicode_escape").decode()
