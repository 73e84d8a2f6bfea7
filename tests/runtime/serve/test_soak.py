"""Searches while the index changes, is damaged and repaired, and decoders die: no answer is wrong.

Five seconds in every run of the tests; ``make soak`` takes a minute.
"""

import gc
import http.client
import itertools
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metah_runtime import Index, reference
from metah_runtime.codes import Codes
from metah_runtime.files import write_bytes
from metah_runtime.index.manifest import NAME

from .conftest import BITS, COUNT, Running, World, running

CLIENTS = 4
STAYS = 10
"""Ids below this are never removed."""


@dataclass
class Truth:
    """What the index holds in each of its versions: name -> (ids, codes)."""

    states: dict[str, tuple[Any, Codes]] = field(default_factory=dict)

    def note(self, index: Index, first: int) -> None:
        """Say that the versions from generation ``first`` on hold what the index holds now."""
        ids = index.ids()
        state = (ids, index.codes(ids))
        for generation in range(first, index.generation + 1):
            self.states[f"{index.info()['index_id']}.{generation}"] = state

    def check(self, asked: dict[str, int], answer: dict[str, Any]) -> None:
        """Compare an answer with a search by counting bits in numpy."""
        ids, codes = self.states[answer["version"]]
        code = np.frombuffer(bytes.fromhex(answer["code"]), np.uint8)
        distances = reference.distances(code[None], codes)[0]
        order = np.lexsort((ids, distances))
        if "radius" in asked:
            order = order[distances[order] <= asked["radius"]]
            assert answer["within"] == len(order)
        order = order[: asked.get("k", asked.get("limit", 0))]
        got = [(item["id"], item["distance"]) for item in answer["neighbours"]]
        assert got == list(zip(ids[order].tolist(), distances[order].tolist(), strict=True))


def write(index: Index, truth: Truth, stop: threading.Event, rng: np.random.Generator) -> None:
    """Add, remove, compact, and now and then leave a damaged manifest for a moment."""
    for step in itertools.count():
        if stop.wait(0.05):
            return
        before = index.generation
        kind = step % 7
        if kind == 3:
            ids = index.ids()
            index.remove(rng.choice(ids[ids >= STAYS], 5, replace=False))
        elif kind == 5:
            index.compact()
        elif kind == 6:
            good = (index.path / NAME).read_bytes()
            write_bytes(index.path / NAME, good[: len(good) // 2])
            stop.wait(0.15)
            write_bytes(index.path / NAME, good)
        else:
            count = int(rng.integers(1, 9))
            index.add(rng.integers(0, 256, (count, BITS // 8), dtype=np.uint8))
        truth.note(index, before + 1)


@dataclass
class Client:
    """Asks one question after the other on one connection and keeps every answer."""

    server: Running
    images: list[bytes]
    seed: int
    answers: list[tuple[dict[str, int], int, dict[str, Any]]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def run(self, stop: threading.Event) -> None:
        rng = np.random.default_rng(self.seed)
        link = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        while not stop.is_set():
            asked = (
                {"k": int(rng.integers(1, 60))}
                if rng.random() < 0.5
                else {"radius": int(rng.integers(0, 7)), "limit": int(rng.integers(1, 60))}
            )
            query = "&".join(f"{name}={value}" for name, value in asked.items())
            kind, body = self._body(rng)
            try:
                link.request("POST", f"/v1/search?{query}", body, {"Content-Type": kind})
                got = link.getresponse()
                self.answers.append((asked, got.status, json.loads(got.read())))
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.lost.append(repr(error))
                link.close()
        link.close()

    def _body(self, rng: np.random.Generator) -> tuple[str, bytes]:
        choice = rng.random()
        if choice < 0.4:
            return "image/png", self.images[int(rng.integers(len(self.images)))]
        if choice < 0.8:
            return "application/json", json.dumps({"code": rng.bytes(BITS // 8).hex()}).encode()
        return "application/json", json.dumps({"id": int(rng.integers(STAYS))}).encode()


def kill_decoders(server: Running, stop: threading.Event) -> None:
    while not stop.wait(1.5):
        with suppress(ProcessLookupError, IndexError):
            os.kill(server.service.decoders.pids[0], signal.SIGKILL)


def mapped_and_deleted(folder: Path) -> int:
    lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    return sum(str(folder) in line and line.endswith("(deleted)") for line in lines)


def test_no_answer_is_wrong_or_lost(
    world: World, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seconds = float(request.config.getoption("--soak-seconds", default=5.0))
    shutil.copytree(world.index, tmp_path / "index")
    index = Index.open(tmp_path / "index")
    truth = Truth()
    truth.note(index, index.generation)
    rng = np.random.default_rng(1)
    images = [file.read_bytes() for file in world.files]
    stop = threading.Event()
    failed: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    with running(world.service(tmp_path / "index", decoders=2, timeout=25.0)) as server:
        clients = [Client(server, images, seed) for seed in range(CLIENTS)]
        threads = [guarded(lambda: write(index, truth, stop, rng))]
        threads += [guarded(lambda: kill_decoders(server, stop))]
        threads += [guarded(lambda client=client: client.run(stop)) for client in clients]
        time.sleep(seconds)
        stop.set()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        newest = index.generation
        deadline = time.monotonic() + 20
        while server.service.versions.current.snapshot.manifest.generation != newest:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        reloads = server.service.metrics.reloads
        index.close()
        gc.collect()
        # What old versions had mapped is gone with them.
        assert mapped_and_deleted(tmp_path / "index") == 0

    assert not failed
    seen = set()
    for client in clients:
        assert not client.lost
        generations = []
        for asked, status, answer in client.answers:
            assert status == 200, answer
            truth.check(asked, answer)
            generations.append(int(answer["version"].split(".")[1]))
        assert generations == sorted(generations)
        seen.update(generations)
    assert len(seen) > 3
    samples = [sample for metric in reloads.collect() for sample in metric.samples]
    counts = {s.labels.get("result"): s.value for s in samples if s.name.endswith("_total")}
    assert counts["ok"] > 3
    if seconds >= 30:
        assert counts["failed"] > 3


def test_the_check_of_the_soak_sees_a_wrong_answer() -> None:
    codes = np.arange(COUNT, dtype=np.uint8).repeat(BITS // 8).reshape(COUNT, BITS // 8)
    truth = Truth({"v": (np.arange(COUNT), codes)})
    right = [{"id": 0, "distance": 0}, {"id": 1, "distance": 2}]
    truth.check({"k": 2}, {"version": "v", "code": "0000", "neighbours": right})
    for wrong in (right[::-1], right[:1], [right[0], {"id": 2, "distance": 2}]):
        with pytest.raises(AssertionError):
            truth.check({"k": 2}, {"version": "v", "code": "0000", "neighbours": wrong})
