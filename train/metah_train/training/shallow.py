"""Fit a shallow method: train its backbone to classify source images, then fit its head."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from metah_train.data import ImageSet, Split
from metah_train.losses import classification
from metah_train.methods.base import Batch, DeepMethod, Method, ShallowMethod, TrainingProgress
from metah_train.methods.sampling import labels_of, seed_step, slices
from metah_train.settings import Settings
from metah_train.tensor_cache import TensorCache
from metah_train.training.features import backbone_key, features_key


class SourceClassifier(DeepMethod[Any]):
    """Trains the backbone of a shallow method to classify the labelled source images."""

    def __init__(self, method: Method[Any]) -> None:
        nn.Module.__init__(self)
        self.config, self.task, self.model = method.config, method.task, method.model
        seed_step(self.config.seed, "classifier", 0)  # the same for all shallow methods
        self.output = nn.Linear(method.config.features, method.task.classes)
        self.to(method.model.mean.device)

    @classmethod
    def build_head(cls, config: Settings) -> nn.Module:
        """Not used: the head is that of the shallow method."""
        raise NotImplementedError

    @property
    def weights(self) -> dict[str, float]:
        """One term."""
        return {"classifier": 1.0}

    def terms(self, batch: Batch, progress: TrainingProgress) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """Return the cross-entropy of the source labels."""
        features = nn.functional.dropout(self.features(batch.source), self.config.dropout)
        loss = (
            classification.sigmoid_cross_entropy
            if self.task.multi_label
            else classification.softmax_cross_entropy
        )
        return {"classifier": loss(self.output(features), batch.labels)}


def train_backbone(
    method: ShallowMethod[Any],
    split: Split,
    train: Callable[[], int],
    cache: TensorCache | None,
) -> int:
    """Train the backbone by ``train()``, or take it from the cache; return the number of steps."""
    if method.config.weights is not None:
        return 0
    backbone = method.model.backbone
    if cache is None:
        return train()
    key = backbone_key(method.config, split.source_train)
    found = cache.get(key)
    if found is None:
        start = time.monotonic()
        steps = train()
        tensors = {**backbone.state_dict(), "steps": torch.tensor(steps)}
        cache.put(key, tensors, seconds=time.monotonic() - start)
        return steps
    steps = int(found.pop("steps"))
    backbone.load_state_dict(found)
    return steps


def fit_shallow(method: ShallowMethod[Any], split: Split, cache: TensorCache | None = None) -> None:
    """Fit a shallow method's head on the features of the domains it asks for."""
    parts = {"source": [split.source_train], "target": [split.target_train]}
    sets = parts.get(method.fit_on) or [split.source_train, split.target_train]
    features = torch.cat([cached_features(method, images, cache) for images in sets])
    labels = None if method.fit_on == "target" else labels_of(split.source_train, method.task)
    seed_step(method.config.seed, "shallow", 0)
    method.fit(features, labels)


def cached_features(
    method: Method[Any], images: ImageSet, cache: TensorCache | None
) -> torch.Tensor:
    """Return ``extract_features``, from the cache where it has them."""
    if cache is None:
        return extract_features(method, images)
    key = features_key(method.model.backbone, images)
    found = cache.get(key)
    if found is None:
        start = time.monotonic()
        found = {"features": extract_features(method, images)}
        cache.put(key, found, seconds=time.monotonic() - start)
    return found["features"].to(method.model.mean.device)


def extract_features(method: Method[Any], images: ImageSet, batch: int = 256) -> torch.Tensor:
    """Return the backbone's features of a set in eval mode, (n, d) float32."""
    model = method.model.eval()
    parts = []
    with torch.no_grad():
        for rows in slices(len(images), batch):
            part = torch.from_numpy(images.load(rows)).to(model.mean.device)
            parts.append(model.features(part))
    return torch.cat(parts)
