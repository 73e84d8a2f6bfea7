"""Projections that are fitted after training, without labels: the detail code, a refitted head.

With features f of domain D, their mean m_D, and X = ((f - m_D) / |f - m_D|) over both domains:

    W = V S^-a R : V the first principal components of X, S their deviations, R the rotation of ITQ
    (``methods.itq``); whitening a, so that bits differ inside of a class too
    bit k of an image of domain D = ((f - m_D) W)_k > 0 : one linear layer, with a bias a domain

Lengths do not matter to the sign, so the layer takes features as they are.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from metah_runtime.domain import DOMAINS
from metah_runtime.errors import DataError
from metah_train.data.base import ImageSet, Split, spread
from metah_train.methods.itq import principal_components, rotation
from metah_train.methods.model import HashModel
from metah_train.methods.sampling import seed_step, slices
from metah_train.settings import Settings

IMAGES = 10_000
"""Training images of a domain that a fit reads, spread evenly."""

WHITENING = {"trained": 0.25, "pooled": 0.5, "both": 0.25}
"""The power a by the kind of detail features; docs/decisions/0013 tells how it was chosen."""

ITERATIONS = 50
BATCH = 256

Domains = Mapping[str, NDArray[np.float64]]
"""Domain -> features (n, d), or a mean (d,)."""


def add_projections(model: HashModel, config: Settings, split: Split) -> None:
    """Fit the detail head, and the hash head where ``config.head`` is itq; change ``model``.

    model: in use, with ``set_source`` done for what else differs in the source domain. Raises
    DataError for features that are all equal.
    """
    source = model.source_tensors()
    kind = config.detail_features
    found = features(model, split, kind)
    if config.head == "itq":
        model.head, model.bits = nn.Linear(config.features, config.bits), config.bits
        source["head.bias"] = fit(model.head, found["head"], config.seed, "head")
    if config.detail:
        width = found["detail"]["target"].shape[1]
        model.detail, model.detail_features = nn.Linear(width, config.detail), kind
        joined = kind == "both" and width > config.features
        source["detail.bias"] = fit(
            model.detail,
            found["detail"],
            config.seed,
            "detail",
            whitening=WHITENING[kind],
            parts=(config.features, width - config.features) if joined else None,
        )
    model.to(model.mean.device)
    model.set_source(source)


def fit(
    layer: nn.Linear,
    found: Domains,
    seed: int,
    stream: str,
    *,
    whitening: float = 0.0,
    parts: tuple[int, ...] | None = None,
) -> torch.Tensor:
    """Set a layer's weight, and its bias for the target; return the bias for the source.

    parts: widths of the kinds of features that are joined, each scaled to a mean length of 1.
    """
    seed_step(seed, stream, 0)
    means = {domain: f.mean(0) for domain, f in found.items()}
    scale = np.ones(layer.in_features)
    if parts is not None:
        centred = np.concatenate([found[domain] - means[domain] for domain in DOMAINS])
        place = 0
        for width in parts:
            own = slice(place, place + width)
            scale[own] = 1 / max(np.linalg.norm(centred[:, own], axis=1).mean(), 1e-12)
            place += width
    directions = np.concatenate(
        [unit_rows((found[domain] - means[domain]) * scale) for domain in DOMAINS]
    )
    weight = (scale[:, None] * projection(directions, layer.out_features, whitening)).T
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(-weight @ means["target"]))
    return torch.from_numpy(-weight @ means["source"]).to(layer.bias)


def projection(X: NDArray[np.float64], bits: int, whitening: float = 0.0) -> NDArray[np.float64]:
    """Return W (d, bits) of rows X (n, d); raises DataError for rows without any difference."""
    if not X.any():
        raise DataError(
            "the features of all training images are equal: no projection can be fitted; "
            "fix: --set detail=0, or longer training"
        )
    V, W, _ = principal_components(X, bits)
    scale = V.std(0) ** -whitening
    found: NDArray[np.float64] = (W * scale) @ rotation(V * scale, bits, ITERATIONS)
    return found


def unit_rows(X: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale rows (n, d) to length 1; rows of zeros stay."""
    length = np.linalg.norm(X, axis=1, keepdims=True)
    return X / np.where(length > 0, length, 1.0)


def features(
    model: HashModel, split: Split, kind: str
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Return features of training images in float64: {"head" | "detail": {domain: (n, d)}}.

    Each domain through its own network, in eval mode, at most IMAGES images.
    """
    sets = {"target": split.target_train, "source": split.source_train}
    found: dict[str, dict[str, NDArray[np.float64]]] = {"head": {}, "detail": {}}
    for domain, images in sets.items():
        own = model.in_domain(domain).eval()
        head, detail = _features(own, images, kind)
        found["head"][domain], found["detail"][domain] = head, detail
    return found


def _features(
    model: HashModel, images: ImageSet, kind: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows = spread(len(images), IMAGES)
    parts = []
    with torch.no_grad():
        for part in slices(len(rows), BATCH):
            pixels = torch.from_numpy(images.load(rows[part])).to(model.mean.device)
            parts.append([x.double().cpu().numpy() for x in model.both_features(pixels, kind)])
    head, detail = (np.concatenate(column) for column in zip(*parts, strict=True))
    return head, detail
