"""The settings of a training run, each checked on its own.

``metah_train.config`` reads them from recipes and checks them against the method that they name.
"""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from metah_runtime import schema
from metah_runtime.checks import check_threads
from metah_runtime.codes import MAX_BITS, CodeFormat, check_bits
from metah_runtime.errors import ConfigError
from metah_runtime.images.preprocess import Preprocess
from metah_train.data.splits import SplitSizes


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a family of methods: one table of a recipe, named by ``section``.

    base: a table whose values come first, where the options extend those of another family.
    """

    section: ClassVar[str] = ""
    base: ClassVar[str] = ""

    def __post_init__(self) -> None:
        schema.check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides a training run; the same settings and data give the same codes.

    ``batch`` images come from the source and as many from the target at each step. ``lr`` is that
    of the backbone; heads, and layers that a pre-trained network was given, train at ``lr *
    head_lr``, biases at ``bias_lr`` times their layer.
    ``noise`` is the standard deviation of pixel noise for pixels in 0..1, ``shift`` the largest
    random move and ``warp`` the strength of random elastic distortion, in pixels.
    ``statistics``: batch norm's at the end, re-estimated on ``target``
    training images or those of ``training``. ``domains``: one forward pass each (``separate``) or
    one for both (``joint``). ``data_seed`` divides the data, ``seed`` does all the rest.
    ``preprocess`` None: the data set's own. ``weights``: a file of pre-trained backbone weights;
    shallow methods then use its features as they are. ``threads`` counts as a setting, for the
    order of floating-point sums depends on it.
    ``devices``: how many processes train together, each on a GPU (``device`` cuda) or with
    ``threads`` threads; they divide ``batch`` among them, and have the loss of one process.
    ``precision``: 32-true, or bf16-mixed: the backbone is trained in bfloat16 where torch's
    autocast says so, heads and losses in float32; weights are float32 always.
    ``labels``: a CSV file of path,label that labels images of the target, to score it alone.
    ``skipped``: images that are left out, for they cannot be read: their names in their domain,
    after ``source/`` or ``target/``.
    ``detail``: bits of the detail code beside the ``bits`` of the hash code, 0 for none; it is
    fitted after training on the backbone's ``trained`` features, on the ``pooled`` feature maps
    below its last layers (of a network without these, its features), or on ``both``.
    ``code_weight``: how many bits of detail one bit of the hash code counts in the order of
    answers. ``head`` itq: the hash head is fitted anew after training, of which the trained one has
    ``train_bits`` (default: ``bits``).
    """

    method: str = "metah"
    data: str = "digits"
    direction: str | None = None
    bits: int = 48
    seed: int = 0
    data_seed: int = 0
    split: SplitSizes = dataclasses.field(default_factory=SplitSizes)
    preprocess: Preprocess | None = None
    backbone: str = "small-cnn"
    weights: str | None = None
    features: int = 256
    dropout: float = 0.3
    noise: float = 0.1
    shift: int = 0
    warp: float = 0.0
    statistics: str = "target"
    domains: str = "separate"
    batch: int = 64
    epochs: int = 12
    steps: int | None = None
    optimizer: str = "adamw"
    lr: float = 1e-3
    head_lr: float = 1.0
    bias_lr: float = 1.0
    weight_decay: float = 1e-2
    momentum: float = 0.9
    schedule: str = "cosine"
    warmup: int = 50
    halve_every: int = 500
    device: str = "cpu"
    threads: int = 2
    devices: int = 1
    precision: str = "32-true"
    labels: str | None = None
    skipped: tuple[str, ...] = ()
    detail: int = 64
    detail_features: str = "both"
    code_weight: int = 1
    head: str = "trained"
    train_bits: int | None = None
    options: Options = dataclasses.field(default_factory=Options)

    def __post_init__(self) -> None:
        schema.check_fields(self, skip=NESTED)
        check_bits(self.bits)
        check_threads(self.threads)
        one_of(self, "statistics", ("target", "training"))
        one_of(self, "domains", ("separate", "joint"))
        one_of(self, "optimizer", ("adamw", "sgd"))
        one_of(self, "schedule", ("cosine", "halving", "constant"))
        one_of(self, "device", ("cpu", "cuda"))
        one_of(self, "precision", ("32-true", "bf16-mixed"))
        one_of(self, "detail_features", ("trained", "pooled", "both"))
        one_of(self, "head", ("trained", "itq"))
        self._check_code()
        for name in ("features", "epochs", "halve_every"):
            within(self, name, 1)
        within(self, "batch", 2)
        within(self, "devices", 1)
        if self.batch % self.devices:
            fit = -(-self.batch // self.devices) * self.devices
            raise ConfigError(
                f"batch must be a multiple of devices, got batch {self.batch} and devices "
                f"{self.devices}; fix: --set batch={fit}"
            )
        if self.steps is not None:
            within(self, "steps", 1)
        for name in ("shift", "warp", "noise", "warmup", "head_lr", "bias_lr", "weight_decay"):
            within(self, name, 0)
        within(self, "seed", 0, 2**32 - 1)
        within(self, "data_seed", 0, 2**32 - 1)
        within(self, "dropout", 0, 0.99)
        within(self, "momentum", 0, 0.9999)
        if not self.lr > 0:
            raise ConfigError(f"lr must be > 0, got {self.lr}")

    def _check_code(self) -> None:
        """Raise ConfigError unless the settings of the code fit together."""
        if self.detail % 8 or self.detail < 0:
            raise ConfigError(f"detail must be a multiple of 8 >= 0, got {self.detail}")
        left = MAX_BITS - self.code_weight * self.bits
        if self.detail > left:
            raise ConfigError(
                f"code_weight * bits + detail must be at most {MAX_BITS}, got {self.code_weight} * "
                f"{self.bits} + {self.detail}; fix: --set detail={max(0, left) // 8 * 8}"
            )
        _ = self.code_format  # checks the rest
        if self.train_bits is not None:
            check_bits(self.train_bits)
            if self.head != "itq":
                raise ConfigError(
                    f"train_bits is of a head fitted anew, got {self.train_bits}; "
                    "fix: --set head=itq"
                )

    @property
    def code_format(self) -> CodeFormat:
        """What a row of codes holds."""
        return CodeFormat(bits=self.bits, detail_bits=self.detail, code_weight=self.code_weight)

    def in_training(self) -> Self:
        """Return the settings of the network that trains: its own head, no detail code."""
        bits = self.bits if self.train_bits is None else self.train_bits
        if (bits, self.detail, self.head) == (self.bits, 0, "trained"):
            return self
        return self.stage(
            bits=bits,
            detail=0,
            detail_features=Settings.detail_features,
            code_weight=1,
            head="trained",
            train_bits=None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; ``Config.from_dict`` gives an equal Config back.

        Settings in ADDED are left out where they say what an earlier version did: what is known by
        a digest of these values (a trial of a comparison, a cached backbone) keeps its name.
        """
        values = dataclasses.asdict(self)
        for name in ADDED_TO_SPLIT:
            if values["split"][name] == getattr(SplitSizes, name):
                del values["split"][name]
        return {k: v for k, v in values.items() if k not in ADDED or v != ADDED[k]}

    def stage(self, **changes: Any) -> Self:
        """Return a copy with some settings changed, checked again."""
        return dataclasses.replace(self, **changes)


NESTED = ("split", "preprocess", "options")
"""Settings that are tables of their own."""

ADDED_TO_SPLIT = ("query_fraction", "database")
ADDED: dict[str, Any] = {
    "devices": 1,
    "precision": "32-true",
    "labels": None,
    "skipped": (),
    "detail": 0,
    "detail_features": "both",
    "code_weight": 1,
    "head": "trained",
    "train_bits": None,
}
"""Settings that a run of an earlier version does not have, and what they were in it."""


def one_of(owner: Any, name: str, choices: Iterable[str]) -> None:
    """Raise ConfigError unless the field is one of ``choices``."""
    value = getattr(owner, name)
    if value not in choices:
        hint = schema.did_you_mean(value, choices)
        raise ConfigError(f"{name} must be one of {listed(choices)}, got {value!r}{hint}")


def within(owner: Any, name: str, low: float, high: float = math.inf) -> None:
    """Raise ConfigError unless low <= field <= high."""
    value = getattr(owner, name)
    if not low <= value <= high:
        rule = f">= {low}" if high == math.inf else f"in {low}..{high}"
        raise ConfigError(f"{name} must be {rule}, got {value}")


def listed(names: Iterable[str]) -> str:
    """Return names in order, separated by commas, for a message."""
    return ", ".join(sorted(names))
