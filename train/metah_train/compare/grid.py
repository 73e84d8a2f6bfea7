"""Which trials a comparison has: methods x code lengths x seeds, each with its full Config."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metah_runtime import files, schema
from metah_runtime.errors import ConfigError
from metah_train.config import Config, load, parse_assignment
from metah_train.methods import METHODS, method_class

PAPER = tuple(name for name in METHODS if name not in ("source", "metah-plus"))
"""The methods of the tables of Zhuo et al. 2020."""

_AXES = {"method": "--methods", "bits": "--bits", "seed": "--seeds"}
_ALSO = {"data": "--data", "direction": "--direction"}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training run of the grid; ``key``: SHA-256 of everything that decides its result.

    variant: the name of its row, where that is not its method.
    """

    config: Config
    key: str
    variant: str = ""

    @property
    def row(self) -> str:
        """Name of its row in tables: the variant or the method."""
        return self.variant or self.config.method

    @property
    def title(self) -> str:
        """Title of its row."""
        return self.variant or method_class(self.config.method).title

    @property
    def name(self) -> str:
        """Name of its folder, METHOD-BITS-sSEED-KEY."""
        config = self.config
        return f"{config.method}-{config.bits}-s{config.seed}-{self.key[:12]}"

    @property
    def label(self) -> str:
        """Name for people."""
        config = self.config
        return f"{self.row}, {config.bits} bits, seed {config.seed}"


def plan(
    recipe: str | Path,
    *,
    data: str | None,
    direction: str | None,
    methods: Sequence[str],
    bits: Sequence[int],
    seeds: Mapping[str, Sequence[int]],
    assignments: Iterable[str] = (),
    variants: Iterable[str] = (),
    labels: str | None = None,
    skipped: tuple[str, ...] = (),
    defaults: Mapping[str, Any] | None = None,
) -> list[Trial]:
    """Return the trials, seed by seed, so that an early table already has every method.

    seeds: of each method in ``methods``. assignments: ``KEY=VALUE`` for all methods (an option of
    a table only for those that read it) or ``METHOD:KEY=VALUE`` for one. variants: further rows,
    ``NAME=METHOD[,KEY=VALUE]...``, of one of ``methods`` and with its seeds and settings, changed.
    labels: a file that labels images of the target. skipped: images that all trials leave out.
    defaults: settings that go over the recipe, below what is given.
    Raises ConfigError.
    """
    known = ", ".join(METHODS)
    for name in methods:
        if name not in METHODS:
            hint = schema.did_you_mean(name, METHODS)
            raise ConfigError(f"methods must be of {known}; got {name!r}{hint}")
    _check_once("methods", methods)
    _check_once("bits", bits)
    common: dict[str, Any] = {"threads": 1, "labels": labels, "skipped": skipped}
    if data is not None:
        common["data"] = data
    if direction is not None:
        common["direction"] = direction
    own = _assignments(assignments, methods)
    rows = [(name, "", own[name]) for name in methods]
    for text in variants:
        variant, name, changes = _variant(text, methods)
        rows.append((name, variant, own[name] + changes))
    _check_once("rows", [variant or name for name, variant, _ in rows])
    trials: dict[str, Trial] = {}
    longest = max((len(seeds[name]) for name in methods), default=0)
    for turn in range(longest):
        for width in bits:
            for name, variant, changes in rows:
                if turn >= len(seeds[name]):
                    continue
                settings = {**common, "method": name, "bits": width, "seed": seeds[name][turn]}
                if any(text.partition("=")[0].strip() == "threads" for text in changes):
                    del settings["threads"]
                config = load(recipe, settings, changes, defaults=defaults)
                if config.devices > 1:
                    raise ConfigError(
                        f"devices must be 1, got {config.devices}: the grid trains each trial in a "
                        f"process of its own; fix: --workers {config.devices}"
                    )
                trial = Trial(config=config, key=trial_key(config), variant=variant)
                twin = trials.setdefault(trial.key, trial)
                if twin is not trial:
                    raise ConfigError(f"rows {twin.row} and {trial.row} have the same settings")
    return list(trials.values())


