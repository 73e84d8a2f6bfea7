"""Training from Python: what ``metah-train fit`` does, as one function."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from metah_runtime.codes import Codes
from metah_runtime.reporting import Progress, Warn, no_progress, python_warning
from metah_train import automatic
from metah_train.data import FileImages, ImageSet, split_of
from metah_train.data.readable import leave_out_unreadable
from metah_train.evaluation.encode import encode
from metah_train.evaluation.evaluate import evaluate
from metah_train.training import loop
from metah_train.training.checkpoint import Run
from metah_train.training.loop import StepReport


@dataclass(frozen=True, kw_only=True)
class TrainedRun(Run):
    """A run that encodes images and scores itself; ``TrainedRun.open(folder)`` opens one."""

    def encode(self, images: Sequence[str | Path] | ImageSet, *, domain: str = "target") -> Codes:
        """Return the codes of image files or of an image set, (n, width) uint8, packed.

        domain: which the images are of, ``target`` or ``source``. Raises ImageError.
        """
        model = self.model.in_domain(domain)
        if not isinstance(images, Sequence):
            return encode(model, images)[0]
        paths = [Path(path) for path in images]
        found = FileImages(paths, None, [str(path) for path in paths], self.preprocess)
        return encode(model, found)[0]

    def evaluate(self, **options: Any) -> dict[str, Any]:
        """Score the run on its own data; options and result as of ``evaluation.evaluate``."""
        return evaluate(self, split_of(self.config), **options)


def fit(
    data: str,
    *,
    out: str | Path,
    recipe: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    skip_bad: bool = False,
    report: StepReport | None = None,
    progress: Progress = no_progress,
    warn: Warn = python_warning,
    **given: Any,
) -> TrainedRun:
    """Train on ``data``, write the run into the folder ``out`` and return it.

    data, recipe and what is chosen without one: as the command's options; given: fields of Config,
    as ``method="metah"``, ``bits=64``; settings: by the names of ``--set``, as
    ``{"steps": 500, "plus.adversarial": 0.1}``. report: called after each step with (steps done,
    steps in all, loss terms by name), a logger. An interrupted run goes on when called again; one
    that is finished is returned. Raises ConfigError, DataError, ImageError, RunError and others of
    ``metah_runtime.errors``.
    """
    out = Path(out)
    assignments = [f"{key}={json.dumps(value)}" for key, value in (settings or {}).items()]
    config, split, _ = automatic.load(
        recipe, {"data": data, **given}, assignments, missing_ok=skip_bad
    )
    split, bad = leave_out_unreadable(split, skip=skip_bad, progress=progress, warn=warn)
    run = loop.fit(
        config.stage(skipped=(*config.skipped, *bad)),
        split,
        out,
        resume=out.exists() and not overwrite,
        overwrite=overwrite,
        report=report,
        warn=warn,
    )
    return TrainedRun(**{field.name: getattr(run, field.name) for field in fields(run)})
