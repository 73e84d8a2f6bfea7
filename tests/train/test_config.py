"""Configuration: layers, checks, every shipped recipe, and the round trip through JSON."""

import json
from pathlib import Path
from typing import Any

import click
import pytest

from metah_runtime.errors import ConfigError
from metah_runtime.images.preprocess import Preprocess
from metah_train.cli.main import cli
from metah_train.config import RECIPES, Config, load, parse_assignment, read_recipe
from metah_train.methods import METHODS, method_class
from metah_train.methods.lsh import LSHOptions
from metah_train.methods.metah import ObjectiveOptions

FOLDER = Path(__file__).parents[2] / "train" / "metah_train" / "recipes"


def recipe(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def options(config: Config) -> Any:
    return config.options


def test_recipes_are_the_files_that_ship() -> None:
    assert sorted(RECIPES) == sorted(path.stem for path in FOLDER.glob("*.toml"))


@pytest.mark.parametrize("command", ["fit", "compare"])
def test_the_help_names_every_recipe(command: str) -> None:
    found = cli.get_command(click.Context(cli), command)
    assert found is not None
    (option,) = [o for o in found.params if o.name == "recipe"]
    assert isinstance(option, click.Option)
    assert option.help == f"{', '.join(RECIPES)}, or a TOML file."


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("direction", [None, "syn2real", "real2syn", "nus"])
def test_every_recipe_loads_for_every_method(name: str, method: str, direction: str | None) -> None:
    settings = {"method": method} | ({"direction": direction} if direction else {})
    config = load(name, settings)
    assert config.method == method
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("direction", "weights", "lr"),
    [
        ("syn2real", (6.0, 9.0, 0.8, 0.8, 0.01), 2e-5),
        ("real2syn", (10.0, 0.8, 1.0, 0.8, 0.01), 2e-5),
        ("nus", (1.0, 0.3, 0.8, 0.8, 0.01), 2e-4),
    ],
)
def test_paper_recipe_has_table_1(direction: str, weights: tuple[float, ...], lr: float) -> None:
    config = load("paper", {"direction": direction})
    o = options(config)
    assert (o.pairwise, o.quantization, o.adversarial, o.classifier, o.entropy) == weights
    assert (config.lr, config.optimizer, config.schedule) == (lr, "sgd", "halving")
    assert (o.form, o.balance) == ("released", False)


