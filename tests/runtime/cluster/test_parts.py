"""An encoding job's parts: durable, by file id, none twice, none lost. No Ray."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metah_runtime.cluster.encoding import PartEncoder, WorkerOptions
from metah_runtime.cluster.parts import (
    FileListing,
    Job,
    done_ids,
    file_id,
    finish,
    open_job,
    write_part,
)
from metah_runtime.errors import ClusterError, ConfigError, DataError, IndexMismatch
from metah_runtime.interop import parquet_file
from metah_runtime.model.bundle import Bundle
from metah_runtime.model.encoder import BadImage, Encoder

pytest.importorskip("pyarrow")

JOB = Job(fingerprint="f" * 64, model="toy", bits=16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    open_job(tmp_path / "job", JOB)
    return tmp_path / "job"


def listing(*names: str) -> FileListing:
    return FileListing.of([f"/photos/{name}.png" for name in names])


def codes(*values: int) -> np.ndarray:
    return np.array([[v, 255 - v] for v in values], np.uint8).reshape(-1, 2)


def test_ids_are_golden() -> None:
    assert file_id("/photos/a.png") == 4007832928629892914
    assert file_id("/photos/\udcff.png") != file_id("/photos/a.png")
    with pytest.raises(DataError, match=r"/a and /a have the same id; fix: list each once"):
        FileListing.of(["/b", "/a", "/a"])


def test_parts_in_any_order_give_the_order_of_the_listing(folder: Path) -> None:
    whole = listing("a", "b", "c", "d", "e")
    write_part(folder, listing("d", "b"), codes(4, 2), [])
    bad = [BadImage("/photos/e.png", "no picture")]
    write_part(folder, listing("e", "a"), codes(1), bad)
    assert done_ids(folder).tolist() == sorted(listing("a", "b", "d", "e").ids.tolist())
    assert whole.without(done_ids(folder)).paths == ("/photos/c.png",)
    with pytest.raises(ClusterError, match=r"1 of 5 files are not done yet, .*/photos/c\.png"):
        finish(folder, whole, JOB)
    assert not (folder / "codes.parquet").exists()
    write_part(folder, listing("c"), codes(3), [])
    assert finish(folder, whole, JOB) == (4, bad)
    rows = parquet_file.read(folder / "codes.parquet")
    assert (rows.code_format.bits, rows.fingerprint, rows.model) == (16, "f" * 64, "toy")
    (batch,) = rows.batches()
    assert batch[0].tolist() == codes(1, 2, 3, 4).tolist()
    assert batch[1] is None
    assert batch[2] == [f"/photos/{n}.png".encode() for n in "abcd"]


def test_what_is_done_twice_is_there_once(folder: Path) -> None:
    some = listing("a", "b")
    assert write_part(folder, some, codes(1, 2), []) == write_part(folder, some, codes(1, 2), [])
    write_part(folder, listing("b", "c"), codes(2, 3), [])  # a batch cut otherwise
    assert finish(folder, listing("a", "b", "c"), JOB) == (3, [])
    (batch,) = parquet_file.read(folder / "codes.parquet").batches()
    assert batch[0].tolist() == codes(1, 2, 3).tolist()


def test_a_part_that_is_being_written_does_not_count(folder: Path) -> None:
    name = write_part(folder, listing("a"), codes(1), [])
    (folder / "parts" / name).rename(folder / "parts" / f".{name}.0123456789ab.tmp")
    assert not len(done_ids(folder))


def test_a_damaged_part_is_named(folder: Path) -> None:
    name = write_part(folder, listing("a"), codes(1), [])
    (folder / "parts" / name).write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match=f"{name} is damaged .*fix: remove it"):
        done_ids(folder)


def test_only_bad_files(folder: Path) -> None:
    bad = [BadImage("/photos/a.png", "empty file")]
    write_part(folder, listing("a"), codes(), bad)
    assert finish(folder, listing("a"), JOB) == (0, bad)
    assert list(parquet_file.read(folder / "codes.parquet").batches()) == []


def test_a_folder_is_of_one_model(folder: Path, tmp_path: Path) -> None:
    open_job(folder, Job(fingerprint="f" * 64, model="the same under another name", bits=16))
    with pytest.raises(ConfigError, match=r"holds codes of model f{12} \(16 bits\), the bundle is"):
        open_job(folder, Job(fingerprint="e" * 64, model="toy", bits=16))
    (folder / "job.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"job\.json is not of a job"):
        open_job(folder, JOB)
    write_part(folder, listing("a"), codes(1), [])
    (folder / "job.json").unlink()
    with pytest.raises(ConfigError, match=r"has parts but no job\.json"):
        open_job(folder, JOB)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot use .*/file for a job"):
        open_job(tmp_path / "file", JOB)


def test_a_worker_gives_the_codes_of_the_encoder(
    tmp_path: Path, make_bundle: Callable[..., Bundle]
) -> None:
    pytest.importorskip("onnxruntime")
    bundle = make_bundle()
    rng = np.random.default_rng(0)
    paths = [str(tmp_path / f"{i}.png") for i in range(5)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)
    Path(paths[2]).write_bytes(b"no picture")
    job = Job(fingerprint=bundle.fingerprint, model="toy", bits=16)
    open_job(tmp_path / "job", job)
    whole = FileListing.of(paths)
    worker = PartEncoder(str(bundle.path), str(tmp_path / "job"), job, 2, 1)
    assert [worker.encode(some)[1] for some in whole.chunks(3)] == [1, 0]
    count, bad = finish(tmp_path / "job", whole, job)
    assert (count, [item.path for item in bad]) == (4, [paths[2]])
    assert "not an image of a known format" in bad[0].reason
    (batch,) = parquet_file.read(tmp_path / "job" / "codes.parquet").batches()
    due = Encoder.open(bundle.path).encode([p for p in paths if p != paths[2]])
    assert batch[0].tobytes() == due.tobytes()
    other = Job(fingerprint="0" * 64, model="toy", bits=16)
    with pytest.raises(IndexMismatch, match="on this node, the job is of 000000000000"):
        PartEncoder(str(bundle.path), str(tmp_path / "job"), other, 2, 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "count must be a whole number >= 1, got 0"),
        ({"part": 0}, "part must be a whole number >= 1, got 0"),
        ({"cpus": 0}, r"threads must be a whole number in 1\.\."),
        ({"batch": 0}, "batch must be a whole number >= 1"),
    ],
)
def test_workers_refuse(values: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WorkerOptions(**values)  # type: ignore[arg-type]
