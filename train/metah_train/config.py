"""The configuration of a training run: defaults here, a TOML recipe over them, options over that.

A recipe is a TOML file. Its top-level keys are fields of ``Config``. A table such as
``[objective]`` or ``[lsh]`` sets the options of the methods that read it, and ``[direction.NAME]``
overrides both for one transfer direction; ``[split]`` and ``[preprocess]`` set how the data is
divided and read. ``extends`` names a shipped recipe that it goes over. An unknown key is an error
everywhere.
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
from typing import Any, ClassVar, Self, TypeVar

from metah_runtime.checks import check_threads
from metah_runtime.codes import check_bits
from metah_runtime.errors import ConfigError
from metah_runtime.images.preprocess import Preprocess
from metah_train.data.splits import SplitSizes
from metah_train.methods import METHODS, method_class

T = TypeVar("T")

RECIPES = ("digits", "emoji", "metah-plus", "paper", "photos")
"""Recipes that ship with the package; any other name is the path of a TOML file."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a family of methods: one table of a recipe, named by ``section``.

    base: a table whose values come first, where the options extend those of another family.
    """

    section: ClassVar[str] = ""
    base: ClassVar[str] = ""

    def __post_init__(self) -> None:
        _check_types(self)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a training run; the same Config and data give the same codes.

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
    options: Options = dataclasses.field(default_factory=Options)

    def __post_init__(self) -> None:
        _check_types(self, skip=NESTED)
        if self.method not in METHODS:
            raise ConfigError(f"method must be one of {_listed(METHODS)}, got {self.method!r}")
        if type(self.options) is Options:
            chosen = method_class(self.method)
            object.__setattr__(self, "options", chosen.options_type(**chosen.preset({})))
        if type(self.options) is not method_class(self.method).options_type:
            raise ConfigError(f"options of {self.method} must be {_options_name(self.method)}")
        check_bits(self.bits)
        check_threads(self.threads)
        one_of(self, "statistics", ("target", "training"))
        one_of(self, "domains", ("separate", "joint"))
        one_of(self, "optimizer", ("adamw", "sgd"))
        one_of(self, "schedule", ("cosine", "halving", "constant"))
        one_of(self, "device", ("cpu", "cuda"))
        one_of(self, "precision", ("32-true", "bf16-mixed"))
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
        method_class(self.method).check(self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; ``Config.from_dict`` gives an equal Config back.

        Settings in ADDED are left out at their default: what is known by a digest of these values
        (a cell of a comparison, a cached backbone) keeps its name.
        """
        values = dataclasses.asdict(self)
        return {k: v for k, v in values.items() if k not in ADDED or v != getattr(Config, k)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from the dictionary of ``to_dict``; raises ConfigError for an unknown key."""
        flat = dict(values)
        method = flat.get("method", cls.method)
        if method not in METHODS:
            raise ConfigError(f"method must be one of {_listed(METHODS)}, got {method!r}")
        options, split = flat.pop("options", {}), flat.pop("split", {})
        preprocess = flat.pop("preprocess", None)
        _check_keys(flat, SETTINGS, "a setting")
        return cls(
            **flat,
            split=_build(SplitSizes, "split", split),
            preprocess=None if preprocess is None else Preprocess.from_dict(preprocess),
            options=_build(method_class(method).options_type, method, options),
        )

    def stage(self, **changes: Any) -> Self:
        """Return a copy with some settings changed, checked again."""
        return dataclasses.replace(self, **changes)


NESTED = ("split", "preprocess", "options")
ADDED = ("devices", "precision")
SETTINGS = {field.name for field in dataclasses.fields(Config)} - set(NESTED)


def load(
    recipe: str | Path = "digits",
    settings: Mapping[str, Any] | None = None,
    assignments: Iterable[str] = (),
) -> Config:
    """Build the Config of ``recipe`` < ``settings`` (Config fields) < ``assignments`` (key=value).

    ``epochs`` in a later layer takes the place of an earlier layer's ``steps``; ``steps`` go before
    ``epochs``. The method keeps the terms that define it: TAH drops the classifier's weight that a
    recipe states for METAH, while an assignment that contradicts the method is an error.
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
    for layer in (*layers, given):
        _check_length(layer)
        if "epochs" in layer:
            values.pop("steps", None)
        for key, value in layer.items():
            if isinstance(value, dict) and layer is not given:
                tables.setdefault(key, {}).update(value)
            else:
                values[key] = value
    _check_keys(values, SETTINGS, "a setting")
    method = values.get("method", Config.method)
    if method not in METHODS:
        raise ConfigError(f"method must be one of {_listed(METHODS)}, got {method!r}")
    chosen = method_class(method)
    own = chosen.options_type.section
    used = {name: tables.get(name, {}) for name in ("split", "preprocess", own)}
    used[own] = dict(chosen.preset({**tables.get(chosen.options_type.base, {}), **used[own]}))
    for key, value in assigned:
        section, dot, name = key.partition(".")
        if dot:
            _check_keys([section], used, f"a table of method {method}")
            used[section][name] = value
    return Config(
        **values,
        split=_build(SplitSizes, "split", used["split"]),
        preprocess=_build(Preprocess, "preprocess", used["preprocess"])
        if used["preprocess"]
        else None,
        options=_build(chosen.options_type, own, used[own]),
    )


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
    base = table.pop("extends", None)
    directions = table.get("direction", {})
    tables = directions.values() if isinstance(directions, dict) else [directions]
    if not all(isinstance(layer, dict) for layer in tables):
        raise ConfigError(f"direction must be tables [direction.NAME] in a recipe ({recipe})")
    for layer in ({k: v for k, v in table.items() if k != "direction"}, *directions.values()):
        _check_layer(layer, str(recipe))
    if base is None:
        return table
    if base not in RECIPES or base == recipe:
        raise ConfigError(f"extends must be one of {_listed(RECIPES)} ({recipe}), got {base!r}")
    return _over(read_recipe(base), table)


def _over(base: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """Put a table over another, key by key in sub-tables too."""
    merged = dict(base)
    for key, value in table.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _over(base[key], value) if both else value
    return merged


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
    sections = {"split": _names(SplitSizes), "preprocess": _names(Preprocess)}
    for name in METHODS:
        options_type = method_class(name).options_type
        sections.setdefault(options_type.section, set()).update(_names(options_type))
    for key, value in layer.items():
        if isinstance(value, dict):
            _check_keys([key], sections, f"a table of a recipe ({recipe})")
            _check_keys(value, sections[key], f"an option of [{key}] ({recipe})")
        else:
            _check_keys([key], SETTINGS, f"a setting ({recipe})")


def _check_length(layer: Mapping[str, Any]) -> None:
    """Raise ConfigError if a layer states the length of training twice."""
    if "epochs" in layer and layer.get("steps") is not None:
        raise ConfigError(
            f"epochs={layer['epochs']} and steps={layer['steps']} are two lengths of training; "
            "fix: give one of them"
        )


def _build(kind: type[T], section: str, table: Mapping[str, Any]) -> T:
    """Build a dataclass from a table of a recipe; lists become tuples."""
    _check_keys(table, _names(kind), f"an option of [{section}]")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"[{section}]: {str(error).partition(') ')[2] or error}") from None


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
