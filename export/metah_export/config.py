"""How a bundle is built: defaults here, a TOML file over them, options over that."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from metah_export.parity import LIMITS, Limits
from metah_export.quantize import Calibration
from metah_runtime.checks import check_threads
from metah_runtime.errors import ConfigError
from metah_runtime.model.bundle import PRECISIONS

MIN_IMAGES = 500
"""Parity is measured on at least so many images, if the data set has them."""


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """How a bundle is built.

    precision: of the weights and activations between pixels and hash head; images: how many the
    codes are compared on, of both domains; seed: of their choice; limits: what may differ, None for
    the default of the precision; calibration: of int8 and fp8; threads: CPU threads, None = all;
    licence: of the model, one line that its card repeats, None = not stated.
    """

    precision: str = "fp32"
    images: int = 2000
    seed: int = 0
    limits: Limits | None = None
    calibration: Calibration = field(default_factory=Calibration)
    threads: int | None = None
    licence: str | None = None

    def __post_init__(self) -> None:
        if self.licence is not None and not (
            isinstance(self.licence, str) and self.licence.strip() and self.licence.isprintable()
        ):
            raise ConfigError(f"licence must be one line of text, got {self.licence!r}")
        if self.precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise ConfigError(f"precision must be one of {known}, got {self.precision!r}")
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
    table = {} if path is None else _read(path)
    limits = _sub(table, "limits")
    calibration = _sub(table, "calibration")
    for key in limits:
        if key not in PRECISIONS:
            raise ConfigError(f"{path}: limits.{key}: precision must be one of {PRECISIONS}")
    given = {key: value for key, value in (options or {}).items() if value is not None}
    own = {
        key.removeprefix("calibration_"): given.pop(key)
        for key in list(given)
        if key.startswith("calibration_")
    }
    values = {**table, **given}
    precision = values.get("precision", BuildConfig.precision)
    if precision in limits:
        values["limits"] = _make(Limits, _checked(limits[precision], dict), f"limits.{precision}")
    values["calibration"] = _make(Calibration, {**calibration, **own}, "calibration")
    config: BuildConfig = _make(BuildConfig, values, "")
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"configuration {path} cannot be read: {reason}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"configuration {path} is not TOML: {error}") from error


def _sub(table: dict[str, Any], name: str) -> dict[str, Any]:
    value: dict[str, Any] = _checked(table.pop(name, {}), dict)
    return value


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ConfigError(f"expected a table, got {value!r}")
    return value


def _make(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    """Build a dataclass from some of its fields; its own rules check ranges."""
    prefix = f"{where}." if where else ""
    known = {item.name: item for item in fields(kind)}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"unknown key {prefix}{key}; known: {', '.join(sorted(known))}")
        text = known[key].type in (str, str | None)
        if isinstance(value, bool) or (isinstance(value, str) and not text):
            raise ConfigError(f"{prefix}{key} must be a number, got {value!r}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{where or 'configuration'}: {error}") from error
