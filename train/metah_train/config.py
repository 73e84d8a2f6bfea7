"""The configuration of a training run: defaults here, a TOML recipe over them, options over that.

A recipe is a TOML file. Its top-level keys are fields of ``Config``. A table such as
``[objective]`` or ``[lsh]`` sets the options of the methods that read it, and ``[direction.NAME]``
overrides both for one transfer direction. An unknown key is an error everywhere.
"""

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Self

from metah_runtime.codes import check_bits
from metah_runtime.errors import ConfigError
from metah_train.methods import METHODS, method_class

RECIPES = ("digits", "paper")
"""Recipes that ship with the package; any other name is the path of a TOML file."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a family of methods: one table of a recipe, named by ``section``."""

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        _check_types(self)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a training run; the same Config and data give the same codes.

    ``batch`` images come from the source and as many from the target at each step. ``lr`` is that
    of the backbone; heads train at ``lr * head_lr``, biases at ``bias_lr`` times their layer.
    ``noise`` is the standard deviation of pixel noise for pixels in 0..1. ``threads`` is part of
    the configuration, for the order of floating-point sums depends on it.
    """

    method: str = "metah"
    data: str = "digits"
    direction: str | None = None
    bits: int = 48
    seed: int = 0
    backbone: str = "small-cnn"
    features: int = 256
    dropout: float = 0.3
    noise: float = 0.1
    shift: int = 0
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
    options: Options = dataclasses.field(default_factory=Options)

    def __post_init__(self) -> None:
        _check_types(self, skip={"options"})
        if self.method not in METHODS:
            raise ConfigError(f"method must be one of {_listed(METHODS)}, got {self.method!r}")
        if type(self.options) is Options:
            object.__setattr__(self, "options", method_class(self.method).options_type())
        if type(self.options) is not method_class(self.method).options_type:
            raise ConfigError(f"options of {self.method} must be {_options_name(self.method)}")
        check_bits(self.bits)
        one_of(self, "statistics", ("target", "training"))
        one_of(self, "domains", ("separate", "joint"))
        one_of(self, "optimizer", ("adamw", "sgd"))
        one_of(self, "schedule", ("cosine", "halving", "constant"))
        one_of(self, "device", ("cpu", "cuda"))
        for name in ("features", "epochs", "halve_every", "threads"):
            within(self, name, 1)
        within(self, "batch", 2)
        if self.steps is not None:
            within(self, "steps", 1)
        for name in ("seed", "shift", "noise", "warmup", "head_lr", "bias_lr", "weight_decay"):
            within(self, name, 0)
        within(self, "seed", 0, 2**32 - 1)
        within(self, "dropout", 0, 0.99)
        within(self, "momentum", 0, 0.9999)
        if not self.lr > 0:
            raise ConfigError(f"lr must be > 0, got {self.lr}")
        method_class(self.method).check(self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; ``Config.from_dict`` gives an equal Config back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from the dictionary of ``to_dict``; raises ConfigError for an unknown key."""
        flat = dict(values)
        method = flat.get("method", cls.method)
        if method not in METHODS:
            raise ConfigError(f"method must be one of {_listed(METHODS)}, got {method!r}")
        options = flat.pop("options", {})
        options_type = method_class(method).options_type
        _check_keys(flat, _names(cls) - {"options"}, "a setting")
        _check_keys(options, _names(options_type), f"an option of {method}")
        return cls(**flat, options=options_type(**options))

    def stage(self, **changes: Any) -> Self:
        """Return a copy with some settings changed, checked again."""
        return dataclasses.replace(self, **changes)


