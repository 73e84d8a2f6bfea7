"""What a run is held against without any label of the target: cheaper ways to the same codes.

``source``: the same network and length of training on source images alone. ``itq``, ``lsh``:
rotated principal components, and random hyperplanes, of the run's own features. Where they look
better, adaptation did harm: negative transfer.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from metah_train.config import Config
from metah_train.data import Split
from metah_train.data.base import spread
from metah_train.evaluation.criteria import criteria
from metah_train.evaluation.evaluate import scores, unsupervised, validate
from metah_train.methods import method_class
from metah_train.methods.base import DeepMethod
from metah_train.methods.metah import ObjectiveOptions
from metah_train.training import loop, projections
from metah_train.training.checkpoint import Run
from metah_train.training.loop import StepReport

NOISE = 0.02
"""A difference in full MAP that another seed makes too."""

TRIES = "--set {table}.adversarial=0.1, a longer training (--set steps=N), or --method source"


def has_references(config: Config) -> bool:
    """Whether a method adapts METAH's network, so that there is a twin on the source alone."""
    adapts = isinstance(config.options, ObjectiveOptions) and config.method != "source"
    return adapts and issubclass(method_class(config.method), DeepMethod)


def references(
    run: Run, split: Split, *, radius: int = 2, report: StepReport | None = None
) -> dict[str, Any]:
    """Return ``criteria`` by reference, of ``source`` also ``source_validation`` and ``metrics``.

    metrics: where the split is scored. The twin trains in a temporary folder. Raises what training
    raises.
    """
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="metah-") as folder:
        twin = loop.fit(source_only(run.config), split, Path(folder) / "run", report=report)
        found["source"] = {
            "source_validation": validate(twin, split, radius=radius)[""].to_dict(),
            "criteria": unsupervised(twin, split, radius=radius),
        }
        for name, database in list(split.scored.items())[:1]:
            domains = ("target", name)
            score = scores(twin, split.query, database, radius=radius, domains=domains)
            found["source"]["metrics"] = score[""].to_dict()
    labels = split.source_train.labels
    assert labels is not None
    labels = labels[spread(len(labels), projections.IMAGES)]
    features = projections.features(run.model, split, "trained")["head"]
    centred = {domain: f - f.mean(0) for domain, f in features.items()}
    rng = np.random.default_rng(run.config.seed)
    planes = rng.standard_normal((features["target"].shape[1], run.config.bits))
    rows = np.concatenate([projections.unit_rows(part) for part in centred.values()])
    for name, W in (("itq", projections.projection(rows, run.config.bits)), ("lsh", planes)):
        logits = {domain: (part @ W).astype(np.float32) for domain, part in centred.items()}
        measured = criteria(logits["source"], labels, logits["target"], radius=radius)
        found[name] = {"criteria": asdict(measured)}
    return found


def source_only(config: Config) -> Config:
    """Return the settings of the twin: the same network, trained on the source terms alone."""
    shared = {f.name: getattr(config.options, f.name) for f in fields(ObjectiveOptions)}
    options = ObjectiveOptions(**method_class("source").preset(shared))
    return config.in_training().stage(method="source", options=options)


def warning(evaluation: Mapping[str, Any]) -> str | None:
    """Return why a run looks worse than its twin on the source alone, None if it does not.

    By the full MAP where the target is scored; else if the classes of target images are both less
    sure (entropy) and less different (rank): docs/decisions/0015 has its false alarms.
    """
    twin = evaluation.get("references", {}).get("source")
    if twin is None:
        return None
    if "metrics" in evaluation:
        ours, theirs = (part["metrics"]["map_full"] for part in (evaluation, twin))
        worse, how = ours < theirs - NOISE, f"full MAP {ours:.3f} against {theirs:.3f}"
    else:
        own, other = evaluation["criteria"], twin["criteria"]
        worse = own["entropy"] > other["entropy"] and own["rank"] < other["rank"]
        how = ", ".join(f"{n} {own[n]:.3f} against {other[n]:.3f}" for n in ("entropy", "rank"))
    if not worse:
        return None
    table = "plus" if evaluation["method"] == "metah-plus" else "objective"
    return (
        f"adaptation looks worse than training on the source alone ({how}); "
        f"try {TRIES.format(table=table)}"
    )
