"""Score the retrieval of a run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from metah_runtime import files, metrics, schema
from metah_runtime.errors import DataError, RunError
from metah_train.data import ImageSet, Split
from metah_train.evaluation.criteria import criteria
from metah_train.evaluation.encode import encode, parts_of
from metah_train.evaluation.pairs import find_pairs, score_pairs
from metah_train.evaluation.shifts import ShiftedImages
from metah_train.training.checkpoint import Run

EVALUATION = "evaluation.json"
MAX_EVALUATION_BYTES = 1 << 20


def validate(run: Run, split: Split, *, radius: int = 2) -> dict[str, metrics.RetrievalMetrics]:
    """Score a run on held-out source images: every second one queries the others; as ``scores``.

    The only labelled score that may choose a setting, for it reads no label of the target.
    """
    rows = np.arange(len(split.source_valid))
    query, database = (split.source_valid.subset(rows[start::2]) for start in (0, 1))
    return scores(run, query, database, radius=radius, domains=("source", "source"))


def unsupervised(run: Run, split: Split, *, radius: int = 2) -> dict[str, float]:
    """Return the criteria of the run's codes on target training images: no target label is read.

    See ``metah_train.evaluation.criteria``; source training images give the class means.
    """
    labels = split.source_train.labels
    if labels is None:
        raise DataError("the criteria need the labels of the source training images")
    source = encode(run.model.in_domain("source"), split.source_train)[1]
    target = encode(run.model, split.target_train)[1]
    return asdict(criteria(source, labels, target, radius=radius))


def evaluate(
    run: Run,
    split: Split,
    *,
    radius: int = 2,
    shifts: Sequence[str] = (),
    pairs: bool = False,
    references: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Score a run on the queries and the database of a split; write RUN/evaluation.json.

    Returns ``metrics``, those of ``metah_runtime.metrics`` of the hash code alone, and what they
    were measured on; ``source_validation`` holds those of ``validate``, ``criteria`` those of
    ``unsupervised``, ``groups`` those of each of the split's groups of queries, ``cross`` those of
    a second database, all of the source, ``pairs`` those of ``evaluation.pairs``, where the split
    has such. ``database`` is there where the first is not the target's. shifts: also score queries
    and database under each of ``metah_train.evaluation.shifts``, in ``shifts``: domains that
    training never saw. pairs: equal file stems are pairs, where the split names none. Scores of the
    whole code are beside them, in ``metrics_with_detail`` and so on. Where nothing is labelled
    there are no metrics; ``unscored`` says why. references: what ``evaluation.references``
    measured, kept beside the scores. Raises DataError if no pairs are found.
    """
    twins = find_pairs(split, by_stem=pairs)
    parts: dict[str, Any] = {}
    for section, key, found in _all_scores(run, split, radius, shifts):
        for ending, score in found.items():
            if key is None:
                parts[section + ending] = score.to_dict()
            else:
                parts.setdefault(section + ending, {})[key] = score.to_dict()
    result = {
        "method": run.config.method,
        "bits": run.config.bits,
        "seed": run.config.seed,
        "data": split.name,
        "direction": split.direction,
        "run_digest": run.digest,
        **parts,
        "criteria": unsupervised(run, split, radius=radius),
    }
    first = next(iter(split.scored), None)
    if first is None:
        result["unscored"] = split.unscored
    elif first != "target":
        result["database"] = first
    if references:
        result["references"] = dict(references)
    if twins is not None:
        result.update({f"pairs{key}": value for key, value in score_pairs(run, twins).items()})
    files.write_json(run.path / EVALUATION, result)
    return result


def _all_scores(
    run: Run, split: Split, radius: int, shifts: Sequence[str]
) -> Iterator[tuple[str, str | None, dict[str, metrics.RetrievalMetrics]]]:
    """Yield (section, key inside of it, ``scores``)."""
    yield "source_validation", None, validate(run, split, radius=radius)
    databases = split.scored
    if not databases:
        return
    query, (first, *others) = split.query, databases
    database, domains = databases[first], ("target", first)
    yield "metrics", None, scores(run, query, database, radius=radius, domains=domains)
    for name in others:
        found = scores(run, query, databases[name], radius=radius, domains=("target", name))
        yield "cross", None, found
    for name, rows in split.groups.items():
        found = scores(run, query.subset(rows), database, radius=radius, domains=domains)
        yield "groups", name, found
    for kind in shifts:
        shifted = ShiftedImages(query, kind), ShiftedImages(database, kind)
        yield "shifts", kind, scores(run, *shifted, radius=radius, domains=domains)


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


def scores(
    run: Run,
    query: ImageSet,
    database: ImageSet,
    *,
    radius: int = 2,
    domains: tuple[str, str] = ("target", "target"),
) -> dict[str, metrics.RetrievalMetrics]:
    """Return the metrics of hash codes under "", those of whole codes under WITH_DETAIL, if any.

    domains: of the queries, of the database. Raises DataError without labels.
    """
    if query.labels is None or database.labels is None:
        raise DataError("evaluation needs the labels of queries and database")
    asked = encode(run.model.in_domain(domains[0]), query)[0]
    searched = encode(run.model.in_domain(domains[1]), database)[0]
    return {
        ending: metrics.evaluate(
            part(asked),
            query.labels,
            part(searched),
            database.labels,
            radius=radius,
            code_format=form,
        )
        for ending, part, form in parts_of(run.config.code_format)
    }
