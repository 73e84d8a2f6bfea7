"""Pictures of indexed images: by id alone, from below one folder, behind no link."""

import asyncio
import errno
import http.client
import io
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metah_runtime import Index
from metah_runtime.errors import ImageError
from metah_runtime.html.gallery import encoded_thumbnail
from metah_runtime.serve.thumbnails import Thumbnails, open_below

from .conftest import BITS, Running, World, running

CANARY = b"the content of a file that nobody may read"
MAX_BODY = 20_000


def read(handle: int) -> bytes:
    with os.fdopen(handle, "rb") as file:
        return file.read()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "inner").mkdir(parents=True)
    (root / "inner" / "a.txt").write_bytes(b"inside")
    (tmp_path / "canary.txt").write_bytes(CANARY)
    (root / "link.txt").symlink_to(tmp_path / "canary.txt")
    (root / "link to inside.txt").symlink_to("inner/a.txt")
    (root / "out").symlink_to(tmp_path)
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    return root


def test_files_below_the_root_are_opened(root: Path) -> None:
    for name in ("inner/a.txt", f"{root}/inner/a.txt", "./inner//a.txt"):
        assert read(open_below(root, name)) == b"inside"


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("link.txt", "behind a link"),
        ("link to inside.txt", "behind a link"),
        ("out/canary.txt", "behind a link"),
        ("loop/x", "behind a link"),
        ("loop", "behind a link"),
        ("pipe", "not a regular file"),
        ("inner", "not a regular file"),
        ("inner/a.txt/x", "behind a link"),
        ("none.txt", "cannot be opened"),
        ("x" * 300, "cannot be opened"),
        ("../canary.txt", "not below the folder"),
        ("inner/../../canary.txt", "not below the folder"),
        ("/etc/passwd", "not below the folder"),
        ("", "not below the folder"),
        ("a\0b", "not below the folder"),
    ],
)
def test_nothing_else_is_opened(root: Path, name: str, error: str) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(ImageError, match=error) as refused:
        open_below(root, name)
    assert str(root) not in str(refused.value)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_pictures_are_kept_until_the_file_changes(tmp_path: Path) -> None:
    made: list[bytes] = []

    async def make(data: bytes, size: int) -> tuple[str, bytes]:
        made.append(data)
        return "image/png", data * 2 + bytes([size])

    async def main() -> None:
        thumbnails = Thumbnails(tmp_path, limit=100, make=make, cache=50)
        for name in "abcd":
            (tmp_path / name).write_bytes(name.encode() * 10)
        assert await thumbnails.get("a", 16) == ("image/png", b"a" * 20 + b"\x10")
        assert await thumbnails.get("a", 16) == ("image/png", b"a" * 20 + b"\x10")
        assert len(made) == 1
        await thumbnails.get("a", 17)
        await thumbnails.get("b", 16)  # 63 bytes by now: the oldest picture goes
        await thumbnails.get("a", 17)
        assert len(made) == 3
        await thumbnails.get("a", 16)
        assert len(made) == 4
        (tmp_path / "a").write_bytes(b"new")
        assert (await thumbnails.get("a", 16))[1] == b"newnew\x10"
        (tmp_path / "big").write_bytes(bytes(101))
        with pytest.raises(ImageError, match="larger than 100 bytes"):
            await thumbnails.get("big", 16)

    asyncio.run(main())


def test_a_folder_that_is_gone_or_fails_is_an_image_error(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for gone in (tmp_path / "none", tmp_path / "canary.txt"):
        with pytest.raises(ImageError, match="its file cannot be opened"):
            open_below(gone, "a.png")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error", str(root))

    thumbnails = Thumbnails(root, limit=100, make=never)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", fail)
        with pytest.raises(ImageError, match=r"^its file cannot be read$"):
            asyncio.run(thumbnails.get("inner/a.txt", 16))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fail)
        with pytest.raises(ImageError, match=r"^its file cannot be (opened|read)$"):
            asyncio.run(thumbnails.get("inner/a.txt", 16))
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


