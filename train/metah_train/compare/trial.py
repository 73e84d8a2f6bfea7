"""One trial: train (or go on), encode, score, write the record."""

import json
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from metah_runtime import metrics
from metah_runtime.codes import CodeFormat
from metah_runtime.errors import DataError, MetahError
from metah_train import data
from metah_train.compare.comparison import ELAPSED, RESULT, RUN, TrialStore, locked
from metah_train.compare.grid import Trial
from metah_train.config import Config
from metah_train.data import Split
from metah_train.evaluation.encode import encode, parts_of
from metah_train.evaluation.evaluate import unsupervised
from metah_train.evaluation.pairs import find_pairs, score_pairs
from metah_train.tensor_cache import TensorCache
from metah_train.training import loop

SETS = {
    "query": "target",
    "database": "target",
    "source_valid": "source",
    "source_train": "source",
}
"""What is encoded of a split, and in which domain."""

NS = tuple(range(100, 1001, 100))
"""The N of precision@N."""


_last: dict[tuple[Any, ...], Split] = {}


def split_of(config: Config) -> Split:
    """Return the split of a configuration; the last one is kept, for trials share it."""
    key = data.split_key(config)
    if key not in _last:
        _last.clear()
        _last[key] = data.split_of(config)
    return _last[key]


def run_trial(trial: Trial, comparison: TrialStore, report: loop.StepReport | None = None) -> None:
    """Train and score a trial, or return at once if it is finished.

    An interrupted training goes on from its own state. Raises what training and scoring raise.
    """
    folder = comparison.folder(trial)
    with locked(folder / "lock", wait=True):
        if (folder / RESULT).exists():
            return
        split = split_of(trial.config)
        clock = Clock(folder / ELAPSED)

        def step(done: int, total: int, terms: Mapping[str, float]) -> None:
            clock.tick(done)
            if report is not None:
                report(done, total, terms)

        cache = TensorCache(comparison.out / "cache")
        run = loop.fit(trial.config, split, folder / RUN, resume=True, report=step, cache=cache)
        clock.save()
        clock.values["seconds"] = round(clock.values["seconds"] + cache.seconds, 3)
        clock.values["cached_seconds"] = round(cache.seconds, 3)
        codes = {
            name: encode(run.model.in_domain(domain), getattr(split, name))[0]
            for name, domain in SETS.items()
        }
        codes["source"] = np.concatenate([codes["source_train"], codes["source_valid"]])
        scored, curves = score(split, codes, trial.config.code_format)
        if (twins := find_pairs(split)) is not None:
            found = score_pairs(run, twins)
            scored.update({f"pairs{ending}": value for ending, value in found.items()})
        scored["criteria"] = unsupervised(run, split)
        result = {
            "method": trial.row,
            "bits": trial.config.bits,
            "seed": trial.config.seed,
            "data": split.name,
            "direction": split.direction,
            **scored,
            "training": clock.values,
            "config": trial.config.to_dict(),
            "run_digest": run.digest,
            "versions": {name: version(name) for name in ("metah", "torch", "numpy")},
        }
        kept = {name: codes[name] for name in ("query", "database", "source_valid")}
        if "target" not in split.scored:
            kept["searched"] = codes["source"]
        comparison.save(trial, result, kept, curves)


def score(
    split: Split, codes: Mapping[str, Any], code_format: CodeFormat
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Return (scores of target and source queries, curves of the target queries).

    codes: of SETS, and ``source``: those of source_train and source_valid. The first of the split's
    databases gives the curves of hash codes, a second one the scores ``cross``. Source queries are
    the held-out source images, searched in the source training set: a sanity check of what the
    codes have learnt before any domain gap.
    """
    databases = split.scored
    if not databases:
        raise DataError(f"{split.name}: a comparison needs labels of queries and database")
    first, *others = databases
    places = {"target": "database", "source": "source"}
    labels = {name: getattr(split, name).labels for name in SETS}
    labels["source"] = databases["source"].labels if "source" in databases else None
    sections = {
        "metrics": ("query", places[first]),
        "source_metrics": ("source_valid", "source_train"),
    }
    if others:
        sections["cross"] = "query", places[others[0]]
    scores: dict[str, Any] = {}
    for ending, part, form in parts_of(code_format):
        for section, (asked, searched) in sections.items():
            task = (part(codes[asked]), labels[asked], part(codes[searched]), labels[searched])
            found = metrics.evaluate(*task, code_format=form)
            scores[section + ending] = found.to_dict()
    query, database = (code_format.code_part(codes[name]) for name in ("query", places[first]))
    target = query, labels["query"], database, labels[places[first]]
    size = len(databases[first])
    ns = [n for n in NS if n <= size] or [size]
    curve = metrics.pr_curve(*target)
    curves = {
        "radius": curve.radius.tolist(),
        "precision": curve.precision.tolist(),
        "recall": curve.recall.tolist(),
        "n": ns,
        "precision_at_n": metrics.precision_at_n(*target, ns).tolist(),
    }
    return scores, curves


class Clock:
    """Seconds spent in training, over interruptions, and the step at which each leg began."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = {"seconds": 0.0, "cpu_seconds": 0.0, "legs": []}
        try:
            self.values = json.loads(path.read_text())
        except FileNotFoundError:
            pass
        except ValueError as error:
            raise MetahError(f"{path} is damaged ({error}); fix: delete it") from None
        self._before = dict(self.values)
        self._start = time.monotonic(), time.process_time()
        self._saved = self._start[0]
        self._first = True

    def tick(self, done: int) -> None:
        """Note a step; at the first and then every second the numbers are saved, unsynced."""
        if self._first:
            self.values["legs"] = [*self.values["legs"], done - 1]
            self._first = False
            self.save()
        if time.monotonic() - self._saved >= 1:
            self.save()

    def save(self) -> None:
        """Update the numbers and replace the file."""
        self._saved = time.monotonic()
        spent = self._saved - self._start[0], time.process_time() - self._start[1]
        for name, seconds in zip(("seconds", "cpu_seconds"), spent, strict=True):
            self.values[name] = round(self._before[name] + seconds, 3)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.values))
        temporary.replace(self.path)
