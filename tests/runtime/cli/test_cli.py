"""metah-search add and query, run as commands."""

import codecs
import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from metah_runtime import Encoder, Index, reference
from metah_runtime.cli import console
from metah_runtime.cli.main import cli
from metah_runtime.model.bundle import Bundle

MakeBundle = Callable[..., Bundle]
PROGRAM = "from metah_runtime.cli.main import main; main()"


@dataclass(frozen=True)
class Done:
    status: object
    out: str
    err: str


def search(*args: str | Path, cwd: Path | None = None) -> Done:
    """Run metah-search as its entry point does, in this process: standard streams are strict."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="") for _ in range(2))
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with redirect_stdout(out), redirect_stderr(err), chdir(cwd or "."):
            console.run(cli, "metah-search", [os.fspath(arg) for arg in args])
    except SystemExit as end:
        out.flush()
        err.flush()
        texts = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]
        return Done(end.code, *texts)
    finally:
        signal.signal(signal.SIGTERM, handler)


def good(*args: str | Path, cwd: Path | None = None) -> str:
    done = search(*args, cwd=cwd)
    assert done.status == 0, done.err
    return done.out


def fails(status: int, *args: str | Path) -> str:
    """Run a command that must fail with one line on stderr and nothing on stdout."""
    done = search(*args)
    lines = done.err.splitlines()
    assert done.status == status, lines
    assert done.out == ""
    assert len(lines) == 1, lines
    assert lines[0].startswith("metah-search: error: ")
    return lines[0]


def write_images(folder: Path, count: int, seed: int = 3) -> list[Path]:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    paths = []
    for index in range(count):
        paths.append(folder / f"{index:03d}.png")
        Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).save(paths[-1])
    return paths


@pytest.fixture
def bundle(make_bundle: MakeBundle) -> Bundle:
    return make_bundle()


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return write_images(tmp_path / "images", 23)


@pytest.fixture
def index(tmp_path: Path, bundle: Bundle, images: list[Path]) -> Path:
    path = tmp_path / "index"
    good("add", path, "--bundle", bundle.path, tmp_path / "images")
    return path


def test_add_then_query_gives_what_the_slow_reference_gives(
    tmp_path: Path, bundle: Bundle, images: list[Path]
) -> None:
    path = tmp_path / "index"
    said = json.loads(
        good("add", path, "--bundle", bundle.path, tmp_path / "images", "--json", "--batch", "5")
    )
    assert said.pop("seconds") > 0
    assert said.pop("images_per_second") > 0
    assert said == {
        "index": str(path),
        "added": 23,
        "already_there": 0,
        "changed": 0,
        "left_out": {},
        "errors": [],
        "images": 23,
        "bits": 16,
        "detail_bits": 0,
        "decoder": f"Pillow {PIL.__version__}",
        "decode": "threads",
    }
    codes = Encoder.open(bundle, threads=1).encode(images)
    queries = [images[4], images[20]]
    want = reference.search(codes[[4, 20]], codes, 7)
    got = json.loads(good("query", path, *queries, "-k", "7", "--json"))
    assert [got[name] for name in ("index", "bits", "images", "k")] == [str(path), 16, 23, 7]
    for row, (item, query) in enumerate(zip(got["queries"], queries, strict=True)):
        assert item["image"] == str(query)
        assert item["code"] == codes[(4, 20)[row]].tobytes().hex()
        assert [hit["id"] for hit in item["matches"]] == want.ids[row].tolist()
        assert [hit["distance"] for hit in item["matches"]] == want.distances[row].tolist()
        for hit in item["matches"]:
            assert hit["path"] == str(images[hit["id"]])
    ball = reference.range_search(codes[[4]], codes, 6)
    got = json.loads(good("query", path, queries[0], "--radius", "6", "--json"))
    assert got["radius"] == 6
    assert [hit["id"] for hit in got["queries"][0]["matches"]] == ball.ids.tolist()
    assert len(ball.ids) > 1


def test_a_query_by_code_needs_no_model(index: Path, bundle: Bundle, images: list[Path]) -> None:
    code = Encoder.open(bundle, threads=1).encode(images[:1])[0].tobytes().hex()
    bundle.model_path.unlink()
    got = json.loads(
        good("query", index, "--code", code, "--code", code.upper(), "-k", "1", "--json")
    )
    for item in got["queries"]:
        assert item["image"] is None
        assert item["code"] == code
        assert item["matches"] == [{"id": 0, "distance": 0, "path": str(images[0])}]


def test_the_table_is_for_people(index: Path, images: list[Path]) -> None:
    out = good("query", index, images[3])
    assert str(images[3]) in out
    assert all(word in out for word in ("rank", "distance", "id", "path"))
    assert out.count(".png") == 11  # the query and the ten nearest
    assert "no code within 0 bits" in good("query", index, "--code", "0f0f", "--radius", "0")


def test_the_gallery_shows_the_query_and_its_neighbours(
    tmp_path: Path, index: Path, images: list[Path]
) -> None:
    images[5].write_bytes(b"overwritten")
    page = tmp_path / "page.html"
    assert good("query", index, images[0], "-k", "23", "--html", page) == f"wrote {page}\n"
    text = page.read_text()
    assert text.count("<figure") == 24
    assert text.count("data:image/png;base64,") == 23
    assert "not an image of a known format" in text
    assert "23 found" in text
    assert good("query", index, "--code", "0f0f", "-k", "2", "--html", page, "--json")
    text = page.read_text()
    assert text.count("<figure") == 3
    assert "0f0f" in text


def test_add_again_takes_only_what_is_new(tmp_path: Path, index: Path, images: list[Path]) -> None:
    write_images(tmp_path / "more", 4, seed=9)
    (tmp_path / "link").symlink_to(tmp_path / "images")
    said = json.loads(
        good("add", index, "images", "more", "./images/../images", "link", "--json", cwd=tmp_path)
    )
    assert (said["added"], said["already_there"], said["images"]) == (4, 23, 27)
    assert good("add", index, tmp_path / "more") == (
        f"added 0 images to {index}, 4 were there already: 27 codes of 16 bits\n"
    )
    store = Index.open(index)
    more = [tmp_path / "more" / f"{i:03d}.png" for i in range(4)]
    assert store.paths(store.ids()) == [str(path) for path in [*images, *more]]


def test_bad_files_are_told_and_the_rest_is_added(
    tmp_path: Path, bundle: Bundle, images: list[Path]
) -> None:
    for number in range(7):
        (tmp_path / "images" / f"z{number}.png").write_bytes(b"no image")
    path, listed = tmp_path / "index", tmp_path / "errors.csv"
    done = search("add", path, "--bundle", bundle.path, "images", "--errors", listed, cwd=tmp_path)
    assert done.status == 0
    assert done.out == f"added 23 images to {path}: 23 codes of 16 bits\n"
    lines = done.err.splitlines()
    assert len(lines) == 6
    assert all(line.startswith("metah-search: warning: ") for line in lines)
    assert f"{tmp_path}/images/z0.png: not an image of a known format" in lines[0]
    assert lines[5].endswith(f"7 of 30 files could not be used; {listed} lists all")
    with listed.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "reason"]
    assert [row[0] for row in rows[1:]] == [f"{tmp_path}/images/z{i}.png" for i in range(7)]
    again = search("add", path, "images", "--errors", listed, "--json", cwd=tmp_path)
    assert again.status == 0
    said = json.loads(again.out)
    assert (said["added"], said["already_there"], len(said["errors"])) == (0, 23, 7)
    strict = search("add", path, "images", "--strict", cwd=tmp_path)
    assert strict.status == 1
    assert strict.err.splitlines()[-1] == (
        "metah-search: error: 7 of 7 files could not be used (--strict)"
    )


def test_names_that_are_no_text_survive_from_disk_to_answer(tmp_path: Path, bundle: Bundle) -> None:
    names = [b"caf\xe9.png", b"two\nlines.png", "emoji 😀.png".encode(), b"-k.png", b"<u>.png"]
    first, *_ = write_images(tmp_path / "images", 1)
    for name in names:
        (tmp_path / "images" / os.fsdecode(name)).write_bytes(first.read_bytes())
    first.unlink()
    path, page = tmp_path / "index", tmp_path / "page.html"
    good("add", path, "--bundle", bundle.path, tmp_path / "images")
    for name in names:
        image = tmp_path / "images" / os.fsdecode(name)
        got = json.loads(good("query", path, "--json", "--html", page, "--", image))
        assert os.fsencode(got["queries"][0]["image"]) == os.fsencode(image)
        found = {os.fsencode(Path(hit["path"]).name) for hit in got["queries"][0]["matches"]}
        assert found == set(names)
        assert "<u>" not in page.read_text()
    table = good("query", path, "--code", "0000")
    assert "caf\\xe9.png" in table
    assert "two\\nlines.png" in table


def test_a_bundle_that_moved_is_named_again(
    tmp_path: Path, index: Path, bundle: Bundle, images: list[Path]
) -> None:
    moved = bundle.path.rename(tmp_path / "moved")
    assert "or --bundle BUNDLE if it has moved" in fails(1, "query", index, images[0])
    assert json.loads(good("query", index, images[0], "--bundle", moved, "--json"))["images"] == 23
    fails(1, "query", index, images[0])
    good("add", index, "--bundle", moved, tmp_path / "images")
    good("query", index, images[0])


def test_a_model_of_another_fingerprint_is_refused(
    tmp_path: Path, index: Path, make_bundle: MakeBundle, images: list[Path]
) -> None:
    other = make_bundle("other", seed=1)
    write_images(tmp_path / "more", 2)
    for command in (["query", index, images[0]], ["add", index, tmp_path / "more"]):
        said = fails(1, *command, "--bundle", other.path)
        assert f"bundle {other.path} is model {other.fingerprint[:12]}" in said
        assert "their codes cannot be compared; fix: " in said
    assert len(Index.open(index)) == 23


def test_a_changed_byte_in_the_bundle_is_refused_and_nothing_is_written(
    tmp_path: Path, bundle: Bundle, images: list[Path]
) -> None:
    data = bytearray(bundle.model_path.read_bytes())
    data[100] ^= 4
    bundle.model_path.write_bytes(data)
    said = fails(1, "add", tmp_path / "index", "--bundle", bundle.path, tmp_path / "images")
    assert "model.onnx is damaged: its SHA-256 is not the manifest's" in said
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--nope"], 2, "No such option '--nope'"),
        (["-k", "0"], 2, "k must be a whole number >= 1, got 0"),
        (["-k", "-3"], 2, "k must be a whole number >= 1, got -3"),
        (["-k", "ten"], 2, "'ten' is not a valid integer"),
        (["--radius", "-1"], 2, "radius must be a whole number >= 0, got -1"),
        (["-k", "3", "--radius", "2"], 2, "give -k or --radius, not both"),
        (["--code", "0f"], 2, "--code must be 4 hex digits"),
        (["--code", "0g0g"], 2, "--code must be 4 hex digits"),
        (["--device", "gpu"], 2, "device must be one of cpu"),
        (["--threads", "0"], 2, "threads must be a whole number in 1..1024, got 0"),
        (["--bundle", "none.bundle"], 1, "bundle none.bundle does not exist"),
        (["--html", "nowhere/page.html"], 2, "folder nowhere does not exist"),
    ],
)
def test_query_refuses(
    index: Path, images: list[Path], arguments: list[str], status: int, message: str
) -> None:
    assert message in fails(status, "query", index, images[0], *arguments)


def test_query_refuses_without_index_images_or_reason(
    tmp_path: Path, index: Path, images: list[Path]
) -> None:
    assert "no index at" in fails(1, "query", tmp_path / "none", images[0])
    assert "no index at" in fails(1, "query", tmp_path / "images", images[0])
    assert "nothing to search for; fix: name images or give --code" in fails(2, "query", index)
    assert "Missing argument 'INDEX'" in fails(2, "query")
    images[0].write_bytes(images[0].read_bytes()[:70])
    assert "000.png: " in fails(1, "query", index, images[0])
    assert "gone.png: no such file" in fails(1, "query", index, tmp_path / "gone.png")


def test_one_bad_image_of_several_costs_that_one(
    tmp_path: Path, index: Path, images: list[Path]
) -> None:
    images[0].write_bytes(images[0].read_bytes()[:70])
    gone = tmp_path / "gone.png"
    asked = [images[1], images[0], gone, images[2]]
    page = tmp_path / "page.html"
    done = search("query", index, *asked, "-k", "2", "--json")
    assert done.status == 1
    found = json.loads(done.out)
    assert [item["image"] for item in found["queries"]] == [str(images[1]), str(images[2])]
    assert [item["image"] for item in found["errors"]] == [str(images[0]), str(gone)]
    alone = json.loads(good("query", index, images[1], images[2], "-k", "2", "--json"))
    assert alone["queries"] == found["queries"]
    assert done.err.splitlines()[-1].endswith("error: 2 of 4 images could not be used")
    assert search("query", index, *asked, "--html", page).status == 1
    assert page.exists()
    page.unlink()
    assert "000.png: " in fails(1, "query", index, *asked, "--html", page, "--strict")
    assert not page.exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--nope"], 2, "No such option '--nope'"),
        (["--batch", "0"], 2, "batch must be a whole number >= 1, got 0"),
        (["--workers", "0"], 2, "workers must be a whole number >= 1, got 0"),
        (["--threads", "-1"], 2, "threads must be a whole number in 1..1024, got -1"),
        (["--bundle", "none.bundle"], 1, "bundle none.bundle does not exist"),
        (["--errors", "nowhere/errors.csv"], 2, "folder nowhere does not exist"),
        (["missing"], 1, "missing: no such file or folder"),
    ],
)
def test_add_refuses_and_leaves_nothing(
    tmp_path: Path,
    bundle: Bundle,
    images: list[Path],
    arguments: list[str],
    status: int,
    message: str,
) -> None:
    path = tmp_path / "index"
    given = ["add", path, "--bundle", bundle.path, tmp_path / "images", *arguments]
    assert message in fails(status, *given)
    assert not path.exists()


def test_add_takes_paths_from_a_list(tmp_path: Path, bundle: Bundle, images: list[Path]) -> None:
    index = tmp_path / "index"
    chosen = [images[7], images[2], images[19]]
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"images/{path.name}\n" for path in chosen))
    good("add", index, "--bundle", bundle.path, "--list", listed)
    store = Index.open(index)
    assert store.paths(store.ids()) == [str(path) for path in chosen]
    good("add", index, images[0], "--list", listed, cwd="/")
    assert len(Index.open(index)) == 4
    assert "missing.txt: No such file" in fails(2, "add", index, "--list", tmp_path / "missing.txt")
    listed.write_text("images/none.png\n")
    done = search("add", index, "--list", listed)
    assert done.status == 1
    assert "none.png: no such file or folder" in done.err
    listed.write_text(f"images/none.png\nimages/{images[11].name}\n")
    assert "added 1 images" in good("add", index, "--list", listed)
    assert search("add", index, "--list", listed, "--strict").status == 1


@pytest.mark.parametrize("text", ["bom", "crlf", "bom-crlf", "utf-16", "utf-16-be"])
def test_lists_as_other_programs_write_them(
    tmp_path: Path, bundle: Bundle, images: list[Path], text: str
) -> None:
    names = "".join(f"images/{path.name}\n" for path in images[:3])
    if "crlf" in text:
        names = names.replace("\n", "\r\n")
    data = names.encode("utf-16" if text == "utf-16" else "utf-8")
    if text == "utf-16-be":
        data = codecs.BOM_UTF16_BE + names.encode("utf-16-be")
    if text.startswith("bom"):
        data = codecs.BOM_UTF8 + data
    (tmp_path / "list.txt").write_bytes(data)
    good("add", tmp_path / "i", "--bundle", bundle.path, "--list", tmp_path / "list.txt")
    assert len(Index.open(tmp_path / "i")) == 3


def test_a_changed_file_gets_its_new_code_under_its_id(
    tmp_path: Path, bundle: Bundle, images: list[Path]
) -> None:
    index, folder = tmp_path / "index", tmp_path / "images"
    good("add", index, "--bundle", bundle.path, folder)
    before = Index.open(index)
    pixels = 255 - np.asarray(Image.open(images[4]))
    Image.fromarray(pixels).save(images[4])
    said = good("add", index, folder)
    assert "23 were there already, 1 of them changed and were encoded again" in said
    after = Index.open(index)
    assert after.ids().tolist() == before.ids().tolist()
    found = json.loads(good("query", index, images[4], "-k", "1", "--json"))["queries"][0]
    assert found["matches"][0]["distance"] == 0
    other = (after.codes(after.ids()) != before.codes(before.ids())).any(axis=1)
    assert other.sum() == 1
    os.utime(images[5])  # the same pixels under a new time are no change
    assert "of them changed" not in good("add", index, folder)
    Image.fromarray(255 - pixels).save(images[4])
    assert "1 of them changed" in good("add", index, folder)
    images[4].write_bytes(b"no image")
    assert search("add", index, folder).status == 0
    assert (Index.open(index).codes([4]) == before.codes([4])).all()


def test_what_a_folder_leaves_out_is_said(
    tmp_path: Path, bundle: Bundle, images: list[Path]
) -> None:
    folder, errors = tmp_path / "images", tmp_path / "errors.csv"
    (folder / "album").symlink_to(tmp_path)
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "picture.psd").write_bytes(b"x")
    (folder / "notes.txt").write_bytes(b"x")
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / "Thumbs.db").write_bytes(b"x")
    done = search("add", tmp_path / "i", "--bundle", bundle.path, folder, "--errors", errors)
    assert done.status == 0
    for part in ("1 links to folders", "1 dangling links", "1 .psd", "1 .txt", "1 hidden names"):
        assert part in done.err, done.err
    rows = errors.read_text()
    assert all(name in rows for name in ("album", "gone.png", "picture.psd"))
    assert "notes.txt" not in rows
    assert search("add", tmp_path / "i", folder, "--strict").status == 1


def test_a_bundle_that_only_the_index_names_is_not_run(
    tmp_path: Path, bundle: Bundle, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "foreign"
    facts = {"bits": bundle.bits, "fingerprint": bundle.fingerprint}
    index = Index.create(path, **facts, metadata={"bundle": str(bundle.path)})
    index.add(np.zeros((3, bundle.bits // 8), np.uint8))
    good("query", path, images[0])  # index and bundle belong to this user
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 12345)
        for command in ("query", "add"):
            assert "names a bundle" in fails(2, command, path, images[0])
        good("query", path, images[0], "--bundle", bundle.path)


def test_add_refuses_what_holds_no_image(
    tmp_path: Path, bundle: Bundle, images: list[Path]
) -> None:
    path = tmp_path / "index"
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_bytes(b"no image")
    assert "fix: --bundle BUNDLE to create it" in fails(2, "add", path, tmp_path / "images")
    assert "no image in" in fails(1, "add", path, "--bundle", bundle.path, tmp_path / "empty")
    done = search("add", path, "--bundle", bundle.path, tmp_path / "bad.png")
    assert done.status == 1
    assert done.err.splitlines()[-1] == (
        f"metah-search: error: none of the 1 files could be used: {path} is unchanged"
    )
    assert "nothing to add; fix: name files or folders" in fails(2, "add", path)
    assert not path.exists()


def test_a_typo_is_answered_with_the_command_that_was_meant() -> None:
    assert "No such command 'qeury'. Did you mean 'query'?" in fails(2, "qeury")


def test_the_program_itself(tmp_path: Path, bundle: Bundle, images: list[Path]) -> None:
    def run(*args: str | Path) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-c", PROGRAM, *(os.fspath(arg) for arg in args)]
        return subprocess.run(command, capture_output=True, timeout=120)

    path = tmp_path / "index"
    done = run("add", path, "--bundle", bundle.path, tmp_path / "images")
    assert (done.returncode, done.stderr) == (0, b"")
    done = run("query", path, images[7], "-k", "1", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["queries"][0]["matches"][0]["path"] == str(images[7])
    images[7].unlink()
    done = run("query", path, images[7])
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == f"metah-search: error: {images[7]}: no such file\n"
