"""JPEGs of few bytes that would take minutes to decode are refused before, by every way in."""

import io
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metah_runtime.errors import ImageError
from metah_runtime.html.gallery import encoded_thumbnail
from metah_runtime.images import jpeg
from metah_runtime.images.formats import Decoder
from metah_runtime.images.preprocess import Preprocess, load_image
from metah_runtime.images.worker_process import WorkerProcess, WorkerSettings
from metah_runtime.model.bundle import Bundle

SPEC = Preprocess(height=6, width=5)


def encoded(side: int = 40, mode: str = "RGB", **options: object) -> bytes:
    data = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).resize((side, side)).convert(mode).save(data, "JPEG", **options)
    return data.getvalue()


def many_scans(side: int, scans: int, mode: str = "L") -> bytes:
    """Return a valid progressive JPEG whose last scan is repeated."""
    data = encoded(side, mode, progressive=True, quality=10)
    start, end = data.rfind(b"\xff\xda"), data.rfind(b"\xff\xd9")
    return data[:end] + data[start:end] * scans + b"\xff\xd9"


def padded(data: bytes) -> bytes:
    """Return the same JPEG with a fill byte before each marker of a scan."""
    return data.replace(b"\xff\xda", b"\xff\xff\xda")


BOMBS = {
    "grey": many_scans(40, 501),
    "colour": many_scans(40, 501, "RGB"),
    "fill bytes": padded(many_scans(40, 501)),
    "few scans of many pixels": many_scans(9000, 60),
    "an image of its own after a small one": many_scans(40, 600) + encoded(),
    "many segments": b"\xff\xd8" + b"\xff\xfe\x00\x02" * 10_001 + encoded()[2:],
}


@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
@pytest.mark.parametrize("name", BOMBS)
def test_it_is_refused_before_it_is_decoded(name: str, decoder: Decoder) -> None:
    if decoder == "simplejpeg":
        pytest.importorskip("simplejpeg", reason="needs the extra 'jpeg'")
    start = time.process_time()
    with pytest.raises(ImageError, match=r"a JPEG of .*(scans|segments).*; fix: save it again"):
        load_image(BOMBS[name], SPEC, decoder)
    assert time.process_time() - start < 1


def test_a_decoding_process_and_thumbnails_refuse_it_too() -> None:
    with pytest.raises(ImageError, match="scans"):
        encoded_thumbnail(BOMBS["grey"], 16)
    with WorkerProcess(WorkerSettings(preprocess=SPEC)) as worker:
        for request in ({"kind": "pixels"}, {"kind": "thumbnail", "size": 16}):
            for name in ("grey", "many segments"):
                answer, _ = worker.ask(request, BOMBS[name], timeout=60)
                assert "fix: save it again" in answer["error"]


@pytest.mark.parametrize(
    "data",
    [
        encoded(),
        encoded(mode="L"),
        encoded(mode="CMYK"),
        encoded(progressive=True),
        many_scans(40, 480),
        encoded(progressive=True, exif=b"Exif\0\0" + b"\xff\xda" * 20_000),
        encoded(progressive=True) + b"\xff\xda" * 100_000,
        encoded() + many_scans(40, 600),
        encoded(comment=b"\xff\xd9" * 100, progressive=True),
    ],
)
def test_honest_files_are_decoded(data: bytes) -> None:
    assert jpeg.refusal(data) is None
    with Image.open(io.BytesIO(data)) as image:
        image.load()
    assert load_image(data, SPEC).any()


@pytest.mark.parametrize("cut", range(0, 700, 7))
def test_a_file_that_is_cut_is_never_refused_for_its_scans(cut: int) -> None:
    assert jpeg.refusal(encoded(progressive=True)[:cut]) is None


def test_the_count_is_that_of_the_decoder() -> None:
    for scans in (0, 3, 100):
        data = many_scans(40, scans)
        limit = data.count(b"\xff\xda")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jpeg, "MAX_SCANS", limit)
            assert jpeg.refusal(data) is None
            patch.setattr(jpeg, "MAX_SCANS", limit - 1)
            assert jpeg.refusal(data) is not None


SLOW = """
import sys, time
from metah_runtime.images import decode_threads
def load(*_):
    print("decoding", file=sys.stderr, flush=True)
    time.sleep(120)
decode_threads.load_image = load
from metah_runtime.cli.main import main
main()
"""


@pytest.mark.parametrize("command", ["add", "query"])
def test_ctrl_c_does_not_wait_for_the_image_that_is_decoded(
    tmp_path: Path, make_bundle: Callable[..., Bundle], run: Callable[..., object], command: str
) -> None:
    bundle, index, image = make_bundle(), tmp_path / "index", tmp_path / "a.png"
    Image.new("RGB", (5, 4)).save(image)
    run("add", index, "--bundle", bundle.path, image)
    (tmp_path / "b.png").write_bytes(image.read_bytes())
    options = ["--decode", "threads"] if command == "add" else []
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            SLOW,
            command,
            index,
            "--bundle",
            bundle.path,
            *options,
            tmp_path / "b.png",
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "decoding\n"
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert time.monotonic() - start < 10
        assert process.stderr.read().endswith("metah-search: error: interrupted\n")
