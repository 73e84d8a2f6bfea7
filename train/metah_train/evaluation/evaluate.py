"""Encode image sets with a trained network and score the retrieval of a run."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metah_runtime import files, metrics, schema
from metah_runtime.codes import Codes, pack
from metah_runtime.errors import DataError, RunError
from metah_train.data import ImageSet, Split
from metah_train.evaluation.criteria import criteria
from metah_train.evaluation.shifts import ShiftedImages
from metah_train.methods.base import HashModel
from metah_train.training.checkpoint import Run

EVALUATION = "evaluation.json"
MAX_EVALUATION_BYTES = 1 << 20


def encode(
    model: HashModel,
    images: ImageSet,
    *,
    batch: int = 256,
    done: Callable[[int], None] | None = None,
) -> tuple[Codes, NDArray[np.float32]]:
    """Encode a set in eval mode: (packed codes (n, bits/8) uint8, logits (n, bits) float32).

    The mode of the model is put back. done: called with the number of images of each batch.
    """
    mode = model.training
    model.eval()
    logits = np.empty((len(images), model.bits), np.float32)
    device = model.mean.device
    try:
        with torch.inference_mode():
            for start in range(0, len(images), batch):
                rows = np.arange(start, min(start + batch, len(images)))
                part = torch.from_numpy(images.load(rows)).to(device)
                logits[rows] = model(part).cpu().numpy()
                if done is not None:
                    done(len(rows))
    finally:
        model.train(mode)
    return pack(logits), logits


def validate(run: Run, split: Split, *, radius: int = 2) -> metrics.RetrievalMetrics:
    """Score a run on held-out source images: every second one queries the others.

    The only labelled score that may choose a setting, for it reads no label of the target.
    """
    rows = np.arange(len(split.source_valid))
    query, database = (split.source_valid.subset(rows[start::2]) for start in (0, 1))
    return _score(run, query, database, radius)


def unsupervised(run: Run, split: Split, *, radius: int = 2) -> dict[str, float]:
    """Return the criteria of the run's codes on target training images: no target label is read.

    See ``metah_train.evaluation.criteria``; source training images give the class means.
    """
    labels = split.source_train.labels
    if labels is None:
        raise DataError("the criteria need the labels of the source training images")
    source, target = (
        encode(run.model, images)[1] for images in (split.source_train, split.target_train)
    )
    return asdict(criteria(source, labels, target, radius=radius))


def evaluate(
    run: Run, split: Split, *, radius: int = 2, shifts: Sequence[str] = ()
) -> dict[str, Any]:
    """Score a run on the queries and the database of a split; write RUN/evaluation.json.

    Returns the metrics of ``metah_runtime.metrics`` and what they were measured on;
    ``source_validation`` holds those of ``validate``, ``criteria`` those of ``unsupervised``,
    ``groups`` those of each of the split's groups of queries, ``cross`` those of a second database,
    all of the source. ``database`` is there where the first is not the target's. shifts: also score
    queries and database under each of ``metah_train.evaluation.shifts``, in ``shifts``: domains
    that training never saw. Where nothing is labelled there are no metrics; ``unscored`` says why.
    """
    result: dict[str, Any] = {
        "method": run.config.method,
        "bits": run.config.bits,
        "seed": run.config.seed,
        "data": split.name,
        "direction": split.direction,
        "run_digest": run.digest,
        "source_validation": validate(run, split, radius=radius).to_dict(),
        "criteria": unsupervised(run, split, radius=radius),
        **_target_scores(run, split, radius, shifts),
    }
    files.write_json(run.path / EVALUATION, result)
    return result


def _target_scores(run: Run, split: Split, radius: int, shifts: Sequence[str]) -> dict[str, Any]:
    """Return the parts of an evaluation that read labels of the target."""
    databases = split.scored
    if not databases:
        return {"unscored": split.unscored}
    first, *others = databases
    query, database = split.query, databases[first]
    found: dict[str, Any] = {"metrics": _score(run, query, database, radius).to_dict()}
    if first != "target":
        found["database"] = first
    if others:
        found["cross"] = _score(run, query, databases[others[0]], radius).to_dict()
    if split.groups:
        found["groups"] = {
            name: _score(run, query.subset(rows), database, radius).to_dict()
            for name, rows in split.groups.items()
        }
    if shifts:
        found["shifts"] = {
            kind: _score(
                run, ShiftedImages(query, kind), ShiftedImages(database, kind), radius
            ).to_dict()
            for kind in shifts
        }
    return found


def stored_evaluation(run: Run) -> dict[str, Any] | None:
    """Return what ``evaluate`` wrote into the run, None if it was never evaluated.

    Raises RunError if the file is damaged or tells of another run.
    """
    path = run.path / EVALUATION
    fix = f"fix: metah-train evaluate {run.path}"
    try:
        found = schema.parse_json(files.read_regular(path, MAX_EVALUATION_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be used: {error}; {fix}") from error
    if not isinstance(found, dict) or found.get("run_digest") != run.digest:
        raise RunError(f"{path} tells of another run than this; {fix}")
    return found


def _score(run: Run, query: ImageSet, database: ImageSet, radius: int) -> metrics.RetrievalMetrics:
    if query.labels is None or database.labels is None:
        raise DataError("evaluation needs the labels of queries and database")
    return metrics.evaluate(
        encode(run.model, query)[0],
        query.labels,
        encode(run.model, database)[0],
        database.labels,
        radius=radius,
    )
