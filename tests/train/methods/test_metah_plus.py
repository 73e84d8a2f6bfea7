"""METAH+: each option alone, its identity with METAH-e, averages, batch norm of two domains."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from metah_runtime.errors import ConfigError
from metah_runtime.images.preprocess import Preprocess
from metah_train.backbones.domain_norm import SourceNorm
from metah_train.backbones.efficientnet import EfficientNetLite0
from metah_train.config import load
from metah_train.data.base import ArrayImages
from metah_train.evaluation.encode import encode
from metah_train.methods import method_class
from metah_train.methods.averaging import Average
from metah_train.methods.base import Batch, Task, TrainingProgress
from metah_train.methods.metah_plus import MORE, METAHPlus, PlusOptions
from metah_train.training.loop import fit
from metah_train.training.schedule import build_optimizer

QUICK = ["epochs=2", "batch=12", "features=16", "warmup=2", "threads=1", "bits=16"]
TASK = Task(height=16, width=16, channels=1, classes=3)
OPTIONS = {
    "confusion": ["plus.confusion=1"],
    "judge": ["plus.judge=h x p"],
    "codeword": ["plus.codeword=0.5"],
    "norm": ["plus.norm=domain"],
    "bits": ["plus.bit_balance=0.1", "plus.bit_correlation=0.1"],
    "average": ["plus.average=0.9"],
    "pseudo": ["plus.pseudo=0.5", "plus.pseudo_confidence=0.4"],
    "consistency": ["plus.consistency=1", "plus.consistency_confidence=0.4"],
    "neighbours": ["plus.neighbours=1", "plus.neighbours_count=3"],
}
OFF = ["plus.confusion=0", "plus.consistency=0"]
ALL = [setting for settings in OPTIONS.values() for setting in settings]


def method(*settings: str) -> METAHPlus:
    torch.manual_seed(0)
    config = load("digits", {"method": "metah-plus"}, [*QUICK, *OFF, *settings]).in_training()
    built = method_class("metah-plus")(config, TASK)
    assert isinstance(built, METAHPlus)
    twelve = ArrayImages(np.zeros((12, 16, 16, 1), np.uint8), None, [str(i) for i in range(12)])
    built.prepare(twelve, twelve)
    return built


def batch(n: int = 12) -> Batch:
    torch.manual_seed(1)
    images = torch.randint(0, 256, (2, n, 16, 16, 1), dtype=torch.uint8)
    labels = torch.arange(n) % 3
    rows = torch.arange(n)
    return Batch(
        source=images[0], labels=labels, indices=rows, target=images[1], target_indices=rows
    )


def test_with_every_option_off_it_is_metah_e(make_split: Any, tmp_path: Path) -> None:
    split = make_split(gap=1)
    off = load("digits", {"method": "metah-plus"}, [*QUICK, *OFF])
    plus = fit(off, split, tmp_path / "plus")
    twin = fit(load("digits", {"method": "metah-e"}, QUICK), split, tmp_path / "twin")
    assert np.array_equal(encode(plus.model, split.query)[1], encode(twin.model, split.query)[1])
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("plus", "twin")]
    assert logs[0] == logs[1]


class _StoppedError(Exception):
    pass


def test_with_every_option_on_it_resumes_to_the_same_codes(make_split: Any, tmp_path: Path) -> None:
    split = make_split(gap=1)
    settings = load("digits", {"method": "metah-plus"}, [*QUICK, *ALL, "plus.pseudo_start=0"])
    whole = fit(settings, split, tmp_path / "whole")

    def stop(step: int, total: int, _: Any) -> None:
        if step == total - 2:
            raise _StoppedError

    with pytest.raises(_StoppedError):
        fit(settings, split, tmp_path / "stopped", report=stop)
    again = fit(settings, split, tmp_path / "stopped", resume=True)
    assert np.array_equal(encode(whole.model, split.query)[1], encode(again.model, split.query)[1])
    log = (tmp_path / "whole" / "metrics.jsonl").read_text()
    for term in MORE:
        assert f'"{term}"' in log
    assert '"entropy"' not in log


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_changes_training_and_keeps_the_shape_of_the_network(name: str) -> None:
    plain, changed = method(), method(*OPTIONS[name])
    assert plain.model.state_dict().keys() == changed.model.state_dict().keys()
    if name in ("norm", "average"):
        return  # tested below
    progress = TrainingProgress(step=5, total=10)
    one, two = (
        {k: float(v.detach()) for k, v in m.terms(batch(), progress).items()}
        for m in (plain, changed)
    )
    assert one != two
    added = {term for term in two if term not in one}
    assert added == {s.partition("=")[0][5:] for s in OPTIONS[name]} - {
        "judge",
        "pseudo_confidence",
        "consistency_confidence",
        "neighbours_count",
    }
    assert set(two) <= set(changed.weights)


def test_neighbours_rise_and_remember() -> None:
    built, images = method("plus.neighbours=1").eval(), batch()
    assert built.memory is not None
    at = [TrainingProgress(step=step, total=10) for step in (0, 5, 10)]
    first, half, whole = (float(built.terms(images, p)["neighbours"].detach()) for p in at)
    assert first == 0  # nothing seen yet
    assert 0 < half == pytest.approx(whole / 2, rel=0.05)  # the noise differs
    assert built.memory.seen.all()


def test_pseudo_labels_wait_and_need_confidence() -> None:
    early, late = TrainingProgress(step=2, total=10), TrainingProgress(step=3, total=10)
    some = method("plus.pseudo=1", "plus.pseudo_confidence=0")
    assert "pseudo" not in some.terms(batch(), early)
    found = some.terms(batch(), late)
    assert found["pseudo"] != found["pairwise"]
    torch.manual_seed(7)
    none = method("plus.pseudo=1", "plus.pseudo_confidence=1").eval()
    found = none.terms(batch(), late)  # nobody is so sure: the source's own pairs are left
    assert torch.equal(found["pseudo"], found["pairwise"])


def test_consistency_learns_from_the_distorted_view_alone() -> None:
    late, off = TrainingProgress(step=3, total=10), "plus.adversarial=0"
    built = method("plus.consistency=1", "plus.consistency_confidence=0", off).eval()
    images = batch()
    plain = built.model.pixels(images.target)
    seen: list[torch.Tensor] = []
    built.model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    loss = built.terms(images, late)["consistency"]
    assert len(seen) == 3  # source, target, the target's distorted view
    assert not torch.allclose(seen[2] / 2 + 0.5, plain, atol=0.8)
    assert float(loss.detach()) > 0
    sure = method("plus.consistency=1", "plus.consistency_confidence=1", off).eval()
    assert float(sure.terms(images, late)["consistency"].detach()) == 0


@pytest.mark.parametrize("views", [0, 1])
def test_distorted_views_return_if_their_number_is_fixed(views: int) -> None:
    built = method("plus.consistency=1", f"plus.consistency_views={views}").eval()
    seen: list[torch.Tensor] = []
    built.model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    target = batch().target
    for _ in range(2):
        built._distorted(target)
    assert torch.equal(*seen) == (views == 1)


def test_the_discriminator_sees_codes_by_class() -> None:
    first = method("plus.judge=h x p").discriminator.layers[0]
    assert isinstance(first, nn.Linear)
    assert first.in_features == 16 * 3


def test_the_average_of_weights() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    net[0].bias.requires_grad_(False)
    average = Average(net, 0.5)
    assert not list(average.parameters())
    expected = {name: t.clone() for name, t in net.state_dict().items()}
    for step in range(1, 6):
        with torch.no_grad():
            net[0].weight.add_(1.0)
        net(torch.randn(4, 2))
        average.update(net, step)
        d = min(0.5, (1 + step) / (10 + step))
        for name in ("0.weight", "1.weight", "1.running_mean", "1.running_var"):
            expected[name] = d * expected[name] + (1 - d) * net.state_dict()[name]
    last = net[0].weight.detach().clone()
    average.copy_to(net)
    for name in ("0.weight", "1.weight", "1.running_mean", "1.running_var"):
        torch.testing.assert_close(net.state_dict()[name], expected[name])
    assert not torch.equal(net[0].weight, last)
    assert len(average.state_dict()) == 5  # not the bias that does not train, nor the counter


def test_the_run_keeps_the_average() -> None:
    plus = method("plus.average=0.5")
    assert plus.average is not None
    with torch.no_grad():
        plus.classifier.weight.add_(1.0)
    before = plus.classifier.weight.detach().clone()
    plus.stepped(TrainingProgress(step=1, total=2))
    assert torch.equal(plus.classifier.weight, before)
    plus.stepped(TrainingProgress(step=2, total=2))
    assert not torch.equal(plus.classifier.weight, before)


def test_source_norm_normalises_the_source_apart() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    own = SourceNorm(net)
    x = torch.randn(8, 3)
    torch.testing.assert_close(own(net, x), net(x))
    statistics = net[1].running_mean.clone()
    assert torch.equal(statistics, getattr(own, "1/running_mean"))
    own(net, x + 5)
    assert torch.equal(net[1].running_mean, statistics)
    assert not torch.equal(getattr(own, "1/running_mean"), statistics)
    own(net, x).square().sum().backward()
    assert net[0].weight.grad is not None
    assert net[1].weight.grad is None
    assert getattr(own, "1/weight").grad is not None
    with torch.no_grad():
        getattr(own, "1/weight").mul_(2)
    torch.testing.assert_close(own(net, x), 2 * net(x))  # the shift is 0


def test_domains_with_a_norm_of_their_own_share_all_else() -> None:
    plus = method("plus.norm=domain")
    loss = sum(
        plus.weights[k] * v
        for k, v in plus.terms(batch(), TrainingProgress(step=9, total=10)).items()
    )
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    assert plus.source_norm is not None
    assert all(p.grad is not None for p in plus.source_norm.parameters())
    assert all(p.grad is not None for p in plus.model.parameters())


@pytest.mark.parametrize("norm", ["shared", "domain"])
def test_new_layers_of_a_pre_trained_network_train_as_heads(
    monkeypatch: pytest.MonkeyPatch, norm: str
) -> None:
    monkeypatch.setattr(EfficientNetLite0, "load_pretrained", lambda _: None)
    task = Task(height=32, width=32, channels=3, classes=3)
    settings = [*QUICK, *OFF, "backbone=efficientnet-lite0", f"plus.norm={norm}", "head_lr=10"]
    plus = METAHPlus(load("digits", {"method": "metah-plus"}, settings), task)
    scales = {
        id(parameter): group["scale"]
        for group in build_optimizer(plus, plus.config).param_groups
        for parameter in group["params"]
    }
    old = {
        name
        for name, parameter in plus.named_parameters()
        if scales[id(parameter)] == pytest.approx(1)
    }
    new = {name for name, _ in plus.named_parameters()} - old
    assert {name for name in new if "backbone" in name} == {
        f"model.backbone.linear.{name}" for name in ("0.weight", "1.weight", "1.bias")
    }
    copied = {f"source_norm.linear/1/{name}" for name in ("weight", "bias")}
    assert {name for name in new if "source_norm" in name} == (
        copied if norm == "domain" else set()
    )
    assert any("source_norm" in name for name in old) == (norm == "domain")


def test_dropout_of_pooled_features_acts_in_training_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(EfficientNetLite0, "load_pretrained", lambda _: None)
    monkeypatch.delenv("METAH_CACHE", raising=False)
    wide = Task(height=32, width=32, channels=3, classes=3)
    settings = [*QUICK, *OFF, "backbone=efficientnet-lite0-frozen", "plus.norm=domain"]
    config = load("digits", {"method": "metah-plus"}, [*settings, "plus.pooled_dropout=0.5"])
    backbone = METAHPlus(config, wide).model.backbone
    seen: list[torch.Tensor] = []
    backbone.linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.rand(8, 3, 32, 32) * 2 - 1
    for training in (False, True):
        backbone.train(training)(images)
    plain, dropped = seen
    kept = dropped != 0
    assert int((plain != 0).sum()) > 1000
    assert 0.4 < float(kept[plain != 0].float().mean()) < 0.6
    torch.testing.assert_close(dropped[kept], 2 * plain[kept])


def test_a_recipe_of_metah_is_the_base(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        "[objective]\npairwise = 2\nentropy = 0.3\nadversarial = 4\n[plus]\npairwise = 3\n"
    )
    options: Any = load(path, {"method": "metah-plus"}, ["plus.confusion=0.5"]).options
    assert (options.pairwise, options.adversarial) == (3.0, 4.0)
    assert (options.entropy, options.confusion) == (0.0, 0.5)
    metah: Any = load(path, {"method": "metah"}).options
    assert (metah.pairwise, metah.entropy) == (2.0, 0.3)


@pytest.mark.parametrize("name", ["lsh", "metah", "dhn", "sdh", "metah-plus"])
def test_the_recipe_of_metah_plus_goes_over_that_of_digits(name: str) -> None:
    assert load("metah-plus", {"method": name}) == load("digits", {"method": name})
    emoji = load("emoji", {"method": name})
    own = ["plus.consistency=0", "plus.norm=domain", "plus.classifier=0.3", "plus.gamma=2"]
    own += ["plus.pooled_dropout=0.4", f"backbone={emoji.backbone}"]
    extra = own if name == "metah-plus" else []
    extra += ["sdh.anchors=900"] if name == "sdh" else []
    assert emoji.options == load("digits", {"method": name}, extra).options
    assert (emoji.backbone, emoji.noise) == ("efficientnet-lite0-frozen", 0.0)
    photos = load("photos", {"method": name})
    assert photos.preprocess == Preprocess(height=224, width=224, channels=3)
    if name != "sdh":
        assert replace(photos, preprocess=None) == emoji


def test_a_recipe_extends_a_shipped_one(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        'extends = "paper"\nlr = 7\n[objective]\nform = "cauchy"\n'
        "[direction.nus.objective]\npairwise = 9\n"
    )
    config: Any = load(path, {"direction": "nus"})
    paper: Any = load("paper", {"direction": "nus"})
    assert (config.lr, config.options.form, config.options.pairwise) == (2e-4, "cauchy", 9.0)
    assert config.options.quantization == paper.options.quantization == 0.3
    assert config.momentum == paper.momentum
    assert load(path).lr == 7.0
    path.write_text('extends = "other"\n')
    with pytest.raises(ConfigError, match=r"extends must be one of digits, .*got 'other'"):
        load(path)


def test_the_recipe_states_the_defaults() -> None:
    options: Any = load("metah-plus", {"method": "metah-plus"}).options
    plain = PlusOptions()
    for name in (*MORE, "confusion_temperature", "judge", "norm", "average"):
        assert getattr(options, name) == getattr(plain, name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["plus.entropy=0.1"], r"METAH\+ has no entropy term"),
        (["plus.judge=p"], "judge must be one of h, h x p, got 'p'"),
        (["plus.norm=none"], "norm must be one of domain, shared, got 'none'"),
        (["plus.confusion=-1"], "confusion must be >= 0, got -1"),
        (["plus.average=1"], r"average must be in 0..0.9999, got 1"),
        (["plus.pseudo_confidence=2"], r"pseudo_confidence must be in 0..1, got 2"),
        (["plus.classifier=0"], "confusion reads the classifier's predictions"),
        (["plus.classifier=0", *OFF, "plus.judge=h x p"], "judge reads the class"),
        (["plus.norm=domain", "domains=joint"], "norm 'domain' needs one pass a domain"),
        (["plus.pooled_dropout=1"], r"pooled_dropout must be in 0..0.99, got 1"),
        (["plus.pooled_dropout=0.5"], "with backbone small-cnn it must be 0, got 0.5"),
        (["plus.mcc=1"], "'mcc' is not an option"),
    ],
)
def test_bad_options(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("digits", {"method": "metah-plus"}, settings)


def test_several_labels_an_image_are_refused() -> None:
    config = load("digits", {"method": "metah-plus"}, QUICK)
    task = Task(height=16, width=16, channels=1, classes=3, multi_label=True)
    with pytest.raises(ConfigError, match=r"METAH\+ needs one label an image"):
        method_class("metah-plus")(config, task)