def trial_key(config: Config) -> str:
    """Return the SHA-256 (64 hex digits) of a configuration and of the weights file it names."""
    settings = config.to_dict()
    if config.weights is not None:
        try:
            settings["weights"] = files.sha256(Path(config.weights))
        except OSError as error:
            raise ConfigError(f"weights {config.weights}: {error.strerror}") from None
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def parse_seeds(texts: Sequence[str], methods: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Parse ``--seeds``: a number of seeds (``5``: 0..4) or a list (``0,1,7``), for all methods.

    ``METHOD=SPEC`` overrides it for one method. Raises ConfigError.
    """
    common: tuple[int, ...] | None = None
    own: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, equals, spec = text.rpartition("=")
        values = _seeds(spec)
        if not equals:
            if common is not None:
                raise ConfigError(f"--seeds is given twice for all methods: {text!r} is the second")
            common = values
        elif name not in methods:
            raise ConfigError(f"--seeds {text}: {name!r} is not one of the methods compared")
        elif name in own:
            raise ConfigError(f"--seeds is given twice for {name}")
        else:
            own[name] = values
    shared = (0, 1, 2) if common is None else common
    return {name: own.get(name, shared) for name in methods}


def parse_numbers(text: str, option: str) -> tuple[int, ...]:
    """Parse whole numbers separated by commas."""
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"{option} must be whole numbers separated by commas, got {text!r}"
        ) from None
    _check_once(option, values)
    return values


def _seeds(text: str) -> tuple[int, ...]:
    values = parse_numbers(text.rstrip(","), "--seeds")
    if "," in text:
        return values
    if not 1 <= values[0] <= 1000:
        raise ConfigError(
            f"--seeds N asks for N seeds, N in 1..1000, got {text}; one seed: --seeds {text},"
        )
    return tuple(range(values[0]))


def _assignments(texts: Iterable[str], methods: Sequence[str]) -> dict[str, list[str]]:
    """Sort ``[METHOD:]KEY=VALUE`` by method; refuse what the grid itself sets or nothing reads."""
    own: dict[str, list[str]] = {name: [] for name in methods}
    single: dict[str, list[str]] = {name: [] for name in methods}
    for text in texts:
        prefix, colon, _ = text.partition("=")[0].partition(":")
        if colon:
            if prefix not in methods:
                raise ConfigError(f"--set {text}: {prefix!r} is not one of the methods compared")
            body = text.partition(":")[2]
            single[prefix].append(body)
        else:
            body = text
        key = parse_assignment(body)[0]
        option = (_AXES | _ALSO).get(key)
        if option:
            raise ConfigError(f"--set {text}: the grid sets {key}; fix: {option}")
        if colon:
            continue
        section, dot, _ = key.partition(".")
        readers = [
            name
            for name in methods
            if not dot
            or section in ("split", "preprocess", method_class(name).options_type.section)
        ]
        if not readers:
            raise ConfigError(f"--set {text}: no method compared reads the table [{section}]")
        for name in readers:
            own[name].append(body)
    return {name: own[name] + single[name] for name in methods}


def _variant(text: str, methods: Sequence[str]) -> tuple[str, str, list[str]]:
    """Parse ``NAME=METHOD[,KEY=VALUE]...``: (name, method, assignments)."""
    variant, equals, rest = text.partition("=")
    name, *changes = (part.strip() for part in rest.split(","))
    if not equals or not variant.strip() or not changes:
        raise ConfigError(f"--row must be NAME=METHOD,KEY=VALUE[,KEY=VALUE]..., got {text!r}")
    if name not in methods:
        raise ConfigError(f"--row {text}: {name!r} is not one of the methods compared")
    for change in changes:
        option = (_AXES | _ALSO).get(parse_assignment(change)[0])
        if option:
            raise ConfigError(f"--row {text}: the grid sets that; fix: {option}")
    return variant.strip(), name, changes


def _check_once(what: str, values: Sequence[Any]) -> None:
    if not values:
        raise ConfigError(f"{what} must name at least one, got none")
    for value in values:
        if values.count(value) > 1:
            raise ConfigError(f"{what} names {value} twice")
