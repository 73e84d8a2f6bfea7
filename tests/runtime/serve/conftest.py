"""A small index and its model, served for real on a free port."""

import asyncio
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs metah[serve]")

from metah_runtime import Encoder, Index
from metah_runtime.model.bundle import Bundle
from metah_runtime.serve.labels import Labels
from metah_runtime.serve.run import listen, make_server
from metah_runtime.serve.service import Service
from metah_runtime.serve.settings import ServerSettings


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak-seconds", type=float, default=5.0, help="length of the soak")


BITS = 16
COUNT = 40


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class World:
    """Images below ``images``, their codes in ``index``, the model that made them."""

    folder: Path
    bundle: Bundle
    images: Path
    index: Path
    files: list[Path] = field(default_factory=list)

    def encoder(self) -> Encoder:
        return Encoder.open(self.bundle, threads=1)

    def service(self, index: Path | None = None, **settings: Any) -> Service:
        labels = settings.pop("labels", None)
        encoder = settings.pop("encoder", None) or self.encoder()
        small = {"decoders": 1, "reload": 0.05} | settings
        return Service(index or self.index, encoder, ServerSettings(**small), labels)


@dataclass(frozen=True)
class Running:
    service: Service
    port: int
    loop: asyncio.AbstractEventLoop

    def settle(self) -> None:
        """Wait for what follows an answer: its line in the log is written after its last byte."""
        turned = threading.Event()
        self.loop.call_soon_threadsafe(turned.set)
        assert turned.wait(30)

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            link.request(method, path, body, headers or {})
            got = link.getresponse()
            names = {name.lower(): value for name, value in got.getheaders()}
            return Answer(got.status, names, got.read())
        finally:
            link.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.call("GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()})

    def search(self, body: Any, query: str = "", kind: str | None = None, **extra: str) -> Answer:
        """POST an image (bytes) or a JSON value to /v1/search."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = kind or ("image/png" if isinstance(body, bytes) else "application/json")
        return self.call("POST", f"/v1/search{query}", data, {"Content-Type": kind, **extra})


@contextmanager
def running(service: Service) -> Iterator[Running]:
    """Serve in a thread for the block; stop it as SIGTERM does."""
    started = threading.Event()
    failed: list[BaseException] = []
    loops: list[asyncio.AbstractEventLoop] = []
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        server = make_server(service, started.set)

        async def serve() -> None:
            loops.append(asyncio.get_running_loop())
            await server.serve([sock])

        def run() -> None:
            try:
                asyncio.run(serve())
            except BaseException as error:
                failed.append(error)
                started.set()

        thread = threading.Thread(target=run)
        thread.start()
        assert started.wait(60)
        if failed:
            raise failed[0]
        try:
            yield Running(service, port, loops[0])
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


def write_images(folder: Path, count: int, seed: int = 0) -> list[Path]:
    rng = np.random.default_rng(seed)
    files = []
    for number in range(count):
        place = folder / ("photo" if number % 2 else "sketch") / f"class {number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        files.append(place / f"{number:03}.png")
        pixels = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(files[-1])
    return files


@pytest.fixture(scope="session")
def world(
    tmp_path_factory: pytest.TempPathFactory, write_toy_bundle: Callable[..., Bundle]
) -> World:
    folder = tmp_path_factory.mktemp("serve")
    bundle = write_toy_bundle(folder / "toy", bits=BITS)
    files = write_images(folder / "images", COUNT)
    encoder = Encoder.open(bundle, threads=1)
    store = Index.create(folder / "index", bits=BITS, fingerprint=bundle.fingerprint)
    store.add(encoder.encode(files), paths=[str(file) for file in files])
    return World(folder, bundle, folder / "images", folder / "index", files)


@pytest.fixture(scope="session")
def served(world: World) -> Iterator[Running]:
    """Serve the world without a token, pictures included."""
    labels = Labels(root=world.images.resolve(), layout=("domain", "label"))
    with running(world.service(images=world.images, labels=labels)) as server:
        yield server
