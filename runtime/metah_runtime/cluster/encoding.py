"""Encodes files on all nodes of a Ray cluster with Ray Data; parts store the results."""

import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metah_runtime.checks import check_batch, check_threads
from metah_runtime.cluster.parts import FileListing, Job, done_ids, write_part
from metah_runtime.errors import ClusterError, ConfigError, IndexMismatch
from metah_runtime.model.encoder import BadImage, Encoder

PART = 1024
"""Files of a part: a killed job loses at most one part of each worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """Processes of an encoding job. count: processes, default as many as the free CPUs allow.

    cpus: of each, for decoding and the model; batch: images of a model run; part: files of a
    part.
    """

    count: int | None = None
    cpus: int = 1
    batch: int = 64
    part: int = PART

    def __post_init__(self) -> None:
        check_threads(self.cpus)
        check_batch(self.batch)
        for name in ("count", "part"):
            value = getattr(self, name)
            if value is None and name == "count":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a whole number >= 1, got {value!r}")


class PartEncoder:
    """Runs on a worker: encodes the files of one part and writes the part."""

    def __init__(self, bundle: str, folder: str, job: Job, batch: int, cpus: int) -> None:
        self._encoder = Encoder.open(bundle, threads=cpus)
        if self._encoder.fingerprint != job.fingerprint:
            raise IndexMismatch(
                f"{bundle} is model {self._encoder.fingerprint[:12]} on this node, the job is of "
                f"{job.fingerprint[:12]}; fix: the same bundle on every node"
            )
        self._folder, self._batch, self._cpus = Path(folder), batch, cpus

    def encode(self, listing: FileListing) -> tuple[str, int]:
        """Encode files, write their part durably and return (its name, bad files)."""
        codes, bad = [], list[BadImage]()
        done = self._encoder.encode_files(listing.paths, batch=self._batch, workers=self._cpus)
        for some in done:
            codes.append(some.codes)
            bad += some.errors
        return write_part(self._folder, listing, np.concatenate(codes), bad), len(bad)

    def __call__(self, table: Any) -> dict[str, Any]:
        """Encode a table of ids and paths from Ray Data; return the part's name and its counts."""
        paths = tuple(os.fsdecode(path) for path in table.column("path").to_pylist())
        ids = np.array(table.column("id").to_numpy(), np.int64)
        name, bad = self.encode(FileListing(paths, ids))
        return {"part": [name], "files": [len(paths)], "bad": [bad]}


def encode(
    bundle: Path,
    folder: Path,
    job: Job,
    listing: FileListing,
    workers: WorkerOptions,
    advance: Callable[[int], object],
) -> int:
    """Encode the files that no part contains yet; return their number.

    bundle and folder must be at the same place on every node, the folder on storage that all
    share. advance: called with the number of files of each part. Raises ClusterError.
    """
    import pyarrow
    import ray
    import ray.data

    todo = listing.without(done_ids(folder))
    if not len(todo):
        return 0
    count = _workers(workers, math.ceil(len(todo) / workers.part))
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    tables = [
        pyarrow.table(
            {
                "id": pyarrow.array(some.ids),
                "path": pyarrow.array([os.fsencode(p) for p in some.paths], pyarrow.binary()),
            }
        )
        for some in todo.chunks(workers.part)
    ]
    done = ray.data.from_arrow(tables).map_batches(
        PartEncoder,
        fn_constructor_args=(str(bundle), str(folder), job, workers.batch, workers.cpus),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=count),
        num_cpus=workers.cpus,
    )
    try:
        for row in done.iter_rows():
            advance(int(row["files"]))
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        reason = (lines or ["no reason given"])[-1][:300]
        raise ClusterError(
            f"a worker failed: {reason}; fix: that, then the same command goes on"
        ) from error
    return len(todo)


def _workers(wanted: WorkerOptions, parts: int) -> int:
    """Return the number of processes to start; Ray would wait without end for CPUs it lacks."""
    import ray

    free = int(ray.available_resources().get("CPU", 0))
    room = free // wanted.cpus
    if room < (wanted.count or 1):
        raise ClusterError(
            f"{wanted.count or 1} workers of {wanted.cpus} CPUs need "
            f"{(wanted.count or 1) * wanted.cpus}, Ray has {free} free; fix: fewer --workers or "
            "--cpus, or more nodes"
        )
    return min(wanted.count or room, parts)
