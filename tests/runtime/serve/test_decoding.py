"""Decoding processes: right pixels, bounded, and replaceable one by one."""

import asyncio
import io
import os
import signal
import struct
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metah_runtime.errors import ImageError
from metah_runtime.html.gallery import encoded_thumbnail
from metah_runtime.images.preprocess import Preprocess, load_image
from metah_runtime.serve.decoding import DecoderDied, Decoders, DecoderSlow, TooManyPixels

SPEC = Preprocess(height=4, width=5)


def png(width: int = 30, height: int = 20, seed: int = 0, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(data, "PNG")
    return data.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes that states a great size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def go(body: Callable[[Decoders], Awaitable[None]], **settings: Any) -> int:
    """Run ``body`` with decoders; return how many were replaced."""
    restarts: list[None] = []

    async def main() -> None:
        decoders = Decoders(
            SPEC,
            **({"count": 1, "max_pixels": 10_000, "timeout": 20.0} | settings),
            on_restart=lambda: restarts.append(None),
        )
        try:
            await decoders.start()
            await body(decoders)
        finally:
            pids = decoders.pids
            await decoders.close()
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)

    asyncio.run(asyncio.wait_for(main(), 120))
    return len(restarts)


def test_pixels_thumbnails_and_refusals() -> None:
    async def body(decoders: Decoders) -> None:
        for seed, mode in enumerate(("RGB", "L", "P", "RGBA")):
            data = png(seed=seed, mode=mode)
            assert np.array_equal(await decoders.pixels(data), load_image(data, SPEC))
        kind, picture = await decoders.thumbnail(png(60, 90), 32)
        assert (kind, picture) == ("image/png", encoded_thumbnail(png(60, 90), 32)[1])
        assert (await decoders.thumbnail(png(100, 90), 80))[0] == "image/jpeg"
        for size in ((101, 100), (10_000, 10_000), (60_000, 60_000), (2**31 - 1, 1)):
            with pytest.raises(TooManyPixels, match=r"is more than 10,000 pixels|more than"):
                await decoders.pixels(bomb(*size))
        for data in (b"x", png()[:200], b"%PDF-1.4", bomb(0, 5)):
            with pytest.raises(ImageError):
                await decoders.pixels(data)
            with pytest.raises(ImageError):
                await decoders.thumbnail(data, 32)
        assert np.array_equal(await decoders.pixels(png()), load_image(png(), SPEC))

    assert go(body) == 0


def test_a_killed_process_is_replaced_and_no_image_is_lost() -> None:
    async def body(decoders: Decoders) -> None:
        (pid,) = decoders.pids
        os.kill(pid, signal.SIGKILL)
        assert np.array_equal(await decoders.pixels(png()), load_image(png(), SPEC))
        (now,) = decoders.pids
        assert now != pid

    assert go(body) == 1


def test_an_image_that_kills_its_decoder_twice_is_given_up() -> None:
    async def body(decoders: Decoders) -> None:
        ask = asyncio.create_task(decoders.pixels(png()))
        seen: set[int] = set()
        while not ask.done():
            for pid in set(decoders.pids) - seen:
                os.kill(pid, signal.SIGSTOP)
                seen.add(pid)
                await asyncio.sleep(0.05)
                os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.01)
        with pytest.raises(DecoderDied, match="died"):
            await ask
        assert len(seen) >= 2

    assert go(body) >= 1


def test_a_hanging_process_costs_its_own_image_alone() -> None:
    async def body(decoders: Decoders) -> None:
        stuck, other = decoders.pids
        os.kill(stuck, signal.SIGSTOP)
        # One of two processes hangs: of the images at work, one is late and all others are right.
        asks = [decoders.pixels(png(seed=n)) for n in range(6)]
        answers = await asyncio.gather(*asks, return_exceptions=True)
        late = [answer for answer in answers if isinstance(answer, DecoderSlow)]
        assert len(late) == 1
        assert "not decoded within 4 s" in str(late[0])
        for number, answer in enumerate(answers):
            if not isinstance(answer, BaseException):
                assert np.array_equal(answer, load_image(png(seed=number), SPEC))
        assert stuck not in decoders.pids
        assert other in decoders.pids

    assert go(body, count=2, timeout=4.0) == 1


def test_a_given_up_request_leaves_the_process_in_order() -> None:
    async def body(decoders: Decoders) -> None:
        before = decoders.pids
        gone = asyncio.create_task(decoders.pixels(png(seed=1)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gone.cancel()
        assert np.array_equal(await decoders.pixels(png(seed=2)), load_image(png(seed=2), SPEC))
        assert decoders.pids == before

    assert go(body) == 0
