"""The results of an encoding job on disk: durable parts, so that a killed job can continue.

A job is a folder: ``job.json`` (model), ``parts/`` (one Parquet file for each batch,
renamed to its final name when it is complete and durable), and at the end ``codes.parquet``, for
`metah-search import`. The parts are the only record of what is done.
"""

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from metah_runtime import files, schema
from metah_runtime.codes import CodeFormat, Codes
from metah_runtime.errors import ClusterError, ConfigError, DataError, require
from metah_runtime.interop import parquet_file
from metah_runtime.interop.rows import STEP, CodeBatch, CodeRows
from metah_runtime.model.encoder import BadImage

JOB: Final = "job.json"
PARTS: Final = "parts"
CODES: Final = "codes.parquet"
_LIMIT: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The model of a job: fingerprint, name, and what a row of its codes holds."""

    fingerprint: str
    model: str
    bits: int
    detail_bits: int = 0
    code_weight: int = 1

    @property
    def code_format(self) -> CodeFormat:
        """What a row of codes holds."""
        return CodeFormat(
            bits=self.bits, detail_bits=self.detail_bits, code_weight=self.code_weight
        )


@dataclass(frozen=True, slots=True)
class FileListing:
    """The files of a job, in order. paths: n names; ids: (n,) int64, hashes of the names."""

    paths: tuple[str, ...]
    ids: NDArray[np.int64]

    @classmethod
    def of(cls, paths: Sequence[str]) -> "FileListing":
        """Return the listing of some paths; raise DataError if two paths have the same id."""
        ids = np.fromiter((file_id(path) for path in paths), np.int64, len(paths))
        order = np.argsort(ids, kind="stable")
        twice = np.flatnonzero(ids[order][1:] == ids[order][:-1])
        if len(twice):
            one, other = (paths[order[twice[0] + step]] for step in (0, 1))
            raise DataError(f"{one} and {other} have the same id; fix: list each once, or rename")
        return cls(tuple(paths), ids)

    def __len__(self) -> int:
        return len(self.paths)

    def without(self, done: NDArray[np.int64]) -> "FileListing":
        """Return the files whose ids are not in ``done``, in order."""
        rows = np.flatnonzero(~np.isin(self.ids, done))
        return FileListing(tuple(self.paths[row] for row in rows), self.ids[rows])

    def chunks(self, size: int) -> Iterator["FileListing"]:
        """Yield listings of at most ``size`` files."""
        for start in range(0, len(self), size):
            stop = start + size
            yield FileListing(self.paths[start:stop], self.ids[start:stop])


def file_id(path: str) -> int:
    """Return 63 bits of the BLAKE2b hash of a path: the same in every run."""
    digest = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def open_job(folder: Path, job: Job) -> None:
    """Create a job's folder or accept one of the same model; else raise ConfigError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PARTS).mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot use {folder} for a job: {error.strerror}") from None
    try:
        text = files.read_regular(folder / JOB, _LIMIT)
    except FileNotFoundError:
        if any((folder / PARTS).iterdir()):
            raise ConfigError(f"{folder} has parts but no {JOB}; fix: another folder") from None
        files.write_json(folder / JOB, asdict(job))
        return
    except OSError as error:
        raise ConfigError(f"cannot read {folder / JOB}: {error.strerror}") from None
    try:
        value = schema.parse_json(text)
        if isinstance(value, dict):  # of an earlier version, without the keys of detail codes
            value = {"detail_bits": 0, "code_weight": 1, **value}
        known = schema.from_json(Job, value)
    except ValueError as error:
        raise ConfigError(f"{folder / JOB} is not of a job: {error}; fix: another folder") from None
    if (known.fingerprint, known.code_format) != (job.fingerprint, job.code_format):
        raise ConfigError(
            f"{folder} holds codes of model {known.fingerprint[:12]} ({known.code_format}), the "
            f"bundle is model {job.fingerprint[:12]} ({job.code_format}); fix: another folder"
        )


