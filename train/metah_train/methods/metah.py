"""METAH, METAH-e, TAH and their source-only twin: one objective of five terms.

    h = tanh(logits);  o = W_c h + b_c
    minimise  lp Lp(h_s, y_s) + lq Lq(h_s) + lc Lc(o_s, y_s) + lE LE(o_t) + lD LD(GRL(h_s, h_t))

Lp pairwise, Lq quantization, LD domain-adversarial, Lc classification, LE target entropy; GRL
reverses gradients with a strength that rises from 0 to 1. METAH: Zhuo et al., Journal of Computer
Research and Development 57(4), 2020. TAH: Cao et al., AAAI 2018 (no Lc, no LE).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from metah_runtime.errors import ConfigError
from metah_train.losses import adversarial, classification, entropy, pairwise, quantization
from metah_train.methods.base import Batch, DeepMethod, Task, TrainingProgress
from metah_train.settings import Options, Settings, one_of, within


@dataclass(frozen=True, kw_only=True)
class ObjectiveOptions(Options):
    """Weights of the five terms (lp, lq, lD, lc, lE of the paper) and the form of each.

    ``form``: of the pairwise term, ``released``, ``paper`` (with ``alpha``) or ``cauchy`` (with
    ``gamma``, in bits). ``quantize``: the domains of the quantization term. ``classifier_input``:
    ``h`` or the backbone's ``features``. ``multilabel_head``: classifier for several labels an
    item. ``ramp_high``, ``ramp_gain``: gradient reversal. ``entropy_ramp``: fraction of training
    over which the entropy weight rises linearly. ``initial_std``: of the heads' weights.
    """

    section: ClassVar[str] = "objective"

    pairwise: float = 1.0
    quantization: float = 0.1
    adversarial: float = 0.3
    classifier: float = 0.8
    entropy: float = 0.05
    form: str = "cauchy"
    balance: bool = True
    alpha: float = 2.0
    gamma: float = 8.0
    quantize: str = "source"
    classifier_input: str = "h"
    multilabel_head: str = "sigmoid"
    discriminator_width: int = 256
    discriminator_dropout: float = 0.5
    ramp_high: float = 1.0
    ramp_gain: float = 10.0
    entropy_ramp: float = 0.0
    initial_std: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in TERMS:
            within(self, name, 0)
        one_of(self, "form", pairwise.FORMS)
        one_of(self, "quantize", ("source", "both"))
        one_of(self, "classifier_input", ("h", "features"))
        one_of(self, "multilabel_head", ("sigmoid", "softmax"))
        for name in ("alpha", "gamma", "ramp_high", "ramp_gain"):
            within(self, name, 1e-6)
        within(self, "discriminator_width", 1)
        within(self, "discriminator_dropout", 0, 0.99)
        within(self, "entropy_ramp", 0, 1)
        if self.initial_std is not None:
            within(self, "initial_std", 0)


TERMS = ("pairwise", "quantization", "adversarial", "classifier", "entropy")


@dataclass(frozen=True)
class Outputs:
    """What a batch gives: features (n, d) and relaxed codes h (n, b) of the source, of the target.

    target_features and target_h are None where no term reads target images.
    """

    features: torch.Tensor
    h: torch.Tensor
    target_features: torch.Tensor | None
    target_h: torch.Tensor | None


class METAH(DeepMethod[ObjectiveOptions]):
    """The full objective; its special cases drop terms through ``dropped``."""

    title = "METAH"
    source = "Zhuo et al., Journal of Computer Research and Development 57(4), 2020"
    options_type = ObjectiveOptions
    dropped: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Settings, task: Task) -> None:
        super().__init__(config, task)
        options = self.options
        inputs = config.bits if options.classifier_input == "h" else config.features
        self.classifier = nn.Linear(inputs, task.classes)
        self.discriminator = adversarial.Discriminator(
            config.bits, width=options.discriminator_width, dropout=options.discriminator_dropout
        )
        if options.initial_std is not None:
            self._initialise(options.initial_std)

    @classmethod
    def preset(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Set the weights of the dropped terms to 0."""
        return {**options, **dict.fromkeys(cls.dropped, 0.0)}

    @classmethod
    def check(cls, config: Settings) -> None:
        """Raise ConfigError for a weight of a term that this method does not have."""
        for name in cls.dropped:
            if getattr(config.options, name):
                raise ConfigError(
                    f"{cls.title} has no {name} term: objective.{name} must be 0, "
                    f"got {getattr(config.options, name)}; fix: --method metah"
                )

    @classmethod
    def build_head(cls, config: Settings) -> nn.Module:
        """Dropout and one linear layer."""
        return nn.Sequential(nn.Dropout(config.dropout), nn.Linear(config.features, config.bits))

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each of the five terms."""
        return {name: getattr(self.options, name) for name in TERMS}

    @property
    def uses_target(self) -> bool:
        """Whether any term with a weight reads target images."""
        options = self.options
        return bool(
            options.adversarial
            or options.entropy
            or (options.quantization and options.quantize == "both")
        )

    def terms(self, batch: Batch, progress: TrainingProgress) -> dict[str, torch.Tensor]:
        """Return the terms whose weight is not 0."""
        return self.terms_of(self.outputs(batch), batch.labels, progress)

    def outputs(self, batch: Batch) -> "Outputs":
        """Pass a batch through the network."""
        features, target_features = self._features(batch)
        h = torch.tanh(self.model.head(features))
        target_h = None
        if target_features is not None:
            target_h = torch.tanh(self.model.head(target_features))
        return Outputs(features, h, target_features, target_h)

    def terms_of(
        self, found: "Outputs", labels: torch.Tensor, progress: TrainingProgress
    ) -> dict[str, torch.Tensor]:
        """Return the five terms, without those whose weight is 0."""
        options = self.options
        h, target_h = found.h, found.target_h
        terms: dict[str, torch.Tensor] = {}
        if options.pairwise:
            terms["pairwise"] = self._pairwise(h, labels)
        if options.quantization:
            both = options.quantize == "both" and target_h is not None
            codes = torch.cat([h, target_h]) if both and target_h is not None else h
            terms["quantization"] = quantization.log_cosh_quantization(codes)
        if options.classifier:
            terms["classifier"] = self._classification(self.classes(h, found.features), labels)
        if target_h is None or found.target_features is None:
            return terms
        if options.adversarial:
            eta = adversarial.ramp(
                progress.fraction, high=options.ramp_high, gain=options.ramp_gain
            )
            domains = self.discriminator(
                adversarial.reverse_gradient(self.judged(found, target_h), eta)
            )
            terms["adversarial"] = adversarial.domain_loss(domains[: len(h)], domains[len(h) :])
        if options.entropy:
            logits = self.classes(target_h, found.target_features)
            rise = progress.fraction / options.entropy_ramp if options.entropy_ramp else 1.0
            terms["entropy"] = min(1.0, rise) * self._entropy(logits)
        return terms

    def classes(self, h: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Return the classifier's logits, (n, classes)."""
        logits: torch.Tensor = self.classifier(
            h if self.options.classifier_input == "h" else features
        )
        return logits

    def judged(self, found: "Outputs", target_h: torch.Tensor) -> torch.Tensor:
        """Return what the discriminator sees: one row per item, source first."""
        return torch.cat([found.h, target_h])

    def statistics(self, h: torch.Tensor) -> dict[str, float]:
        """Entropy of the class predictions, and of their mean: low means few classes are left."""
        if not self.options.classifier or self.options.classifier_input != "h":
            return {}
        logits = self.classifier(h)
        mean = torch.softmax(logits, 1).mean(0)
        return {
            "target_entropy": float(entropy.softmax_entropy(logits)),
            "target_mean_entropy": float(-torch.xlogy(mean, mean).sum()),
        }

    def _features(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Features of both domains; ``joint``: one pass, so that batch norm mixes the domains."""
        if batch.target is None or not self.uses_target:
            return self.features(batch.source), None
        if self.config.domains == "joint":
            both = self.features(torch.cat([batch.source, batch.target]))
            return both[: len(batch.source)], both[len(batch.source) :]
        return self.features(batch.source), self.features(batch.target)

    def _pairwise(self, h: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        options = self.options
        return pairwise.pairwise_loss(
            h,
            pairwise.shared_label(labels),
            form=options.form,
            balance=options.balance,
            alpha=options.alpha,
            gamma=options.gamma,
        )

    def _classification(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.task.multi_label and self.options.multilabel_head == "sigmoid":
            return classification.sigmoid_cross_entropy(logits, labels)
        return classification.softmax_cross_entropy(logits, labels)

    def _entropy(self, logits: torch.Tensor) -> torch.Tensor:
        if self.task.multi_label and self.options.multilabel_head == "sigmoid":
            return entropy.sigmoid_entropy(logits)
        return entropy.softmax_entropy(logits)

    def _initialise(self, std: float) -> None:
        """Draw N(0, std^2) weights and zero biases; the discriminator's last layer has 30 std."""
        last = self.discriminator.layers[-1]
        for root in (self.model.head, self.classifier, self.discriminator):
            for layer in root.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, 0.0, 30 * std if layer is last else std)
                    nn.init.zeros_(layer.bias)


class METAHe(METAH):
    """METAH without target entropy."""

    title = "METAH-e"
    dropped = ("entropy",)


class TAH(METAH):
    """Transfer adversarial hashing: pairwise, quantization and adversarial terms."""

    title = "TAH"
    source = "Cao et al., Transfer Adversarial Hashing, AAAI 2018"
    dropped = ("classifier", "entropy")


class Source(METAH):
    """The same network and pairwise form on source images alone: no adaptation."""

    title = "source only"
    source = "the source terms of METAH's objective"
    dropped = ("adversarial", "classifier", "entropy")
