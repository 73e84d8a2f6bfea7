"""Checks of every request before the application: host, token; log and headers of the answer."""

import asyncio
import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable, MutableMapping
from time import perf_counter
from typing import Any, TypeAlias

from starlette.datastructures import Headers, MutableHeaders

from metah_runtime.serve.logs import log
from metah_runtime.serve.metrics import Metrics
from metah_runtime.serve.problems import Problem, busy
from metah_runtime.serve.proxies import TrustedProxies
from metah_runtime.serve.settings import ServerSettings, is_loopback

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

PROTECTED = ("/v1/", "/metrics")

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

HEAD_LIMIT = 16 << 10
LINGER = 1.0
"""Seconds for reading the rest of a refused body, so that the client receives the answer."""


class Guard:
    """An ASGI application around another.

    Without a token only requests to a loopback name are answered: a page of another site that
    makes its own name point to this machine (DNS rebinding) is not.
    """

    def __init__(self, app: App, settings: ServerSettings, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._token = None if settings.token is None else _digest(settings.token.encode())
        self._drop = settings.max_body
        self._proxies = TrustedProxies(settings.trusted_proxies)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"only HTTP is served, not {scope['type']!r}")
        scope = self._proxies.of_client(scope)
        request = _Request(scope, receive, send, self._drop)
        method = scope["method"]
        if method == "HEAD":  # a GET whose body is not sent: uvicorn sends none for its own scope
            scope = {**scope, "method": "GET"}
        start = perf_counter()
        try:
            problem = _too_long(scope) or self._refusal(Headers(scope=scope), scope["path"])
            if problem is None:
                await self._app(scope, request.receive, request.send)
            else:
                await problem.response()(scope, request.receive, request.send)
        except asyncio.CancelledError:  # the time that a stop leaves to requests is over
            if request.status is None:
                await STOPPING.response()(scope, request.receive, request.send)
        except Exception:
            log.exception("unexpected error")
            if request.status is None:
                await UNEXPECTED.response()(scope, request.receive, request.send)
        finally:
            self._note(scope, method, request.status, perf_counter() - start)

    def _refusal(self, headers: Headers, path: str) -> Problem | None:
        if self._token is None:
            host = headers.get("host", "")
            if not _is_this_machine(host):
                return Problem(
                    421,
                    f"host {host!r:.80} is not this machine",
                    rule="a server without a token answers to localhost and 127.0.0.1 alone",
                    fix="use http://127.0.0.1:PORT, or start it with a token",
                )
            return None
        if not path.startswith(PROTECTED):
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(_digest(given.strip().encode("latin-1")), self._token)
        if right and scheme.lower() == "bearer":
            return None
        return Problem(
            401,
            "no valid token",
            rule="the request needs the header Authorization: Bearer TOKEN",
            fix="ask whoever runs this server for the token",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def _note(
        self, scope: MutableMapping[str, Any], method: str, status: int | None, seconds: float
    ) -> None:
        """Count and log a request: no path, no query, no header, no body of it."""
        route = getattr(scope.get("route"), "path", "other")
        shown = str(status or 499)
        self._metrics.requests.labels(route, shown).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        client = scope.get("client")
        log.info(
            "request",
            extra={
                "facts": {
                    "method": method if method in _METHODS else "other",
                    "route": route,
                    "status": int(shown),
                    "ms": round(1000 * seconds, 2),
                    "client": client[0] if client else None,
                }
            },
        )


def _is_this_machine(host: str) -> bool:
    """Tell whether a Host header is a loopback name or address, with or without a port.

    Starlette's TrustedHostMiddleware knows no IPv6 addresses and accepts any text after a colon.
    """
    found = _HOST.fullmatch(host.lower())
    return found is not None and is_loopback(found["v6"] or found["name"])


def _too_long(scope: MutableMapping[str, Any]) -> Problem | None:
    """Refuse a large head, which the parser accepts if it arrives in one piece."""
    size = len(scope["raw_path"]) + len(scope["query_string"])
    size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    if size <= HEAD_LIMIT:
        return None
    return Problem(
        431,
        f"the head of the request has {size:,} bytes",
        rule=f"a head may have {HEAD_LIMIT:,} bytes",
        fix="send fewer or shorter headers",
        headers={"Connection": "close"},
    )


_HOST = re.compile(r"(?:\[(?P<v6>[0-9a-f]*:[0-9a-f:.]*)\]|(?P<name>[a-z0-9.]+))(?::[0-9]{0,5})?")

_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

UNEXPECTED = Problem(
    500,
    "an unexpected error",
    rule="the server's log says more",
    fix="report it with the log",
)

STOPPING = busy("the server is stopping", rule="a stop ends requests that take long")


class _Request:
    """State of one request: whether its body was read, and the status of the answer."""

    def __init__(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send, drop: int
    ) -> None:
        self._receive, self._send = receive, send
        self._drop = drop
        self.status: int | None = None
        headers = Headers(scope=scope)
        self._more = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        self._expects = "expect" in headers

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self._more = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-store")
            if self._more:  # answered before the body arrived: the connection must end
                headers["Connection"] = "close"
                if not self._expects:
                    await self._linger()
        await self._send(message)

    async def _linger(self) -> None:
        dropped = 0
        try:
            async with asyncio.timeout(LINGER):
                while self._more and dropped <= self._drop:
                    dropped += len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()
