"""Run a service on a port until the process is told to stop."""

import asyncio
import math
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from metah_runtime.errors import ConfigError
from metah_runtime.serve.app import create_app
from metah_runtime.serve.protocol import protocol
from metah_runtime.serve.proxies import TrustedProxies
from metah_runtime.serve.service import Service

LATE = 4.0
"""Seconds from the end of the drain to the end of the process."""

IDLE = 5
"""Seconds that a connection may stay open without a request."""


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free one. Raises ConfigError."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(f"--host {host}: {error.strerror}") from None
    made = socket.socket(family, kind, number)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(2048)
    except OSError as error:
        made.close()
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror}; fix: --port with another"
        ) from None
    return made


def url(sock: socket.socket) -> str:
    """Return the address of a listening socket as a URL."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn's server with a service, which refuses new queries when the server stops."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service = service
        self._ready = ready

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the service, answer until told to stop, close the service."""
        try:
            await self._service.start()
            await super().serve(sockets)
        finally:
            await self._service.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections and call ``ready``."""
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop: SIGTERM or Ctrl-C; a second Ctrl-C does not wait.

        Whatever blocks the end, such as a folder of pictures that no longer answers: the kernel
        ends the process by SIGALRM ``LATE`` seconds after the drain.
        """
        if not self._service.draining:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(math.ceil(self._service.settings.drain + LATE))
        self._service.draining = True
        super().handle_exit(sig, frame)


def make_server(service: Service, ready: Callable[[], None] = lambda: None) -> Server:
    """Return the server of a service; ``ready`` is called once it answers."""
    settings = service.settings
    config = uvicorn.Config(
        create_app(service),
        http=protocol(
            header_timeout=settings.header_timeout,
            write_timeout=settings.body_timeout,
            connections=settings.connections,
            proxies=TrustedProxies(settings.trusted_proxies),
        ),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE,
        timeout_graceful_shutdown=max(1, round(settings.drain)),
    )
    return Server(config, service, ready)


def run(service: Service, sock: socket.socket, ready: Callable[[], None] = lambda: None) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests at work."""
    server = make_server(service, ready)
    # uvicorn raises the signal again when it is done: a server that stopped as told has succeeded.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    asyncio.run(server.serve([sock]))
