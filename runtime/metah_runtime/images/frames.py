"""Frames between a decoding process and its parent: a JSON object and bytes.

<I Q>   length of the JSON text, length of the bytes; then both
"""

import json
import struct
from typing import Any, BinaryIO

HEAD = struct.Struct("<IQ")


def pack(head: dict[str, Any], data: bytes = b"") -> bytes:
    """Return a frame's bytes."""
    text = json.dumps(head).encode()
    return b"".join((HEAD.pack(len(text), len(data)), text, data))


def read(source: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """Read one frame; None at the end of the stream."""
    first = source.read(HEAD.size)
    if len(first) < HEAD.size:
        return None
    text, data = HEAD.unpack(first)
    head: dict[str, Any] = json.loads(source.read(text))
    return head, source.read(data)


def unpack(unread: bytearray) -> tuple[dict[str, Any], bytes, int] | None:
    """Return (object, bytes, size of the frame) at the start of ``unread``; None if not whole."""
    if len(unread) < HEAD.size:
        return None
    text, data = HEAD.unpack_from(unread)
    middle, end = HEAD.size + text, HEAD.size + text + data
    if len(unread) < end:
        return None
    return json.loads(unread[HEAD.size : middle]), bytes(unread[middle:end]), end
