"""A report over run folders: open the runs, encode the same queries and database by each."""

from collections.abc import Sequence
from pathlib import Path

from metah_runtime.errors import ConfigError
from metah_runtime.reporting import Progress, Warn, no_progress, python_warning
from metah_train.data import SPLIT_FIELDS, split_of
from metah_train.evaluation.encode import encode
from metah_train.evaluation.report import MethodCodes, Report, compare
from metah_train.training.checkpoint import Run, warn_if_changed

TITLES = {"lsh": "LSH", "source": "source only", "tah": "TAH", "metah-e": "METAH-e"}


def compare_runs(
    paths: Sequence[Path],
    *,
    queries: int = 10,
    k: int = 10,
    progress: Progress = no_progress,
    warn: Warn = python_warning,
) -> Report:
    """Return the report of finished runs, in the order given.

    Raises RunError for a run that cannot be opened, ConfigError for runs that differ in data,
    direction, split, preprocessing or code length, or for one run given twice, DataError for a
    target without labels. Warns of images that are not those of the training.
    """
    for place, path in enumerate(paths):
        if path.resolve() in {other.resolve() for other in paths[:place]}:
            raise ConfigError(f"run {path} is given twice")
    runs = [Run.open(path) for path in paths]
    first = runs[0]
    for run in runs[1:]:
        for name in (*SPLIT_FIELDS, "bits"):
            # What the data set chose by itself counts as much as what was asked for.
            ours, theirs = (getattr(r, name, getattr(r.config, name)) for r in (first, run))
            if ours != theirs:
                raise ConfigError(
                    f"the runs of a report must agree: {name} is {ours} in {first.path}, "
                    f"{theirs} in {run.path}"
                )
    split = split_of(first.config)
    split.check_labelled()
    for run in runs:
        warn_if_changed(run, split, warn)
    domain, searched = next(iter(split.scored.items()))
    names = method_names(runs)
    codes: dict[str, MethodCodes] = {}
    with progress("encode", len(runs), "runs") as advance:
        for name, run in zip(names, runs, strict=True):
            model = run.model.in_domain(domain)
            query, database = encode(run.model, split.query)[0], encode(model, searched)[0]
            codes[name] = MethodCodes(
                query=query, database=database, code_format=run.config.code_format
            )
            advance()
    return compare(
        codes,
        split.query,
        searched,
        title=f"{split.name} {split.direction}, {first.config.bits} bits",
        class_names=split.class_names,
        queries=queries,
        k=k,
    )


def method_names(runs: Sequence[Run]) -> list[str]:
    """Return one name per run: its method, with its folder where a method comes twice."""
    names = [TITLES.get(run.config.method, run.config.method.upper()) for run in runs]
    return [
        f"{name} ({run.path})" if names.count(name) > 1 else name
        for name, run in zip(names, runs, strict=True)
    ]
