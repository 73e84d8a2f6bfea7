"""The configuration of a training run: defaults here, a TOML recipe over them, options over that.

A recipe is a TOML file. Its top-level keys are fields of ``Config``. A table such as
``[objective]`` or ``[lsh]`` sets the options of the methods that read it, and ``[direction.NAME]``
overrides both for one transfer direction; ``[split]`` and ``[preprocess]`` set how the data is
divided and read. ``extends`` names a shipped recipe that it goes over. An unknown key is an error
everywhere.
"""

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from metah_runtime import schema
from metah_runtime.errors import ConfigError
from metah_runtime.images.preprocess import Preprocess
from metah_train.data import default_preprocess
from metah_train.data.splits import SplitSizes
from metah_train.methods import METHODS, method_class
from metah_train.settings import ADDED, NESTED, Options, Settings, listed

if TYPE_CHECKING:
    from metah_train.methods.base import Method

RECIPES = ("digits", "emoji", "metah-plus", "paper", "photos", "small")
"""Recipes that ship with the package; any other name is the path of a TOML file."""


class Config(Settings):
    """Settings whose options are those of the method; see ``Settings`` for the fields."""

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = _method(self.method)
        if type(self.options) is Options:
            object.__setattr__(self, "options", chosen.options_type(**chosen.preset({})))
        if type(self.options) is not chosen.options_type:
            raise ConfigError(f"options of {self.method} must be {chosen.options_type.__name__}")
        chosen.check(self.in_training())
        if self.head == "itq" and not chosen.trains_head:
            raise ConfigError(
                f"{chosen.title} fits its head on features: head must be trained, got itq"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from the dictionary of ``to_dict``; raises ConfigError for an unknown key."""
        flat = {**ADDED, **values}
        chosen = _method(flat.get("method", cls.method))
        options, split = flat.pop("options", {}), flat.pop("split", {})
        preprocess = flat.pop("preprocess", None)
        schema.check_keys(flat, SETTINGS, "a setting")
        return cls(
            **flat,
            split=schema.from_table(SplitSizes, split, "an option of [split]"),
            preprocess=None if preprocess is None else Preprocess.from_dict(preprocess),
            options=schema.from_table(chosen.options_type, options, f"an option of {chosen.title}"),
        )


SETTINGS = {field.name for field in dataclasses.fields(Config)} - set(NESTED)


def load(
    recipe: str | Path = "digits",
    settings: Mapping[str, Any] | None = None,
    assignments: Iterable[str] = (),
    *,
    defaults: Mapping[str, Any] | None = None,
) -> Config:
    """Build the Config of ``recipe`` < ``settings`` (Config fields) < ``assignments`` (key=value).

    defaults: Config fields that go over the recipe, below what is given.
    ``epochs`` in a later layer takes the place of an earlier layer's ``steps``; ``steps`` go before
    ``epochs``. The method keeps the terms that define it: TAH drops the classifier's weight that a
    recipe states for METAH, while an assignment that contradicts the method is an error.
    Of [preprocess] what nobody states is that of the data set, if a side is among it.
    Raises ConfigError for an unknown key, a wrong type or a value out of range.
    """
    table = read_recipe(recipe)
    directions = table.pop("direction", {})
    given = dict(settings or {})
    assigned = [parse_assignment(text) for text in assignments]
    given.update({key: value for key, value in assigned if "." not in key})
    direction = given.get("direction")
    layers = [table, *([directions[direction]] if direction in directions else [])]
    layers.append(dict(defaults or {}))
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
    schema.check_keys(values, SETTINGS, "a setting")
    method = values.get("method", Config.method)
    chosen = _method(method)
    own = chosen.options_type.section
    used = {name: tables.get(name, {}) for name in ("split", "preprocess", own)}
    used[own] = dict(chosen.preset({**tables.get(chosen.options_type.base, {}), **used[own]}))
    for key, value in assigned:
        section, dot, name = key.partition(".")
        if dot:
            schema.check_keys([section], used, f"a table of method {method}")
            used[section][name] = value
    if used["preprocess"] and not {"height", "width"} <= used["preprocess"].keys():
        whole = default_preprocess(values.get("data", Config.data)).to_dict()
        used["preprocess"] = {**whole, **used["preprocess"]}
    return Config(
        **values,
        split=schema.from_table(SplitSizes, used["split"], "an option of [split]"),
        preprocess=schema.from_table(Preprocess, read, "an option of [preprocess]", "preprocess")
        if (read := used["preprocess"])
        else None,
        options=schema.from_table(chosen.options_type, used[own], f"an option of [{own}]"),
    )


def differences(
    before: Config,
    recipe: str | Path | None,
    settings: Mapping[str, Any],
    assignments: Iterable[str] = (),
) -> str:
    """Return how what is asked for differs from the settings of a run, empty if it does not.

    recipe None: only what ``settings`` and ``assignments`` name is compared.
    """
    assignments = tuple(assignments)
    asked = load(recipe or "digits", {"method": before.method, **settings}, assignments)
    keys: list[str] = [*settings, *(parse_assignment(text)[0] for text in assignments)]
    if recipe is not None:
        keys += [*sorted(SETTINGS - {"skipped"}), *NESTED]
    found = []
    for key in dict.fromkeys(keys):
        section, dot, name = key.partition(".")
        part = section if not dot or section in ("split", "preprocess") else "options"
        old, new = (getattr(config, part) for config in (before, asked))
        if dot:
            old, new = getattr(old, name, None), getattr(new, name, None)
        if old != new:
            found.append(f"{key} was {old!r}, is {new!r}")
    return "; ".join(found)


def read_recipe(recipe: str | Path) -> dict[str, Any]:
    """Read a shipped recipe by name or a TOML file by path, and check every key in it."""
    try:
        if str(recipe) in RECIPES:
            text = resources.files("metah_train").joinpath(f"recipes/{recipe}.toml").read_text()
        else:
            text = Path(recipe).read_text(encoding="utf-8-sig")
        table = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(
            f"recipe {str(recipe)!r} cannot be read ({reason}); "
            f"fix: one of {listed(RECIPES)} or the path of a TOML file"
            f"{schema.did_you_mean(recipe, RECIPES)}"
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
        raise ConfigError(f"extends must be one of {listed(RECIPES)} ({recipe}), got {base!r}")
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


def _check_layer(layer: Mapping[str, Any], recipe: str) -> None:
    sections = {"split": _names(SplitSizes), "preprocess": _names(Preprocess)}
    for name in METHODS:
        options_type = method_class(name).options_type
        sections.setdefault(options_type.section, set()).update(_names(options_type))
    for key, value in layer.items():
        if isinstance(value, dict):
            schema.check_keys([key], sections, f"a table of a recipe ({recipe})")
            schema.check_keys(value, sections[key], f"an option of [{key}] ({recipe})")
        else:
            schema.check_keys([key], SETTINGS, f"a setting ({recipe})")


def _check_length(layer: Mapping[str, Any]) -> None:
    """Raise ConfigError if a layer states the length of training twice."""
    if "epochs" in layer and layer.get("steps") is not None:
        raise ConfigError(
            f"epochs={layer['epochs']} and steps={layer['steps']} are two lengths of training; "
            "fix: give one of them"
        )


def _names(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _method(name: Any) -> "type[Method[Any]]":
    if name not in list(METHODS):
        hint = schema.did_you_mean(name, METHODS)
        raise ConfigError(f"method must be one of {listed(METHODS)}, got {name!r}{hint}")
    return method_class(name)