def load(
    recipe: str | Path = "digits",
    settings: Mapping[str, Any] | None = None,
    assignments: Iterable[str] = (),
) -> Config:
    """Build the Config of ``recipe`` < ``settings`` (Config fields) < ``assignments`` (key=value).

    The method keeps the terms that define it: TAH drops the classifier's weight that a recipe
    states for METAH, while an assignment that contradicts the method is an error.
    Raises ConfigError for an unknown key, a wrong type or a value out of range.
    """
    table = read_recipe(recipe)
    directions = table.pop("direction", {})
    given = dict(settings or {})
    assigned = [parse_assignment(text) for text in assignments]
    given.update({key: value for key, value in assigned if "." not in key})
    direction = given.get("direction")
    layers = [table, *([directions[direction]] if direction in directions else [])]
    values: dict[str, Any] = {}
    tables: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, dict):
                tables.setdefault(key, {}).update(value)
            else:
                values[key] = value
    values.update(given)
    _check_keys(values, _names(Config) - {"options"}, "a setting")
    method = values.get("method", Config.method)
    if method not in METHODS:
        raise ConfigError(f"method must be one of {_listed(METHODS)}, got {method!r}")
    chosen = method_class(method)
    own = dict(chosen.preset(tables.get(chosen.options_type.section, {})))
    for key, value in assigned:
        section, dot, name = key.partition(".")
        if dot:
            _check_keys([section], [chosen.options_type.section], f"a table of method {method}")
            own[name] = value
    _check_keys(own, _names(chosen.options_type), f"an option of [{chosen.options_type.section}]")
    return Config(**values, options=chosen.options_type(**own))


def read_recipe(recipe: str | Path) -> dict[str, Any]:
    """Read a shipped recipe by name or a TOML file by path, and check every key in it."""
    try:
        if str(recipe) in RECIPES:
            text = resources.files("metah_train").joinpath(f"recipes/{recipe}.toml").read_text()
        else:
            text = Path(recipe).read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(
            f"recipe {str(recipe)!r} cannot be read ({reason}); "
            f"fix: one of {_listed(RECIPES)} or the path of a TOML file"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"recipe {str(recipe)!r} is not TOML: {error}") from None
    directions = table.get("direction", {})
    for layer in ({k: v for k, v in table.items() if k != "direction"}, *directions.values()):
        _check_layer(layer, str(recipe))
    return table


def parse_assignment(text: str) -> tuple[str, Any]:
    """Parse ``key=value``: the value is TOML (``3``, ``true``, ``"a"``), a bare word is text."""
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or not key:
        raise ConfigError(f"a setting must be key=value, got {text!r}")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


def one_of(owner: Any, name: str, choices: Iterable[str]) -> None:
    """Raise ConfigError unless the field is one of ``choices``."""
    value = getattr(owner, name)
    if value not in choices:
        raise ConfigError(f"{name} must be one of {_listed(choices)}, got {value!r}")


def within(owner: Any, name: str, low: float, high: float = math.inf) -> None:
    """Raise ConfigError unless low <= field <= high."""
    value = getattr(owner, name)
    if not low <= value <= high:
        rule = f">= {low}" if high == math.inf else f"in {low}..{high}"
        raise ConfigError(f"{name} must be {rule}, got {value}")


def _check_layer(layer: Mapping[str, Any], recipe: str) -> None:
    sections: dict[str, set[str]] = {}
    for name in METHODS:
        options_type = method_class(name).options_type
        sections.setdefault(options_type.section, set()).update(_names(options_type))
    for key, value in layer.items():
        if isinstance(value, dict):
            _check_keys([key], sections, f"a table of a recipe ({recipe})")
            _check_keys(value, sections[key], f"an option of [{key}] ({recipe})")
        else:
            _check_keys([key], _names(Config) - {"options"}, f"a setting ({recipe})")


def _check_keys(keys: Iterable[str], known: Iterable[str], what: str) -> None:
    known = sorted(known)
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {_listed(known)}"
            raise ConfigError(f"{key!r} is not {what}; {hint}")


def _check_types(owner: Any, skip: Iterable[str] = ()) -> None:
    """Check the fields against their annotations; a whole number is accepted as a float."""
    hints = typing.get_type_hints(type(owner))
    for field in dataclasses.fields(owner):
        if field.name in skip:
            continue
        hint, value = hints[field.name], getattr(owner, field.name)
        allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if float in allowed and type(value) is int:
            object.__setattr__(owner, field.name, float(value))
        elif type(value) not in allowed:
            name = " or ".join("null" if t is type(None) else t.__name__ for t in allowed)
            raise ConfigError(f"{field.name} must be of type {name}, got {value!r}")
        if type(value) is float and not math.isfinite(value):
            raise ConfigError(f"{field.name} must be finite, got {value}")


def _names(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _options_name(method: str) -> str:
    return method_class(method).options_type.__name__


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
