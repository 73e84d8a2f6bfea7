"""What every method is made of: a task, a hashing network, and one of two ways to fit it.

A ``Method`` owns a ``HashModel`` (see ``model``) and knows how to fit it: a ``DeepMethod`` states
loss terms of a batch and is trained by gradient descent (``metah_train.training.loop``); a
``ShallowMethod`` fits its head in closed form on backbone features.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import nn

from metah_train.backbones import build_backbone
from metah_train.backbones.weights import load_weights
from metah_train.data.base import ImageSet
from metah_train.methods.model import HashModel
from metah_train.methods.rank import Rank
from metah_train.settings import Options, Settings

OptionsT = TypeVar("OptionsT", bound=Options)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a network must know of its data: image shape, number of classes, kind of labels."""

    height: int
    width: int
    channels: int
    classes: int
    multi_label: bool = False


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step's images. There is no field for target labels, so no loss can read them.

    source: (n, H, W, C) uint8; labels: (n,) int64 or (n, classes) float32 multi-hot;
    indices: (n,) int64, rows of the source training set; target: (n, H, W, C) uint8 or None;
    target_indices: its rows of the target training set, None with it.
    """

    source: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    target: torch.Tensor | None
    target_indices: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """Where training is: ``step`` of ``total`` steps, the first is 0."""

    step: int
    total: int

    @property
    def fraction(self) -> float:
        """step / total, in 0..1."""
        return self.step / self.total


class Method(nn.Module, ABC, Generic[OptionsT]):
    """A hashing method: its options, its HashModel, and what fitting needs beside it.

    ``title`` is the name in tables, ``source`` the publication. Sub-modules other than ``model``
    (a discriminator, a classifier) exist while fitting only.
    """

    title: ClassVar[str]
    source: ClassVar[str]
    options_type: ClassVar[type[Options]]
    trains_head: ClassVar[bool] = True

    def __init__(self, config: Settings, task: Task) -> None:
        super().__init__()
        self.config = config
        self.task = task
        self.model = self.build_model(config, task)
        if config.weights is not None:
            load_weights(self.model.backbone, config.weights)
        else:
            self.model.backbone.load_pretrained()

    @property
    def options(self) -> OptionsT:
        """The method's own options."""
        options: Any = self.config.options
        return options  # type: ignore[no-any-return]

    @classmethod
    def preset(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return a recipe's options with those that define this method put in place."""
        return dict(options)

    @classmethod
    def check(cls, config: Settings) -> None:
        """Raise ConfigError if the settings and options do not fit this method."""

    @classmethod
    @abstractmethod
    def build_head(cls, config: Settings) -> nn.Module:
        """Build the head, features (n, config.features) -> logits (n, config.bits), not fitted."""

    @classmethod
    def build_model(cls, config: Settings, task: Task) -> HashModel:
        """Build the network with the shapes of a fitted one, so that its tensors can be loaded."""
        backbone = build_backbone(
            config.backbone,
            channels=task.channels,
            height=task.height,
            width=task.width,
            features=config.features,
        )
        refitted = config.head == "itq"
        head = nn.Linear(config.features, config.bits) if refitted else cls.build_head(config)
        detail = None
        if config.detail:
            width = {"trained": config.features, "pooled": backbone.pooled_width or config.features}
            width["both"] = config.features + backbone.pooled_width
            detail = nn.Linear(width[config.detail_features], config.detail)
        return HashModel(
            backbone,
            head,
            channels=task.channels,
            bits=config.bits,
            detail=detail,
            detail_features=config.detail_features,
        )


class DeepMethod(Method[OptionsT]):
    """A method trained end to end: ``terms`` of a batch, weighted by ``weights``, are minimised.

    ``rank``: this process, where several train together; ``terms`` sees whole batches always.
    """

    rank: Rank = Rank()

    @property
    @abstractmethod
    def weights(self) -> Mapping[str, float]:
        """Weight of each term, by name; a term that ``terms`` leaves out counts as 0."""

    @abstractmethod
    def terms(self, batch: Batch, progress: TrainingProgress) -> dict[str, torch.Tensor]:
        """Return the unweighted loss terms of one step, each a scalar."""

    @property
    def uses_target(self) -> bool:
        """Whether ``terms`` reads target images; if not, none are loaded."""
        return False

    def stepped(self, progress: TrainingProgress) -> None:
        """Do what comes after each step of the optimizer, ``progress.step`` = ``total`` the last.

        What it changes at the last step is what the run keeps.
        """

    def prepare(self, source: ImageSet, target: ImageSet) -> None:
        """Do what comes before the first step, from the two training sets."""

    def source_tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors of ``model``, by name, that are others for source images."""
        return {}

    def statistics(self, h: torch.Tensor) -> dict[str, float]:  # noqa: ARG002
        """Return further unlabelled numbers for the log, from h (n, bits) of target images."""
        return {}

    def heads(self) -> list[nn.Module]:
        """Modules that train at ``head_lr`` times the backbone's learning rate.

        All that has no pre-trained weights, in the backbone too.
        """
        own = [module for name, module in self.named_children() if name != "model"]
        return [*own, self.model.head, *self.model.backbone.added]

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """(n, H, W, C) uint8 -> (n, bits) logits of augmented images, for training."""
        return self.model.head(self.features(images))  # type: ignore[no-any-return]

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(n, H, W, C) uint8 -> (n, d) features of augmented images, for training."""
        return self.rank.features(self.model.features, self.augmented(images))

    def augmented(self, images: torch.Tensor) -> torch.Tensor:
        """(n, H, W, C) uint8 -> pixels (n, C, H, W) in 0..1, moved, warped and noisy as configured.

        The images themselves where nothing is: each process then makes pixels of its own share.
        """
        noise, shift, warp = self.config.noise, self.config.shift, self.config.warp
        if not (noise or shift or warp):
            return images
        return augment(self.model.pixels(images), noise=noise, shift=shift, warp=warp)


class ShallowMethod(Method[OptionsT]):
    """A method that fits its head on backbone features.

    The backbone has pre-trained ``weights``, or is trained to classify the source images.
    """

    trains_head = False

    @property
    def fit_on(self) -> str:
        """Which training features ``fit`` receives: ``source``, ``target`` or ``both``."""
        return "source"

    @abstractmethod
    def fit(self, features: torch.Tensor, labels: torch.Tensor | None) -> None:
        """Fit ``model.head`` in place.

        features: (n, d) float32, of the domains in ``fit_on``, source first; labels: those of the
        source rows, (n_source,) int64 or (n_source, classes) float32, None if fit_on is target.
        The global torch generator is seeded from ``config.seed`` before the call.
        """


def augment(
    pixels: torch.Tensor, *, noise: float, shift: int = 0, warp: float = 0.0
) -> torch.Tensor:
    """Shift each image by up to ``shift`` pixels (edges repeated), warp it, add Gaussian noise.

    pixels: (n, C, H, W) in 0..1; warp: see ``elastic``; noise: standard deviation. Uses the global
    generator.
    """
    if shift:
        n, _, height, width = pixels.shape
        padded = nn.functional.pad(pixels, (shift,) * 4, mode="replicate")
        rows = torch.randint(0, 2 * shift + 1, (n, 1), device=pixels.device)
        columns = torch.randint(0, 2 * shift + 1, (n, 1), device=pixels.device)
        rows = rows + torch.arange(height, device=pixels.device)
        columns = columns + torch.arange(width, device=pixels.device)
        image = torch.arange(n, device=pixels.device)[:, None, None]
        pixels = padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if warp:
        pixels = elastic(pixels, warp)
    if noise:
        pixels = pixels + noise * torch.randn_like(pixels)
    return pixels


def elastic(pixels: torch.Tensor, std: float, controls: int = 4) -> torch.Tensor:
    """Warp each image by a smooth random field (Simard et al., ICDAR 2003), edges repeated.

    pixels: (n, C, H, W). ``controls`` x ``controls`` points move by N(0, std^2) pixels in both
    directions; the field between them is bicubic. Uses the global generator.
    """
    n, _, height, width = pixels.shape
    field = std * torch.randn(n, 2, controls, controls, device=pixels.device)
    flow = nn.functional.interpolate(
        field, size=(height, width), mode="bicubic", align_corners=True
    ).permute(0, 2, 3, 1)
    still = torch.eye(2, 3, device=pixels.device).expand(n, 2, 3)
    grid = nn.functional.affine_grid(still, list(pixels.shape), align_corners=False)
    scale = torch.tensor([2 / width, 2 / height], device=pixels.device)
    return nn.functional.grid_sample(
        pixels, grid + flow * scale, padding_mode="border", align_corners=False
    )