def test_layers_go_over_one_another(tmp_path: Path) -> None:
    path = recipe(
        tmp_path,
        "epochs = 3\nlr = 1\nbits = 8\nseed = 1\n[objective]\npairwise = 2\nentropy = 0.3\n"
        "[direction.a2b]\nseed = 2\n[direction.a2b.objective]\nentropy = 0.4\n"
        "[split]\nsynthetic = 100\n[preprocess]\nheight = 16\nwidth = 24\nbackground = [1, 2, 3]\n",
    )
    config = load(path, {"direction": "a2b", "bits": 16}, ["bits=24", "split.valid_fraction=0.2"])
    assert (config.epochs, config.lr, config.bits, config.seed) == (3, 1.0, 24, 2)
    assert (options(config).pairwise, options(config).entropy) == (2.0, 0.4)
    assert options(config).classifier == ObjectiveOptions().classifier
    assert (config.split.synthetic, config.split.valid_fraction) == (100, 0.2)
    assert config.preprocess == Preprocess(height=16, width=24, background=(1, 2, 3))
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("settings", "assignments", "expected"),
    [
        ({}, [], (Config.epochs, 3)),
        ({"epochs": 5}, [], (5, None)),
        ({}, ["epochs=5"], (5, None)),
        ({"epochs": 5}, ["steps=9"], None),
        ({"direction": "a2b"}, [], (2, None)),
        ({"direction": "a2b"}, ["steps=9"], (2, 9)),
    ],
)
def test_the_last_layer_says_how_long_to_train(
    tmp_path: Path,
    settings: dict[str, Any],
    assignments: list[str],
    expected: tuple[int, int | None] | None,
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("steps = 3\n[direction.a2b]\nepochs = 2\n")
    if expected is None:
        with pytest.raises(ConfigError, match="epochs=5 and steps=9 are two lengths of training"):
            load(recipe, settings, assignments)
        return
    config = load(recipe, settings, assignments)
    assert (config.epochs, config.steps) == expected


def test_a_method_keeps_the_terms_that_define_it() -> None:
    for name, dropped in (("tah", ("classifier", "entropy")), ("metah-e", ("entropy",))):
        o = options(load("digits", {"method": name}))
        assert all(getattr(o, term) == 0 for term in dropped)
        assert o.adversarial > 0
    assert type(load("digits", {"method": "lsh"}).options) is LSHOptions


def test_defaults_build_for_every_method() -> None:
    for name in METHODS:
        assert type(Config(method=name).options) is method_class(name).options_type


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr=0.5", ("lr", 0.5)),
        ("epochs = 3", ("epochs", 3)),
        ("lsh.center=false", ("lsh.center", False)),
        ("objective.form=paper", ("objective.form", "paper")),
        ('data="folder:a:b"', ("data", "folder:a:b")),
        ("data=folder:a=b:c", ("data", "folder:a=b:c")),
    ],
)
def test_assignments_are_toml_or_bare_words(text: str, expected: tuple[str, Any]) -> None:
    assert parse_assignment(text) == expected


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("epochs", "a setting must be key=value, got 'epochs'"),
        ("=3", "a setting must be key=value"),
        ("epoch=3", "'epoch' is not a setting; did you mean 'epochs'"),
        ("epochs=0", "epochs must be >= 1, got 0"),
        ("epochs=2.5", "epochs must be int, got float 2.5"),
        ("epochs=many", "epochs must be int, got str 'many'"),
        ("epochs=true", "epochs must be int, got bool True"),
        ("lr=0", "lr must be > 0, got 0"),
        ("lr=nan", "lr must be finite, got nan"),
        ("bits=50", "bits must be a multiple of 8 in 8..1024, got 50"),
        ("batch=1", "batch must be >= 2, got 1"),
        ("dropout=1", r"dropout must be in 0..0.99, got 1"),
        ("seed=-1", r"seed must be in 0..4294967295, got -1"),
        ("data_seed=4294967296", r"data_seed must be in 0..4294967295, got 4294967296"),
        ("optimizer=adam", "optimizer must be one of adamw, sgd, got 'adam'"),
        ("schedule=step", "schedule must be one of constant, cosine, halving"),
        ("statistics=source", "statistics must be one of target, training"),
        ("domains=both", "domains must be one of joint, separate"),
        ("device=tpu", "device must be one of cpu, cuda"),
        ("method=kitten", "method must be one of .*metah.*, got 'kitten'"),
        ("objective.entropy=-1", "entropy must be >= 0, got -1"),
        ("objective.entropi=1", r"'entropi' is not an option of \[objective\]; did you mean"),
        ("objective.form=gauss", "form must be one of .*cauchy.*, got 'gauss'"),
        ("objective.gamma=0", "gamma must be >= 1e-06, got 0"),
        ("objective.balance=1", "balance must be bool, got int 1"),
        ("objective.initial_std=thin", "initial_std must be float or null, got str 'thin'"),
        ("lsh.center=true", "'lsh' is not a table of method metah"),
        ("options=3", "'options' is not a setting"),
        ("split.synthetic=0", "synthetic must be a whole number >= 1, got 0"),
        ("preprocess.height=0", "height must be a whole number in 1"),
    ],
)
def test_a_bad_setting_is_named(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("digits", {}, [assignment])


@pytest.mark.parametrize(
    ("method", "assignment", "message"),
    [
        ("tah", "objective.entropy=0.1", "TAH has no entropy term: .* must be 0, got 0.1"),
        ("metah-e", "objective.entropy=0.1", "METAH-e has no entropy term"),
        ("source", "objective.adversarial=1", "source only has no adversarial term"),
        ("lsh", "lsh.fit_on=all", "fit_on must be one of both, source, target"),
    ],
)
def test_a_setting_that_contradicts_the_method_is_refused(
    method: str, assignment: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load("digits", {"method": method}, [assignment])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", r"'epoch' is not a setting .*did you mean 'epochs'"),
        ("[objektive]\n", r"'objektive' is not a table of a recipe .*did you mean 'objective'"),
        ("[objective]\nlp = 1", r"'lp' is not an option of \[objective\]"),
        ("[lsh]\ncentre = true", r"'centre' is not an option of \[lsh\].*did you mean 'center'"),
        ("[direction.a2b]\nepoch = 3", r"'epoch' is not a setting"),
        ("[direction.a2b.lsh]\nx = 3", r"'x' is not an option of \[lsh\]"),
        ("direction = 'a2b'", r"direction must be tables"),
        ("[direction]\na2b = 3", r"direction must be tables"),
        ("epochs = ", "is not TOML"),
        ("epochs = [3]", r"epochs must be int, got list \[3\]"),
    ],
)
def test_a_bad_recipe_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(recipe(tmp_path, text))


def test_a_recipe_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file"):
        read_recipe(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_recipe(tmp_path)
    (tmp_path / "bad").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        read_recipe(tmp_path / "bad")


def test_an_unknown_key_in_a_saved_config_is_refused() -> None:
    saved = Config().to_dict()
    with pytest.raises(ConfigError, match="'color' is not a setting"):
        Config.from_dict({**saved, "color": 1})
    with pytest.raises(ConfigError, match="'color' is not an option"):
        Config.from_dict({**saved, "options": {"color": 1}})
    with pytest.raises(ConfigError, match="method must be one of"):
        Config.from_dict({**saved, "method": "x"})
    with pytest.raises(ConfigError, match="options of metah must be ObjectiveOptions"):
        Config(options=LSHOptions())


def test_a_recipe_may_begin_with_a_byte_order_mark_and_end_lines_as_windows_does(
    tmp_path: Path,
) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes("bits = 16\r\nepochs = 3\r\n".encode("utf-8-sig"))
    assert (load(path).bits, load(path).epochs) == (16, 3)
