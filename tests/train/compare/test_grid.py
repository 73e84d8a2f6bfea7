"""Which trials a comparison has, and what makes a trial another one."""

from collections.abc import Callable
from typing import Any

import pytest

from metah_runtime.errors import ConfigError
from metah_train.compare.grid import PAPER, Trial, parse_numbers, parse_seeds, plan

MakeTrials = Callable[..., list[Trial]]


def test_the_default_is_the_thirteen_methods_of_the_tables() -> None:
    expected = (
        *("lsh", "sh", "itq", "ksh", "sdh", "cnnh", "dnnh", "dhn", "hashnet"),
        *("thn", "tah", "metah-e", "metah"),
    )
    assert expected == PAPER


def test_trials_come_seed_by_seed_with_one_thread(make_trials: MakeTrials) -> None:
    trials = make_trials("lsh", "metah", bits=(16, 24), seeds=(0, 7))
    found = [(c.config.seed, c.config.bits, c.config.method) for c in trials]
    assert found == [(s, b, m) for s in (0, 7) for b in (16, 24) for m in ("lsh", "metah")]
    assert {c.config.threads for c in trials} == {1}
    assert len({c.key for c in trials}) == len({c.name for c in trials}) == 8
    assert trials[0].name.startswith("lsh-16-s0-")


def test_a_key_depends_on_every_setting_and_on_nothing_else(make_trials: MakeTrials) -> None:
    (one,) = make_trials("metah")
    assert make_trials("metah")[0].key == one.key
    assert make_trials("lsh", "metah", bits=(32, 16), seeds=(1, 0))[-1].key == one.key
    changed = (
        *("epochs=2", "lr=2e-3", "data_seed=1", "objective.entropy=0.07"),
        *("split.valid_fraction=0.2", "preprocess.height=24", "threads=2"),
    )
    for text in changed:
        (other,) = make_trials("metah", assignments=("epochs=1", text))
        assert other.key != one.key, text


def test_each_method_may_have_its_own_seeds(make_trials: MakeTrials) -> None:
    assert parse_seeds([], ["lsh"]) == {"lsh": (0, 1, 2)}
    assert parse_seeds(["2", "metah=3,5,8"], ["lsh", "metah"]) == {
        "lsh": (0, 1),
        "metah": (3, 5, 8),
    }
    assert parse_seeds(["4,"], ["lsh"]) == {"lsh": (4,)}
    trials = plan(
        "digits",
        data=None,
        direction=None,
        methods=["lsh", "metah"],
        bits=[16],
        seeds={"lsh": (0,), "metah": (0, 1)},
    )
    assert [(c.config.method, c.config.seed) for c in trials] == [
        ("lsh", 0),
        ("metah", 0),
        ("metah", 1),
    ]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["x"], "must be whole numbers separated by commas, got 'x'"),
        (["0"], "N in 1..1000, got 0; one seed: --seeds 0,"),
        (["1,1"], "names 1 twice"),
        (["3", "4"], "given twice for all methods: '4' is the second"),
        (["dhn=3"], "'dhn' is not one of the methods compared"),
        (["lsh=1", "lsh=2"], "given twice for lsh"),
    ],
)
def test_bad_seeds(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_seeds(texts, ["lsh"])


def test_bad_numbers() -> None:
    assert parse_numbers("32,48", "--bits") == (32, 48)
    with pytest.raises(ConfigError, match="--bits names 32 twice"):
        parse_numbers("32,32", "--bits")


def test_a_setting_goes_to_the_methods_that_read_it(make_trials: MakeTrials) -> None:
    texts = ("objective.gamma=4.0", "metah:objective.entropy=0.02", "lsh:lr=0.5")
    lsh, tah, metah = (c.config for c in make_trials("lsh", "tah", "metah", assignments=texts))
    assert (tah.options.gamma, metah.options.gamma) == (4.0, 4.0)  # type: ignore[attr-defined]
    assert metah.options.entropy == 0.02  # type: ignore[attr-defined]
    assert tah.options.entropy == 0  # type: ignore[attr-defined]
    assert (lsh.lr, tah.lr) == (0.5, 1e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed=3", "the grid sets seed; fix: --seeds"),
        ("metah:bits=8", "the grid sets bits; fix: --bits"),
        ("data=digits", "the grid sets data; fix: --data"),
        ("dhn:lr=1", "'dhn' is not one of the methods compared"),
        ("ksh.anchors=3", r"no method compared reads the table \[ksh\]"),
        ("epoch=3", "did you mean 'epochs'"),
        ("epochs", "must be key=value"),
    ],
)
def test_bad_settings(text: str, message: str, make_trials: MakeTrials) -> None:
    with pytest.raises(ConfigError, match=message):
        make_trials("lsh", "metah", assignments=(text,))


def test_bad_methods(make_trials: MakeTrials) -> None:
    with pytest.raises(ConfigError, match=r"methods must be of .*; got 'metha'"):
        make_trials("metha")
    with pytest.raises(ConfigError, match="methods names lsh twice"):
        make_trials("lsh", "lsh")
    with pytest.raises(ConfigError, match="must name at least one"):
        make_trials()


def test_rows_of_variants(make_trials: MakeTrials) -> None:
    trials = make_trials(
        "lsh",
        "metah-plus",
        seeds=(0, 1),
        variants=("with h x p=metah-plus,plus.judge=h x p", "slow=lsh,lr=2e-3,lsh.center=false"),
    )
    rows = ["lsh", "metah-plus", "with h x p", "slow"]
    assert [trial.row for trial in trials] == rows * 2
    assert [trial.title for trial in trials[:4]] == ["LSH", "METAH+", "with h x p", "slow"]
    assert trials[2].label == "with h x p, 16 bits, seed 0"
    assert trials[2].name.startswith("metah-plus-16-s0-")
    assert [trial.config.method for trial in trials[:4]] == [
        "lsh",
        "metah-plus",
        "metah-plus",
        "lsh",
    ]
    options: Any = trials[2].config.options
    assert options.judge == "h x p"
    assert len({trial.key for trial in trials}) == 8
    assert trials[1].key == make_trials("metah-plus")[0].key


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("a", "--row must be NAME=METHOD,KEY=VALUE"),
        ("a=lsh", "--row must be NAME=METHOD,KEY=VALUE"),
        ("=lsh,lr=1", "--row must be NAME=METHOD,KEY=VALUE"),
        ("a=tah,lr=1", "'tah' is not one of the methods compared"),
        ("a=lsh,bits=8", "the grid sets that; fix: --bits"),
        ("a=lsh,lr", "a setting must be key=value, got 'lr'"),
        ("lsh=lsh,lr=1", "rows names lsh twice"),
        ("a=lsh,epochs=1", "rows lsh and a have the same settings"),
    ],
)
def test_bad_rows(variant: str, message: str, make_trials: MakeTrials) -> None:
    with pytest.raises(ConfigError, match=message):
        make_trials("lsh", variants=(variant,))
