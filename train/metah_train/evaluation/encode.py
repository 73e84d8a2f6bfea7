"""Encode image sets with a trained network."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from metah_runtime.codes import CodeFormat, Codes, pack
from metah_train.data.base import ImageSet
from metah_train.methods.model import HashModel

WITH_DETAIL = "_with_detail"
"""Ending of the names of scores of whole codes; those of hash codes alone have none."""


def encode(
    model: HashModel,
    images: ImageSet,
    *,
    batch: int = 256,
    done: Callable[[int], None] | None = None,
) -> tuple[Codes, NDArray[np.float32]]:
    """Encode a set in eval mode: (rows of codes (n, width) uint8, logits (n, bits) float32).

    A row holds the hash code, bits / 8 bytes, then the detail code. done: called with the number of
    images of each batch.
    """
    logits, details = all_logits(model, images, batch=batch, done=done)
    codes = pack(logits)
    return np.hstack([codes, pack(details)]) if model.detail_bits else codes, logits


def all_logits(
    model: HashModel,
    images: ImageSet,
    *,
    batch: int = 256,
    done: Callable[[int], None] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a set's logits (n, bits) and logits of the detail code (n, detail_bits), float32.

    In eval mode; the mode of the model is put back.
    """
    mode = model.training
    model.eval()
    logits = np.empty((len(images), model.bits), np.float32)
    details = np.empty((len(images), model.detail_bits), np.float32)
    device = model.mean.device
    try:
        with torch.inference_mode():
            for start in range(0, len(images), batch):
                rows = np.arange(start, min(start + batch, len(images)))
                part = torch.from_numpy(images.load(rows)).to(device)
                logits[rows], details[rows] = (x.cpu().numpy() for x in model.outputs(part))
                if done is not None:
                    done(len(rows))
    finally:
        model.train(mode)
    return logits, details


def parts_of(
    code_format: CodeFormat,
) -> Iterator[tuple[str, Callable[[Codes], Codes], CodeFormat]]:
    """Yield what is scored of rows of codes: ("" | WITH_DETAIL, rows -> its rows, its format)."""
    yield "", code_format.code_part, CodeFormat(bits=code_format.bits)
    if code_format.detail_bits:
        yield WITH_DETAIL, lambda codes: codes, code_format
