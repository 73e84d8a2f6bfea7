"""More work than can be done: refused at once or late, never lost, and all is well afterwards."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from metah_runtime.serve.decoding import DecoderSlow
from metah_runtime.serve.limits import FairSlots

from .conftest import Answer, Running, World, running


class Slow:
    """A model that waits at a gate."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.device, self.bits = real.device, real.bits

    def run(self, images: Any) -> Any:
        self.entered.set()
        assert self.gate.wait(30)
        return self._real.run(images)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def search_from(server: Running, address: str, data: bytes, kind: str = "image/png") -> Answer:
    """Search as another client: all of 127.0.0.0/8 is this machine."""
    import http.client

    link = http.client.HTTPConnection(
        "127.0.0.1", server.port, timeout=30, source_address=(address, 0)
    )
    try:
        link.request("POST", "/v1/search", data, {"Content-Type": kind})
        got = link.getresponse()
        names = {name.lower(): value for name, value in got.getheaders()}
        return Answer(got.status, names, got.read())
    finally:
        link.close()


@pytest.fixture
def slow(world: World) -> Slow:
    return Slow(world.encoder().runner)


def serve(world: World, slow: Slow, **settings: Any) -> Any:
    encoder = world.encoder()
    encoder.runner = slow  # type: ignore[assignment]
    return running(world.service(encoder=encoder, **settings))


def test_a_full_queue_and_a_greedy_client_are_told_to_wait(world: World, slow: Slow) -> None:
    data = world.files[0].read_bytes()
    with serve(world, slow, queue=3, per_client=2) as server, ThreadPoolExecutor(4) as pool:
        try:
            waiting = [pool.submit(server.search, data) for _ in range(2)]
            until(lambda: server.service.gate.count == 2)
            greedy = server.search({"id": 0})
            waiting.append(pool.submit(search_from, server, "127.0.0.2", data))
            until(lambda: server.service.gate.count == 3)
            full = search_from(server, "127.0.0.3", data)
        finally:
            slow.gate.set()
        assert (greedy.status, greedy.headers["retry-after"]) == (429, "1")
        assert (full.status, full.headers["retry-after"]) == (503, "1")
        want = waiting[0].result().json
        assert all(future.result().json == want for future in waiting)
        assert server.search(data).json == want
        assert server.service.gate.count == 0
        assert server.service.budget.used == 0


def test_a_late_answer_is_504_and_a_stuck_model_is_not_ready(world: World, slow: Slow) -> None:
    data = world.files[0].read_bytes()
    with serve(world, slow, timeout=3.0) as server:
        try:
            late = server.search(data)
            assert late.status == 504
            assert late.json["rule"] == "an answer may take 3 s"
            assert server.get("/healthz").json == {"status": "ok"}
            until(lambda: server.get("/readyz").status == 503)
            assert "the model has not answered for long" in server.get("/readyz").json["error"]
            assert server.search({"id": 0}).status == 200
        finally:
            slow.gate.set()
        until(lambda: server.get("/readyz").status == 200)
        assert server.search(data).status == 200


def test_bodies_in_memory_are_bounded(world: World, slow: Slow) -> None:
    big = world.files[0].read_bytes() + b"\0" * 100_000
    with (
        serve(world, slow, max_body=110_000, timeout=20.0) as server,
        ThreadPoolExecutor(20) as pool,
    ):
        try:
            asks = [pool.submit(server.search, big) for _ in range(20)]
            until(lambda: sum(ask.done() for ask in asks) == 3)
            assert server.service.budget.used <= 16 * 110_000
        finally:
            slow.gate.set()
        found = [ask.result().status for ask in asks]
        assert sorted(found) == [200] * 17 + [503] * 3
        assert server.service.budget.used == 0


def test_slow_images_of_one_client_leave_decoders_to_others(world: World) -> None:
    service = world.service(decoders=2, timeout=30.0)
    good = world.files[0].read_bytes()
    real = service.decoders.pixels
    decoded: list[bytes] = []

    async def pixels(data: bytes) -> Any:
        decoded.append(data)
        if data.startswith(b"slow"):
            await asyncio.sleep(1)
            raise DecoderSlow("the image was not decoded within 1 s")
        return await real(data)

    service.decoders.pixels = pixels  # type: ignore[method-assign]
    with running(service) as server, ThreadPoolExecutor(30) as pool:
        bombs = [
            pool.submit(search_from, server, "127.0.0.2", b"slow %d" % number)
            for number in range(12)
        ]
        time.sleep(0.3)
        for _ in range(6):
            start = time.monotonic()
            assert search_from(server, "127.0.0.3", good).status == 200
            assert time.monotonic() - start < 2.5  # at most one slow image, and a busy machine
        assert not all(bomb.done() for bomb in bombs)
        assert {bomb.result().status for bomb in bombs} == {504}
        decoded.clear()
        again = search_from(server, "127.0.0.4", b"slow 3")
        assert (again.status, decoded) == (504, [])
        assert "a moment ago" in again.json["error"]


def test_long_searches_of_one_client_leave_threads_to_others(world: World) -> None:
    service = world.service(timeout=30.0)
    real = service._find

    def find(*args: Any) -> Any:
        if args[-1].count == 7:
            time.sleep(0.5)
        return real(*args)

    service._find = find  # type: ignore[method-assign, assignment]
    service._searches = FairSlots(2)  # whatever the number of cores
    with running(service) as server, ThreadPoolExecutor(40) as pool:
        crowd = [pool.submit(server.search, {"id": 0}, "?k=7") for _ in range(40)]
        time.sleep(0.3)
        start = time.monotonic()
        answer = search_from(server, "127.0.0.3", b'{"id": 0}', "application/json")
        assert answer.status == 200
        assert time.monotonic() - start < 2.5
        assert not all(ask.done() for ask in crowd)
        assert {ask.result().status for ask in crowd} == {200}


def test_a_stop_lets_requests_end(world: World, slow: Slow) -> None:
    data = world.files[0].read_bytes()
    with ThreadPoolExecutor(2) as pool:
        with serve(world, slow) as server:
            ask = pool.submit(server.search, data)
            assert slow.entered.wait(20)
            threading.Timer(0.3, slow.gate.set).start()
        assert ask.result().status == 200


def test_a_stop_does_not_wait_for_ever(world: World, slow: Slow) -> None:
    data = world.files[0].read_bytes()
    with ThreadPoolExecutor(2) as pool:
        try:
            with serve(world, slow, drain=1.0, timeout=25.0) as server:
                ask = pool.submit(server.search, data)
                assert slow.entered.wait(20)
                threading.Timer(8, slow.gate.set).start()
            answer = ask.result()
        finally:
            slow.gate.set()
    assert answer.status == 503
    assert "stopping" in answer.json["error"]
