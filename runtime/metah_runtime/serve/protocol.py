"""The connection under uvicorn: slow heads, slow readers and crowds are cut off."""

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from metah_runtime.serve.problems import MEDIA_TYPE


def protocol(
    *, header_timeout: float, write_timeout: float, connections: int
) -> type[asyncio.Protocol]:
    """Return the protocol class of a server.

    header_timeout: seconds from the first byte of a request, or the connection, to the end of its
    head; write_timeout: seconds for a client to make room for an answer; connections: at once.
    """

    class Protocol(H11Protocol):
        _head: asyncio.TimerHandle | None = None
        _write: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > connections:
                self.logger.warning("refused a connection: %d are open", connections)
                transport.write(_raw(503, "too many connections", f"at most {connections}"))
                transport.close()
                return
            self._watch_head()

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
                self.transport.write(_raw(400, msg, "requests are HTTP/1.1"))
            self.transport.close()

        def _watch_head(self) -> None:
            """Time the head of the request that is arriving; no timer while one is at work."""
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
