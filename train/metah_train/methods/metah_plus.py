"""METAH+: METAH with parts exchanged, each by an option of its own.

    minimise  METAH-e's terms + lM Lmcc(o_t) + lW Lword(h_s, y_s) + lP Lp([h_s, h_t'], [y_s, y_t'])
              + lB balance(h) + lR correlation(h) + lV Lv(o_t, o_t') + lN Ln(o_t)

There is no entropy term: with every option off it is METAH-e, bit for bit. A recipe's table
[plus] goes over its [objective]. What each option is and where it comes from is
told in the modules of ``losses``, in ``domain_norm`` and in ``averaging``; what they give, and
how the defaults were chosen, in docs/decisions/0012-metah-plus.md.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import nn

from metah_runtime.errors import ConfigError
from metah_train.backbones import pools
from metah_train.backbones.domain_norm import SourceNorm
from metah_train.data.base import ImageSet
from metah_train.losses import (
    adversarial,
    bits,
    codeword,
    conditional,
    confusion,
    consistency,
    neighbourhood,
    pseudo,
)
from metah_train.methods.averaging import Average
from metah_train.methods.base import Batch, Task, TrainingProgress, augment
from metah_train.methods.metah import METAH, TERMS, ObjectiveOptions, Outputs
from metah_train.methods.neighbours import Memory
from metah_train.methods.views import recurring
from metah_train.settings import Settings, one_of, within

MORE = (
    *("confusion", "codeword", "pseudo", "bit_balance", "bit_correlation", "consistency"),
    "neighbours",
)
"""Terms beside METAH's five; each weight is the option of the same name."""

PREDICTED = ("confusion", "pseudo", "consistency", "neighbours")
"""Those of MORE that read the classifier's predictions of target images."""

ON_TARGET = (*PREDICTED, "bit_balance", "bit_correlation")
"""Those of MORE that read target images."""


@dataclass(frozen=True, kw_only=True)
class PlusOptions(ObjectiveOptions):
    """METAH's options, and what METAH+ adds; a weight of 0 leaves a term out.

    ``confusion``: minimum class confusion on the target, at ``confusion_temperature``.
    ``judge``: what the discriminator sees, ``h`` or ``h x p`` (codes by class probabilities).
    ``codeword``: pull to class codewords, with ``codeword_scale`` and ``codeword_margin``.
    ``norm``: batch norm ``shared`` by the domains or of its own in each ``domain``.
    ``bit_balance``, ``bit_correlation``: on the codes of both domains. ``average``: decay of the
    running average of weights that is kept, 0 for the last weights. ``pseudo``: pairwise term on
    source items and target items predicted with ``pseudo_confidence``, from the fraction
    ``pseudo_start`` of training on. ``consistency``: the class of a target image that is
    predicted with ``consistency_confidence`` is that of a view moved by up to
    ``consistency_shift`` pixels and warped by ``consistency_warp`` pixels; with
    ``consistency_views`` of 1 or more each image has that many views, else each view is new.
    ``neighbours``: the class of a target image is that of its ``neighbours_count`` nearest target
    images; the term rises linearly during training. ``pooled_dropout``: rate of dropout on the
    pooled features of EfficientNet-Lite0, before the layer that trains (Srivastava et al., JMLR
    2014).
    """

    section: ClassVar[str] = "plus"
    base: ClassVar[str] = "objective"

    entropy: float = 0.0
    confusion: float = 1.0
    confusion_temperature: float = 2.5
    judge: str = "h"
    codeword: float = 0.0
    codeword_scale: float = 8.0
    codeword_margin: float = 0.2
    norm: str = "shared"
    bit_balance: float = 0.0
    bit_correlation: float = 0.0
    average: float = 0.0
    pseudo: float = 0.0
    pseudo_confidence: float = 0.95
    pseudo_start: float = 0.3
    consistency: float = 1.0
    consistency_confidence: float = 0.95
    consistency_shift: int = 2
    consistency_warp: float = 1.5
    consistency_views: int = 0
    neighbours: float = 0.0
    neighbours_count: int = 5
    pooled_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in MORE:
            within(self, name, 0)
        one_of(self, "judge", ("h", "h x p"))
        one_of(self, "norm", ("shared", "domain"))
        within(self, "confusion_temperature", 1e-6)
        within(self, "codeword_scale", 1e-6)
        within(self, "codeword_margin", 0, 2)
        within(self, "average", 0, 0.9999)
        within(self, "pseudo_confidence", 0, 1)
        within(self, "pseudo_start", 0, 1)
        within(self, "consistency_confidence", 0, 1)
        within(self, "consistency_shift", 0)
        within(self, "consistency_warp", 0)
        within(self, "consistency_views", 0)
        within(self, "neighbours_count", 1)
        within(self, "pooled_dropout", 0, 0.99)