async def never(data: bytes, size: int) -> tuple[str, bytes]:
    raise AssertionError


def test_a_folder_that_goes_away_is_404_and_its_path_is_not_logged(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "images"
    shutil.copytree(world.images, images)
    with running(world.service(images=images, base=world.images)) as server:
        assert server.get("/v1/images/3/thumbnail").status == 200
        images.rename(tmp_path / "elsewhere")
        caplog.clear()
        answer = server.get("/v1/images/4/thumbnail")
        assert (answer.status, answer.json["error"]) == (404, "its file cannot be opened")
        server.settle()
        (tmp_path / "elsewhere").rename(images)
        assert server.get("/v1/images/4/thumbnail").status == 200
    assert str(tmp_path) not in caplog.text
    assert "Traceback" not in caplog.text


def test_files_are_counted_and_read_when_their_turn_comes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 50)
    counted: list[int] = []
    turn = asyncio.Event()

    async def make(data: bytes, size: int) -> tuple[str, bytes]:
        return "image/png", data

    async def wait(work: Callable[[], Awaitable[tuple[str, bytes]]]) -> tuple[str, bytes]:
        await turn.wait()
        return await work()

    def count(size: int) -> None:
        counted.append(size)
        if len(counted) > 1:
            raise ZeroDivisionError

    async def main() -> None:
        thumbnails = Thumbnails(tmp_path, limit=100, make=make)
        first = asyncio.create_task(thumbnails.get("a", 16, turn=wait, count=count))
        await asyncio.sleep(0.1)
        assert counted == []
        (tmp_path / "a").write_bytes(b"y" * 90)  # no more is read than was counted
        turn.set()
        assert await first == ("image/png", b"y" * 50)
        assert counted == [50]
        with pytest.raises(ZeroDivisionError):
            await thumbnails.get("a", 17, turn=wait, count=count)

    asyncio.run(main())