def write_part(folder: Path, listing: FileListing, codes: Codes, bad: Sequence[BadImage]) -> str:
    """Write codes and errors of the files of ``listing`` durably; return the part's name.

    codes: (n, width), of the files that are not in ``bad``, in order. The same files give the
    same name, so a batch that is encoded twice is stored once.
    """
    arrow = _arrow()
    reasons = {item.path: item.reason for item in bad}
    rows = iter(codes)
    values = [None if path in reasons else bytes(next(rows)) for path in listing.paths]
    width = codes.shape[1]
    table = arrow.table(
        {
            "id": arrow.array(listing.ids),
            "path": arrow.array([os.fsencode(path) for path in listing.paths], arrow.binary()),
            "code": arrow.array(values, arrow.binary(width)),
            "error": arrow.array([reasons.get(path) for path in listing.paths], arrow.string()),
        }
    )
    data = io.BytesIO()
    arrow.parquet.write_table(table, data)
    name = f"{hashlib.sha256(listing.ids.tobytes()).hexdigest()[:32]}.parquet"
    files.write_bytes(folder / PARTS / name, data.getvalue())
    return name


def done_ids(folder: Path) -> NDArray[np.int64]:
    """Return the ids of all files in complete parts, ascending."""
    found = [_read(path, ["id"]).column("id").to_numpy() for path in _parts(folder)]
    return np.unique(np.concatenate([np.empty(0, np.int64), *found]))


def finish(folder: Path, listing: FileListing, job: Job) -> tuple[int, list[BadImage]]:
    """Write codes.parquet in the order of the listing: every file exactly once.

    Returns (number of codes, bad files). Raises ClusterError if a file of the listing is in no
    part, DataError for a damaged part.
    """
    order = np.argsort(listing.ids)
    ascending = listing.ids[order]
    codes = np.zeros((len(listing), job.code_format.width), np.uint8)
    seen = np.zeros(len(listing), np.bool_)
    reasons: dict[int, str] = {}
    for path in _parts(folder):
        table = _read(path, ["id", "code", "error"])
        ids = table.column("id").to_numpy()
        at = np.minimum(np.searchsorted(ascending, ids), max(len(listing) - 1, 0))
        mine = ascending[at] == ids if len(listing) else np.zeros(len(ids), np.bool_)
        values, errors = table.column("code").to_pylist(), table.column("error").to_pylist()
        for row in np.flatnonzero(mine).tolist():
            place = int(order[at[row]])
            seen[place] = True
            if values[row] is None:
                reasons[place] = errors[row] or "no reason given"
            else:
                codes[place] = np.frombuffer(values[row], np.uint8)
                reasons.pop(place, None)
    lost = np.flatnonzero(~seen)
    if len(lost):
        raise ClusterError(
            f"{len(lost)} of {len(listing)} files are not done yet, the first "
            f"{listing.paths[lost[0]]}; fix: start the same command again"
        )
    good = [row for row in range(len(listing)) if row not in reasons]
    bad = [BadImage(listing.paths[row], reasons[row]) for row in sorted(reasons)]

    def batches() -> Iterator[CodeBatch]:
        for start in range(0, len(good), STEP):
            rows = good[start : start + STEP]
            names: list[bytes | None] = [os.fsencode(listing.paths[row]) for row in rows]
            yield codes[rows], None, names

    rows = CodeRows(job.code_format, batches, job.fingerprint, job.model)
    parquet_file.write_rows(folder / CODES, rows, ids=False)
    return len(good), bad


def _parts(folder: Path) -> list[Path]:
    return sorted((folder / PARTS).glob("[0-9a-f]*.parquet"))


def _read(path: Path, columns: list[str]) -> Any:
    arrow = _arrow()
    try:
        return arrow.parquet.read_table(path, columns=columns)
    except (arrow.ArrowException, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path} is damaged ({reason}); fix: remove it, and its files are encoded again"
        ) from None


def _arrow() -> Any:
    require("pyarrow")
    import pyarrow
    import pyarrow.parquet

    return pyarrow