class METAHPlus(METAH):
    """METAH's objective with the exchanges of ``PlusOptions``."""

    title = "METAH+"
    source = (
        "this project; the parts: Jin et al. 2020, Long et al. 2018, Hoe et al. 2021 and others"
    )
    options_type = PlusOptions
    dropped = ("entropy",)
    words: torch.Tensor

    def __init__(self, config: Settings, task: Task) -> None:
        super().__init__(config, task)
        plus = self.plus
        if task.multi_label:
            raise ConfigError("METAH+ needs one label an image; fix: --method metah")
        if plus.judge == "h x p":
            self.discriminator = adversarial.Discriminator(
                config.bits * task.classes,
                width=plus.discriminator_width,
                dropout=plus.discriminator_dropout,
            )
        if plus.codeword:
            words = codeword.codewords(task.classes, config.bits)
            self.register_buffer("words", words, persistent=False)
        self.source_norm = SourceNorm(self.model.backbone) if plus.norm == "domain" else None
        self.average = Average(self._kept(), plus.average) if plus.average else None
        self.memory: Memory | None = None
        if plus.pooled_dropout:
            self.model.backbone.drop_pooled(plus.pooled_dropout)

    @classmethod
    def check(cls, config: Settings) -> None:
        """Raise ConfigError for options that contradict one another."""
        super().check(config)
        options = config.options
        assert isinstance(options, PlusOptions)
        needs = [name for name in PREDICTED if getattr(options, name)]
        if (needs or options.judge == "h x p") and not options.classifier:
            raise ConfigError(
                f"{needs[0] if needs else 'judge'} reads the classifier's predictions: "
                "plus.classifier must be > 0, got 0"
            )
        if options.norm == "domain" and config.domains == "joint":
            raise ConfigError("norm 'domain' needs one pass a domain; fix: domains=separate")
        if options.pooled_dropout and not pools(config.backbone):
            raise ConfigError(
                f"pooled_dropout is of EfficientNet-Lite0: with backbone {config.backbone} it must "
                f"be 0, got {options.pooled_dropout}"
            )

    @property
    def plus(self) -> PlusOptions:
        """The options, under their own type."""
        options = self.config.options
        assert isinstance(options, PlusOptions)
        return options

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term."""
        return {name: getattr(self.options, name) for name in (*TERMS, *MORE)}

    @property
    def uses_target(self) -> bool:
        """Whether any term with a weight reads target images."""
        return super().uses_target or any(getattr(self.plus, name) for name in ON_TARGET)

    def heads(self) -> list[nn.Module]:
        """METAH's heads; the source's batch norm trains as that of the target."""
        found = [module for module in super().heads() if module is not self.source_norm]
        if self.source_norm is not None:
            backbone = self.model.backbone
            found += [self.source_norm.inside(backbone, part) for part in backbone.added]
        return found

    def source_tensors(self) -> dict[str, torch.Tensor]:
        """Return the source's batch norm, where it has its own."""
        if self.source_norm is None:
            return {}
        return {f"backbone.{name}": own for name, own in self.source_norm.tensors().items()}

    def prepare(self, source: ImageSet, target: ImageSet) -> None:
        """Make room for what is remembered of the target training set."""
        super().prepare(source, target)
        if self.plus.neighbours:
            memory = Memory(len(target), self.config.features, self.task.classes)
            self.memory = memory.to(self.model.mean.device)

    def terms(self, batch: Batch, progress: TrainingProgress) -> dict[str, torch.Tensor]:
        """Return METAH's terms and those of MORE whose weight is not 0."""
        plus, found = self.plus, self.outputs(batch)
        terms = self.terms_of(found, batch.labels, progress)
        if plus.codeword:
            terms["codeword"] = codeword.codeword_loss(
                found.h,
                batch.labels,
                self.words,
                scale=plus.codeword_scale,
                margin=plus.codeword_margin,
            )
        if found.target_h is None or found.target_features is None:
            return terms
        both = torch.cat([found.h, found.target_h])
        if plus.bit_balance:
            terms["bit_balance"] = bits.bit_balance(both)
        if plus.bit_correlation:
            terms["bit_correlation"] = bits.bit_correlation(both)
        if not any(getattr(plus, name) for name in PREDICTED):
            return terms
        logits = self.classes(found.target_h, found.target_features)
        if plus.confusion:
            terms["confusion"] = confusion.class_confusion(
                logits, temperature=plus.confusion_temperature
            )
        if plus.pseudo and progress.fraction >= plus.pseudo_start:
            rows, labels = pseudo.confident(logits, plus.pseudo_confidence)
            terms["pseudo"] = self._pairwise(
                torch.cat([found.h, found.target_h[rows]]), torch.cat([batch.labels, labels])
            )
        if plus.consistency:
            assert batch.target is not None
            terms["consistency"] = consistency.consistency_loss(
                logits, self._distorted(batch.target), threshold=plus.consistency_confidence
            )
        if plus.neighbours:
            assert self.memory is not None
            assert batch.target_indices is not None
            rows, features = batch.target_indices, found.target_features
            labels, sure = self.memory.classes(rows, features, plus.neighbours_count)
            near = neighbourhood.neighbourhood_loss(logits, labels, sure)
            terms["neighbours"] = progress.fraction * near
            self.memory.update(rows, features, logits)
        return terms

    def judged(self, found: Outputs, target_h: torch.Tensor) -> torch.Tensor:
        """Return codes, or codes by class probabilities: one row per item, source first."""
        codes = super().judged(found, target_h)
        if self.plus.judge == "h":
            return codes
        assert found.target_features is not None
        logits = self.classes(codes, torch.cat([found.features, found.target_features]))
        return conditional.codes_by_class(codes, logits)

    def stepped(self, progress: TrainingProgress) -> None:
        """Average the weights; after the last step the average takes their place."""
        if self.average is not None:
            self.average.update(self._kept(), progress.step)
            if progress.step == progress.total:
                self.average.copy_to(self._kept())

    def _features(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.source_norm is None:
            return super()._features(batch)
        source = self.rank.features(self._source_features, self.augmented(batch.source))
        if batch.target is None or not self.uses_target:
            return source, None
        return source, self.features(batch.target)

    def _source_features(self, images: torch.Tensor) -> torch.Tensor:
        """What ``augmented`` gives -> (n, d) features by the source's batch norm."""
        assert self.source_norm is not None
        features: torch.Tensor = self.source_norm(self.model.backbone, self.model.scaled(images))
        return features

    def _distorted(self, images: torch.Tensor) -> torch.Tensor:
        """(n, H, W, C) uint8 -> (n, C) the classifier's logits of distorted views."""
        distort = partial(
            augment,
            noise=self.config.noise,
            shift=self.plus.consistency_shift,
            warp=self.plus.consistency_warp,
        )
        pixels = self.model.pixels(images)
        if self.plus.consistency_views:
            pixels = recurring(pixels, self.plus.consistency_views, distort)
        else:
            pixels = distort(pixels)
        features = self.rank.features(self.model.features, pixels)
        return self.classes(torch.tanh(self.model.head(features)), features)

    def _kept(self) -> nn.Module:
        """Return the modules whose average is kept, as one."""
        return nn.ModuleDict({"model": self.model, "classifier": self.classifier})
