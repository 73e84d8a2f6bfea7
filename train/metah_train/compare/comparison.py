"""The trials on disk: results that are never half written, locks, codes for curves and pictures."""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from metah_runtime import files, schema
from metah_runtime.codes import Codes
from metah_runtime.errors import RunError
from metah_train.compare.grid import Trial
from metah_train.data import Split
from metah_train.data.record import check_images
from metah_train.training.checkpoint import images_of

FORMAT = 1
RUN = "run"
RESULT = "result.json"
ERROR = "error.json"
CODES = "codes.safetensors"
CURVES = "curves.json"
ELAPSED = "elapsed.json"
RESULTS = "results.jsonl"
MAX_BYTES = 1 << 30


class TrialStore:
    """The folder of a comparison."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def folder(self, trial: Trial) -> Path:
        """Return the folder of a trial."""
        return self.out / "cells" / trial.name

    def result(self, trial: Trial) -> dict[str, Any] | None:
        """Return the record of a finished trial, None for another; raises RunError if damaged."""
        path = self.folder(trial) / RESULT
        if not path.exists():
            return None
        value = _read_json(path)
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise RunError(f"{path} is not of format {FORMAT}; fix: delete {path.parent}")
        if value.get("key") != trial.key:
            raise RunError(f"{path} belongs to another trial; fix: delete {path.parent}")
        return value

    def error(self, trial: Trial) -> str | None:
        """Return the message of a trial that failed."""
        path = self.folder(trial) / ERROR
        return str(_read_json(path)["message"]) if path.exists() else None

    def codes(self, trial: Trial) -> dict[str, Codes]:
        """Return the packed codes of a finished trial: query, database, source_valid."""
        path = self.folder(trial) / CODES
        try:
            return safetensors.numpy.load(files.read_regular(path, MAX_BYTES))
        except (OSError, safetensors.SafetensorError) as error:
            raise RunError(
                f"{path} cannot be read ({error}); fix: delete {path.parent} and run again"
            ) from None

    def curves(self, trial: Trial) -> dict[str, NDArray[np.float64]]:
        """Return precision and recall by radius, and precision at each N, of a finished trial."""
        found = _read_json(self.folder(trial) / CURVES)
        return {name: np.asarray(values, np.float64) for name, values in found.items()}

    def save(
        self,
        trial: Trial,
        result: Mapping[str, Any],
        codes: Mapping[str, Codes],
        curves: Mapping[str, list[float]],
    ) -> None:
        """Write a finished trial; its result comes last and makes it finished."""
        folder = self.folder(trial)
        files.write_bytes(folder / CODES, safetensors.numpy.save(dict(codes)))
        files.write_json(folder / CURVES, dict(curves))
        record = {"format": FORMAT, "key": trial.key, **result}
        files.write_json(folder / RESULT, record)
        for name in (ERROR, ELAPSED):
            files.unlink(folder / name)

    def check_images(self, trials: Iterable[Trial], split: Split) -> list[str]:
        """Check that the images are those of the trials that were started; return warnings.

        Raises DataError for a trial of other images, as ``data.record.check_images``.
        """
        found: dict[str, str | None] = {}
        for trial in trials:
            before = images_of(self.folder(trial) / RUN)
            key = json.dumps(before, sort_keys=True)
            if before is not None and key not in found:
                found[key] = check_images(before, split, f"trial {trial.label}")
        return [text for text in found.values() if text]

    def save_error(self, trial: Trial, message: str, trace: str) -> None:
        """Record why a trial failed; it is tried again at the next call."""
        folder = self.folder(trial)
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(folder / ERROR, {"message": message, "trace": trace})

    def write_results(self, trials: Iterable[Trial]) -> list[dict[str, Any]]:
        """Rebuild results.jsonl from the finished trials of the grid, and return its records."""
        found = [record for trial in trials if (record := self.result(trial)) is not None]
        lines = "".join(json.dumps(record, sort_keys=True) + "\n" for record in found)
        files.write_bytes(self.out / RESULTS, lines.encode())
        return found


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock file ``path``; raises RunError if another process does, unless ``wait``.

    The lock ends with the process that holds it, however it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise RunError(f"another metah-train compare is at work in {path.parent}") from None
        yield
    finally:
        os.close(handle)


def _read_json(path: Path) -> Any:
    try:
        return schema.parse_json(files.read_regular(path, MAX_BYTES))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path} cannot be read ({error}); fix: delete {path.parent} and run again"
        ) from None
