"""HTTP connections under uvicorn, with limits on slow heads, slow readers and tiny chunks."""

import asyncio
import json
import math
from collections.abc import Container
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from metah_runtime.serve.problems import MEDIA_TYPE

CHUNKS = 1000
LEAST_CHUNK = 64
"""A body of more than ``CHUNKS`` pieces must have so many bytes in each, on average."""

MOST_UNPARSED = 64 << 10
"""Bytes of an incomplete head, chunk head or trailer."""

SHARE = 0.75
"""Largest part of all connections that one client address may hold."""

READ = 64 << 10
"""Bytes of one connection that are read and parsed before other connections are served."""


class _Connection(h11.Connection):
    """A parser that refuses bodies in tiny pieces, each of which takes as long as a large one."""

    _pieces = _bytes = 0
    refusal: str | None = None

    def next_event(self) -> Any:
        """Return the next event; raise RemoteProtocolError for a bad request."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._pieces = self._bytes = 0
        elif isinstance(event, h11.Data):
            self._pieces += 1
            self._bytes += len(event.data)
            if self._pieces > CHUNKS and self._bytes < LEAST_CHUNK * self._pieces:
                self.refusal = f"the body comes in {self._pieces:,} pieces of {self._bytes:,} bytes"
                raise h11.RemoteProtocolError(self.refusal)
        return event


def protocol(
    *,
    header_timeout: float,
    write_timeout: float,
    connections: int,
    proxies: Container[str] = (),
) -> type[asyncio.Protocol]:
    """Return the protocol class of a server.

    header_timeout: seconds from the first byte of a request, or the connection, to the end of its
    head; write_timeout: seconds for a client to make room for an answer; connections: at once, of
    which one client may have ``SHARE``; proxies: addresses that are no one client.
    """
    share = math.ceil(SHARE * connections)

    class Protocol(H11Protocol):
        conn: _Connection
        _head: asyncio.TimerHandle | None = None
        _write: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.conn = _Connection(h11.SERVER, MOST_UNPARSED)
            transport.max_size = READ  # type: ignore[attr-defined]  # of asyncio's own transport
            if len(self.connections) > connections:
                self._refuse(connections, "at once")
            elif self._address() not in proxies and self._of_same_client() > share:
                self._refuse(share, "of one client")
            else:
                self._watch_head()

        def _address(self) -> str:
            return self.client[0] if self.client else ""

        def _of_same_client(self) -> int:
            client = self._address()
            others = (getattr(other, "client", None) for other in self.connections)
            return sum(other is not None and other[0] == client for other in others)

        def _refuse(self, most: int, which: str) -> None:
            self.logger.warning("refused a connection: %d are open %s", most, which)
            rule = f"at most {most} connections {which}"
            self.transport.write(_raw(503, "too many connections", rule))
            self.transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop("_head")
            self._stop("_write")
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            self._watch_head()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stop("_write")
            self._write = self.loop.call_later(write_timeout, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stop("_write")

        def send_400_response(self, msg: str) -> None:
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                rule = "requests are HTTP/1.1"
                if self.conn.refusal is not None:
                    msg = self.conn.refusal
                    rule = f"{CHUNKS:,} pieces of a body have {LEAST_CHUNK} bytes each, on average"
                self.transport.write(_raw(400, msg, rule))
            self.transport.close()

        def _watch_head(self) -> None:
            """Start the timer of the arriving head, or stop it when the head is complete."""
            if self.conn.their_state is not h11.IDLE:
                self._stop("_head")
            elif self._head is None:
                self._head = self.loop.call_later(header_timeout, self._late)

        def _late(self) -> None:
            if not self.transport.is_closing():
                rule = f"the head of a request may take {header_timeout:g} s"
                self.transport.write(_raw(408, "the head of the request did not arrive", rule))
                self.transport.close()

        def _stop(self, name: str) -> None:
            timer = getattr(self, name)
            if timer is not None:
                timer.cancel()
                setattr(self, name, None)

    return Protocol


def _raw(status: int, error: str, rule: str) -> bytes:
    """Return a whole HTTP response with a problem object."""
    body = json.dumps({"error": error, "rule": rule, "fix": "try again"}).encode()
    head: dict[str, Any] = {
        "content-type": MEDIA_TYPE,
        "content-length": len(body),
        "connection": "close",
    }
    if status == 503:
        head["retry-after"] = 1
    lines = [f"HTTP/1.1 {status} -", *(f"{name}: {value}" for name, value in head.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
