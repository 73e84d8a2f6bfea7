"""The batching queue: order, size, errors and given-up requests."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from metah_runtime.errors import ImageError
from metah_runtime.serve.batching import Batcher

Images = Any


def image(value: int) -> Images:
    return np.full((1, 1, 1), value, np.uint8)


class Model:
    """Code and logit of an image are its value; each run waits for the gate."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[list[int]] = []

    def run(self, images: Images) -> tuple[Images, Images]:
        values = images[:, 0, 0, 0]
        self.batches.append(values.tolist())
        self.entered.set()
        assert self.gate.wait(20)
        if 99 in values:
            raise RuntimeError("broken model")
        logits = values.astype(np.float32)[:, None]
        logits[values == 13] = np.nan
        return values[:, None].copy(), logits


def go(model: Model, body: Callable[[Batcher], Awaitable[None]], **settings: Any) -> list[int]:
    sizes: list[int] = []

    async def main() -> None:
        batcher = Batcher(
            model.run, **({"max_batch": 4, "max_wait": 0.0} | settings), on_batch=sizes.append
        )
        batcher.start()
        try:
            await body(batcher)
        finally:
            model.gate.set()
            await batcher.close()

    asyncio.run(asyncio.wait_for(main(), 30))
    return sizes


async def entered(model: Model) -> None:
    assert await asyncio.to_thread(model.entered.wait, 20)


def test_what_comes_while_the_model_works_goes_together_in_order() -> None:
    model = Model()

    async def body(batcher: Batcher) -> None:
        model.gate.clear()
        first = asyncio.create_task(batcher.encode(image(0)))
        await entered(model)
        rest = [asyncio.create_task(batcher.encode(image(n))) for n in range(1, 8)]
        await asyncio.sleep(0)
        model.gate.set()
        for number, (code, logits) in enumerate(await asyncio.gather(first, *rest)):
            assert (code.tolist(), logits.tolist()) == ([number], [float(number)])

    assert go(model, body) == [1, 4, 3]
    assert model.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]


def test_an_idle_model_waits_a_little_for_company() -> None:
    model = Model()

    async def body(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.encode(image(0)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.gather(first, batcher.encode(image(1)))

    assert go(model, body, max_wait=0.3) == [2]


def test_given_up_images_are_not_run() -> None:
    model = Model()

    async def body(batcher: Batcher) -> None:
        model.gate.clear()
        first = asyncio.create_task(batcher.encode(image(0)))
        await entered(model)
        gone = asyncio.create_task(batcher.encode(image(1)))
        last = asyncio.create_task(batcher.encode(image(2)))
        await asyncio.sleep(0)
        gone.cancel()
        first.cancel()
        model.gate.set()
        assert (await last)[0].tolist() == [2]

    go(model, body)
    assert model.batches == [[0], [2]]


def test_errors_reach_those_they_concern_and_the_queue_goes_on() -> None:
    model = Model()

    async def body(batcher: Batcher) -> None:
        model.gate.clear()
        first = asyncio.create_task(batcher.encode(image(99)))
        await entered(model)
        pair = [asyncio.create_task(batcher.encode(image(n))) for n in (13, 5)]
        await asyncio.sleep(0)
        model.gate.set()
        with pytest.raises(RuntimeError, match="broken model"):
            await first
        with pytest.raises(ImageError, match="NaN or infinity"):
            await pair[0]
        assert (await pair[1])[0].tolist() == [5]
        assert batcher.busy_since is None

    go(model, body)


def test_close_cancels_what_waits() -> None:
    model = Model()
    tasks: list[asyncio.Task[Any]] = []

    async def body(batcher: Batcher) -> None:
        model.gate.clear()
        tasks.append(asyncio.create_task(batcher.encode(image(0))))
        await entered(model)
        assert batcher.busy_since is not None
        tasks.append(asyncio.create_task(batcher.encode(image(1))))
        await asyncio.sleep(0)
        model.gate.set()
        await batcher.close()
        await asyncio.wait(tasks, timeout=5)
        assert all(task.done() for task in tasks)

    go(model, body)
