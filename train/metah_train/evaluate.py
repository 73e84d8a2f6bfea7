"""Encode image sets with a trained network and score the retrieval of a run."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from metah_runtime import files, metrics
from metah_runtime.codes import Codes, pack
from metah_runtime.errors import DataError
from metah_train.checkpoint import Run
from metah_train.methods.base import HashModel

if TYPE_CHECKING:
    from metah_train.data import ImageSet, Split

EVALUATION = "evaluation.json"


def encode(
    model: HashModel, images: "ImageSet", *, batch: int = 256
) -> tuple[Codes, NDArray[np.float32]]:
    """Encode a set in eval mode: (packed codes (n, bits/8) uint8, logits (n, bits) float32).

    The mode of the model is put back.
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
    finally:
        model.train(mode)
    return pack(logits), logits


def evaluate(run: Run, split: "Split", *, radius: int = 2) -> dict[str, Any]:
    """Score a run on the queries and the database of a split; write RUN/evaluation.json.

    Returns the metrics of ``metah_runtime.metrics`` and what they were measured on.
    """
    if split.query.labels is None or split.database.labels is None:
        raise DataError(f"{split.name}: evaluation needs labels of queries and database")
    query, _ = encode(run.model, split.query)
    database, _ = encode(run.model, split.database)
    scores = metrics.evaluate(
        query,
        split.query.labels,
        database,
        split.database.labels,
        radius=radius,
        seed=run.config.seed,
    )
    result = {
        "method": run.config.method,
        "bits": run.config.bits,
        "seed": run.config.seed,
        "data": split.name,
        "direction": split.direction,
        "queries": len(split.query),
        "database": len(split.database),
        "radius": radius,
        "metrics": asdict(scores),
    }
    files.write_json(run.path / EVALUATION, result)
    return result
