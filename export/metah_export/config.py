"""How a bundle is built: defaults here, a TOML file over them, options over that."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metah_export.calibrate import Calibration
from metah_export.parity import LIMITS, Limits
from metah_export.quantize import TARGETS
from metah_runtime import schema
from metah_runtime.checks import check_threads
from metah_runtime.errors import ConfigError
from metah_runtime.model.manifest import PRECISIONS

MIN_IMAGES = 500
"""Parity is measured on at least so many images, if the data set has them."""


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """How a bundle is built.

    precision: of the weights and activations between pixels and hash head; images: how many the
    codes are compared on, of both domains; seed: of their choice; limits: what may differ, None for
    the default of the precision; calibration: of int8 and fp8; target: what int8 is made for, 'cpu'
    or 'tensorrt', None = by the engine that is built with it; exclude: layers that stay fp32; auto:
    whether those that flip the most bits stay fp32 too, where a limit is broken; threads: CPU
    threads, None = all; licence: of the model, one line that its card repeats, None = not stated.
    """

    precision: str = "fp32"
    images: int = 2000
    seed: int = 0
    limits: Limits | None = None
    calibration: Calibration = field(default_factory=Calibration)
    target: str | None = None
    exclude: tuple[str, ...] = ()
    auto: bool = False
    threads: int | None = None
    licence: str | None = None

    def __post_init__(self) -> None:
        schema.check_fields(self)
        if self.licence is not None and not (self.licence.strip() and self.licence.isprintable()):
            raise ConfigError(f"licence must be one line of text, got {self.licence!r}")
        if self.precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise ConfigError(f"precision must be one of {known}, got {self.precision!r}")
        if self.target is not None and self.target not in TARGETS:
            raise ConfigError(f"target must be one of {', '.join(TARGETS)}, got {self.target!r}")
        if self.target is not None and self.precision != "int8":
            raise ConfigError(
                f"target {self.target!r} is a form of int8, the precision is {self.precision}; "
                "fix: --precision int8, or leave the target out"
            )
        if self.precision == "fp32" and (self.exclude or self.auto):
            raise ConfigError(
                "exclude and auto keep layers in fp32, the precision is fp32 already; "
                "fix: --precision fp16, bf16, int8 or fp8, or leave them out"
            )
        if self.images < MIN_IMAGES:
            raise ConfigError(f"images must be at least {MIN_IMAGES}, got {self.images}")
        if self.seed < 0:
            raise ConfigError(f"seed must be >= 0, got {self.seed}")
        if self.threads is not None:
            check_threads(self.threads)

    @property
    def allowed(self) -> Limits:
        """The limits that hold: the given ones, or the default of the precision."""
        return LIMITS[self.precision] if self.limits is None else self.limits


def load(path: Path | None = None, options: Mapping[str, Any] | None = None) -> BuildConfig:
    """Build the configuration of defaults < TOML file < options; options of None are not given.

    The file's keys are fields of BuildConfig; ``[calibration]`` and ``[limits.PRECISION]`` are
    tables. Raises ConfigError for an unknown key, a wrong type or a value out of range.
    """
    values = {} if path is None else schema.read_toml(path, "configuration")
    limits = schema.from_table(_Limits, {"limits": values.pop("limits", {})}, "a table").limits
    schema.check_keys(limits, PRECISIONS, "a precision in [limits.PRECISION]")
    for key, value in (options or {}).items():
        table, name = values, key
        if key.startswith("calibration_"):
            table, name = values.setdefault("calibration", {}), key.removeprefix("calibration_")
        if value is not None and isinstance(table, dict):
            table[name] = value
    config = schema.from_table(BuildConfig, values, "a setting of the export")
    return dataclasses.replace(config, limits=limits.get(config.precision))


@dataclass(frozen=True, kw_only=True)
class _Limits:
    """The tables [limits.PRECISION] of a file."""

    limits: Mapping[str, Limits]