def test_pictures_in_memory_are_bounded(world: World, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(world.images, images)
    for file in images.rglob("*.png"):
        file.write_bytes(file.read_bytes() + bytes(100_000))
    service = world.service(images=images, base=world.images, max_body=110_000, timeout=20.0)
    most: list[int] = []

    async def slow(data: bytes, size: int) -> tuple[str, bytes]:
        most.append(service.budget.used)
        await asyncio.sleep(0.05)
        return "image/png", b"small"

    assert service.thumbnails
    service.thumbnails._make = slow
    with running(service) as server, ThreadPoolExecutor(20) as pool:
        paths = [f"/v1/images/{number}/thumbnail" for number in range(20)]
        assert {answer.status for answer in pool.map(server.get, paths)} == {200}
        server.settle()
        assert service.budget.used == 0
    assert len(most) == 20
    assert max(most) <= 2 * 110_000  # of one decoder: one at work, one that just ended


def test_a_base_maps_stored_paths_to_the_folder(root: Path, tmp_path: Path) -> None:
    base = Path("/old/photos")
    assert read(open_below(root, "/old/photos/inner/a.txt", base)) == b"inside"
    assert read(open_below(root, f"{root}/inner/a.txt", base)) == b"inside"
    for path in ("/old/photos/../canary.txt", "/old/photos/out/canary.txt", "/old/photos2/x"):
        with pytest.raises(ImageError):
            open_below(root, path, base)


NAMES = [
    b"<img src=x onerror=alert(1)>.png",
    b"line\nbreak.png",
    b"\xff\xfe.png",
    b"'\"&.png",
    "🙂.png".encode(),
    b"-rf.png",
    b"x" * 250 + b".png",
]


@pytest.fixture(scope="module")
def hostile(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """An index whose paths are hostile: ids 0.. are NAMES, then what must not be served."""
    folder = tmp_path_factory.mktemp("hostile")
    root = folder / "root"
    root.mkdir()
    picture = io.BytesIO()
    Image.fromarray(np.full((90, 120, 3), 200, np.uint8)).save(picture, "PNG")
    for name in NAMES:
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(picture.getvalue())
    (folder / "outside.png").write_bytes(picture.getvalue())
    (root / "link.png").symlink_to(folder / "outside.png")
    (root / "text.png").write_bytes(CANARY)
    (root / "big.png").write_bytes(picture.getvalue() + bytes(MAX_BODY))
    bad = ["../outside.png", str(folder / "outside.png"), "link.png", "text.png", "big.png", "none"]
    paths = [os.fsdecode(os.fsencode(root) + b"/" + name) for name in NAMES]
    store = Index.create(folder / "index", bits=BITS, fingerprint=world.bundle.fingerprint)
    codes = np.zeros((len(paths) + len(bad) + 1, BITS // 8), np.uint8)
    store.add(codes, paths=[*paths, *bad, None])
    with running(world.service(folder / "index", images=root, max_body=MAX_BODY)) as server:
        yield server


def test_hostile_names_are_shown_as_text_and_served_by_id(hostile: Running) -> None:
    found = hostile.search({"code": "0000"}, "?k=100")
    names = [item["name"] for item in found.json["neighbours"]]
    assert names[:7] == [
        "<img src=x onerror=alert(1)>.png",
        r"line\nbreak.png",
        r"\xff\xfe.png",
        "'\"&.png",
        "🙂.png",
        "-rf.png",
        "x" * 250 + ".png",
    ]
    assert all(name.isprintable() or not name for name in names)
    for number in range(len(NAMES)):
        answer = hostile.get(f"/v1/images/{number}/thumbnail?size=80")
        assert answer.status == 200
        assert answer.headers["content-type"] == "image/jpeg"
        assert answer.headers["cache-control"] == "private, max-age=300"
        with Image.open(io.BytesIO(answer.body)) as image:
            assert image.size == (80, 60)


@pytest.mark.parametrize(
    ("number", "error"),
    list(
        enumerate(
            [
                "not below the folder",
                "not below the folder",
                "behind a link",
                "not an image",
                "larger than 20,000 bytes",
                "cannot be opened",
                "names no file",
                "is not in the index",
            ],
            start=len(NAMES),
        )
    ),
)
def test_what_must_not_be_served_is_not(hostile: Running, number: int, error: str) -> None:
    answer = hostile.get(f"/v1/images/{number}/thumbnail")
    assert answer.status == 404
    assert error in answer.json["error"]
    assert CANARY not in answer.body
    assert b"root" not in answer.body


@pytest.mark.parametrize(
    "path",
    ["-1", "x", "0x1", "1.5", str(2**63), "..%2f..%2fcanary.txt", "%00", "0/../1", "0?size=15"],
)
def test_only_ids_name_images(hostile: Running, path: str) -> None:
    where, _, query = path.partition("?")
    answer = hostile.get(f"/v1/images/{where}/thumbnail?{query}")
    assert answer.status in (404, 422)
    assert set(answer.json) == {"error", "rule", "fix"}


def test_the_picture_is_the_gallerys(served: Running, world: World) -> None:
    answer = served.get("/v1/images/3/thumbnail")
    assert answer.body == encoded_thumbnail(world.files[3])[1]
    assert answer.headers["content-type"] == "image/png"


def test_without_a_folder_there_are_no_pictures(world: World) -> None:
    with running(world.service()) as server:
        answer = server.get("/v1/images/0/thumbnail")
        assert (answer.status, answer.json["fix"]) == (404, "start it with --images FOLDER")
        assert server.get("/v1/index").json["thumbnails"] is False
        found = server.search({"id": 0}, "?k=1").json["neighbours"][0]
        assert "/" not in found["name"]


def test_a_crowd_of_pictures_is_made_once_each(hostile: Running) -> None:
    link = http.client.HTTPConnection("127.0.0.1", hostile.port, timeout=30)
    for _ in range(20):
        link.request("GET", "/v1/images/0/thumbnail?size=99")
        answer = link.getresponse()
        assert answer.status == 200
        answer.read()
    link.close()
