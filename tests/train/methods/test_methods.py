"""The methods: identities between them, what their gradients reach, LSH's collision law."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metah_runtime import metrics
from metah_train.config import Config, load
from metah_train.evaluation.encode import encode
from metah_train.methods import METHODS, method_class
from metah_train.methods.base import Batch, Task, TrainingProgress, augment, elastic
from metah_train.methods.lsh import LSH, LSHOptions
from metah_train.methods.metah import METAH, TAH, METAHe, ObjectiveOptions, Source
from metah_train.training.loop import fit

TASK = Task(height=16, width=16, channels=1, classes=3)
QUICK = ["epochs=3", "batch=12", "features=32", "warmup=5", "threads=1", "detail=0"]
SMALL = {"bits": 16, "features": 16, "dropout": 0.0, "noise": 0.0, "detail": 0}


def objective(method: str = "metah", **options: object) -> METAH:
    """A small network of the objective, seeded."""
    torch.manual_seed(0)
    kept = method_class(method).preset(options)
    config = Config(method=method, options=ObjectiveOptions(**kept), **SMALL)
    built = method_class(method)(config, TASK)
    assert isinstance(built, METAH)
    return built.train()


def batch(seed: int = 0, n: int = 8) -> Batch:
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 256, (2, n, 16, 16, 1)).astype(np.uint8))
    return Batch(
        source=images[0],
        labels=torch.arange(n) % 3,
        indices=torch.arange(n),
        target=images[1],
    )


def gradients(method: METAH, module: torch.nn.Module) -> list[torch.Tensor]:
    terms = method.terms(batch(), TrainingProgress(step=30, total=100))
    loss = sum(method.weights[name] * term for name, term in terms.items())
    assert isinstance(loss, torch.Tensor)
    return list(torch.autograd.grad(loss, list(module.parameters()), allow_unused=True))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_builds_a_network_from_images_to_logits(name: str) -> None:
    config = Config(method=name, **SMALL)
    model = method_class(name).build_model(config, TASK).eval()
    images = batch().source
    logits = model(images)
    assert logits.shape == (8, 16)
    assert logits.dtype == torch.float32
    assert model(images[:0]).shape == (0, 16)
    torch.testing.assert_close(model(images[:1]), logits[:1])
    assert method_class(name).title


@pytest.mark.parametrize(
    ("zeros", "special"),
    [
        ({"classifier": 0.0, "entropy": 0.0}, TAH),
        ({"entropy": 0.0}, METAHe),
        ({"classifier": 0.0, "entropy": 0.0, "adversarial": 0.0}, Source),
    ],
)
def test_metah_with_zero_weights_is_its_special_case(
    zeros: dict[str, float],
    special: type[METAH],
    make_split: Any,
    tmp_path: Path,
) -> None:
    name = next(n for n in METHODS if method_class(n) is special)
    split = make_split()
    assignments = [f"objective.{key}={value}" for key, value in zeros.items()]
    full = fit(load("digits", {"method": "metah"}, QUICK + assignments), split, tmp_path / "full")
    part = fit(load("digits", {"method": name}, QUICK), split, tmp_path / "part")
    logs = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("full", "part")]
    assert logs[0] == logs[1]
    assert np.array_equal(encode(full.model, split.query)[1], encode(part.model, split.query)[1])


def test_only_terms_with_a_weight_are_computed() -> None:
    names = {
        "metah": {"pairwise", "quantization", "adversarial", "classifier", "entropy"},
        "metah-e": {"pairwise", "quantization", "adversarial", "classifier"},
        "tah": {"pairwise", "quantization", "adversarial"},
        "source": {"pairwise", "quantization"},
    }
    for name, expected in names.items():
        method = objective(name)
        assert set(method.terms(batch(), TrainingProgress(step=0, total=1))) == expected
        assert method.uses_target == ("adversarial" in expected)


def test_without_reversal_the_backbone_gets_the_gradient_of_no_adversary() -> None:
    # At step 0 the ramp is 0; discriminator dropout off, so that nothing else differs.
    options = {"entropy": 0.0, "classifier": 0.0, "discriminator_dropout": 0.0}
    with_adversary = objective(adversarial=0.8, **options)
    without = objective(adversarial=0.0, **options)

    def at_start(method: METAH) -> list[torch.Tensor]:
        terms = method.terms(batch(), TrainingProgress(step=0, total=100))
        loss = torch.stack([method.weights[n] * t for n, t in terms.items()]).sum()
        return list(torch.autograd.grad(loss, list(method.model.parameters())))

    for a, b in zip(at_start(with_adversary), at_start(without), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_source_terms_do_not_see_target_rows() -> None:
    method = objective()
    one, two = batch(0), batch(1)
    other = Batch(source=one.source, labels=one.labels, indices=one.indices, target=two.target)
    progress = TrainingProgress(step=10, total=100)
    a, b = method.terms(one, progress), method.terms(other, progress)
    for name in ("pairwise", "quantization", "classifier"):
        assert torch.equal(a[name], b[name]), name
    for name in ("adversarial", "entropy"):
        assert not torch.equal(a[name], b[name]), name


def test_entropy_reaches_the_backbone_and_the_classifier() -> None:
    method = objective(pairwise=0.0, quantization=0.0, adversarial=0.0, classifier=0.0, entropy=1.0)
    for module in (method.model.backbone, method.model.head, method.classifier):
        found = gradients(method, module)
        assert any(g is not None and float(g.abs().sum()) > 0 for g in found)
    assert all(g is None for g in gradients(method, method.discriminator))


def test_a_batch_has_no_place_for_target_labels() -> None:
    assert "target_labels" not in Batch.__dataclass_fields__


@pytest.mark.parametrize("domains", ["joint", "separate"])
def test_domains_share_batch_statistics_only_if_joint(domains: str) -> None:
    method = objective(quantization=0.0, adversarial=0.3)
    method.config = method.config.stage(domains=domains)
    one, two = batch(0), batch(1)
    other = Batch(source=one.source, labels=one.labels, indices=one.indices, target=two.target)
    progress = TrainingProgress(step=10, total=100)
    same = torch.equal(
        method.terms(one, progress)["pairwise"], method.terms(other, progress)["pairwise"]
    )
    assert same == (domains == "separate")


def test_entropy_weight_rises_over_its_ramp() -> None:
    flat, ramped = objective(), objective(entropy_ramp=0.5)
    for step, factor in ((0, 0.0), (25, 0.5), (50, 1.0), (90, 1.0)):
        progress = TrainingProgress(step=step, total=100)
        torch.manual_seed(1)
        full = flat.terms(batch(), progress)["entropy"]
        torch.manual_seed(1)
        part = ramped.terms(batch(), progress)["entropy"]
        torch.testing.assert_close(part, factor * full)


@pytest.mark.parametrize("head", ["sigmoid", "softmax"])
def test_multi_label_data_trains_and_separates(head: str, make_split: Any, tmp_path: Path) -> None:
    split = make_split(multi_label=True)
    run = fit(
        load("digits", {}, [*QUICK, "epochs=8", f"objective.multilabel_head={head}"]),
        split,
        tmp_path / "run",
    )
    codes, _ = encode(run.model, split.query)
    found = metrics.evaluate(codes, split.query.labels, codes, split.query.labels)
    assert run.task.multi_label
    assert found.map_full > 0.95


@pytest.mark.parametrize("form", ["released", "paper", "cauchy"])
def test_every_form_fits_a_separable_toy_set(form: str, make_split: Any, tmp_path: Path) -> None:
    split = make_split()
    assignments = [*QUICK, "epochs=12", f"objective.form={form}", "objective.entropy=0.01"]
    run = fit(load("digits", {}, assignments), split, tmp_path / "run")
    codes, _ = encode(run.model, split.source_train)
    labels = split.source_train.labels
    assert metrics.evaluate(codes, labels, codes, labels).map_h2 > 0.95


@pytest.mark.slow
def test_target_terms_help_across_a_gap_in_the_mean_of_five_seeds(
    make_split: Any, tmp_path: Path
) -> None:
    scores: dict[str, list[float]] = {}
    for seed in range(5):
        split = make_split(gap=3, seed=seed)
        for name in ("source", "tah", "metah"):
            config = load("digits", {"method": name, "seed": seed}, [*QUICK, "epochs=20"])
            run = fit(config, split, tmp_path / f"{name}{seed}")
            query, _ = encode(run.model, split.query)
            database, _ = encode(run.model, split.database)
            found = metrics.evaluate(query, split.query.labels, database, split.database.labels)
            scores.setdefault(name, []).append(found.map_h2)
    means = {name: sum(values) / 5 for name, values in scores.items()}
    assert means["metah"] >= means["tah"] > means["source"], means
    assert means["metah"] > 0.95, means


# LSH


def lsh(bits: int, *, center: bool = False, seed: int = 0) -> LSH:
    torch.manual_seed(seed)
    config = Config(
        method="lsh", bits=bits, features=32, detail=0, options=LSHOptions(center=center)
    )
    return LSH(config, TASK)


def test_lsh_bits_agree_as_the_angle_says() -> None:
    method = lsh(1024)
    x = torch.nn.functional.normalize(torch.randn(2, 32), dim=1)
    angle = math.acos(float(x[0] @ x[1]))
    agree = []
    for seed in range(4):  # 4,096 hyperplanes
        torch.manual_seed(seed)
        method.fit(x, None)
        bits = method.model.head(x) > 0
        agree.append(float((bits[0] == bits[1]).float().mean()))
    assert sum(agree) / 4 == pytest.approx(1 - angle / math.pi, abs=0.02)


def test_lsh_ignores_scale_and_follows_its_seed() -> None:
    x = torch.randn(20, 32)
    codes = []
    for seed in (0, 0, 1):
        method = lsh(64)
        torch.manual_seed(seed)
        method.fit(x, None)
        codes.append(method.model.head(x) > 0)
        assert torch.equal(codes[-1], method.model.head(3 * x) > 0)
    assert torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])


def test_lsh_center_puts_the_mean_on_every_hyperplane() -> None:
    x = torch.randn(50, 32).abs()
    method = lsh(64, center=True)
    method.fit(x, None)
    torch.testing.assert_close(method.model.head(x.mean(0)), torch.zeros(64), rtol=0, atol=1e-4)
    plain = lsh(64)
    plain.fit(x, None)
    assert torch.equal(plain.model.head.bias, torch.zeros(64))


# Augmentation


def test_augment_adds_noise_and_moves_whole_images() -> None:
    torch.manual_seed(0)
    pixels = torch.zeros(64, 1, 8, 8)
    assert torch.equal(augment(pixels, noise=0, shift=0), pixels)
    assert float(augment(pixels, noise=0.1, shift=0).std()) == pytest.approx(0.1, rel=0.05)
    pixels[:, 0, 4, 4] = 1
    moved = augment(pixels, noise=0, shift=2)
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(64))
    rows = moved.amax((1, 3)).argmax(1)
    columns = moved.amax((1, 2)).argmax(1)
    assert set(rows.tolist()) == set(columns.tolist()) == {2, 3, 4, 5, 6}


def test_elastic_moves_points_smoothly_and_by_its_strength() -> None:
    torch.manual_seed(0)
    column = torch.arange(32.0).expand(32, 32)
    pixels = torch.stack([column.T, column]).expand(200, 2, 32, 32)
    torch.testing.assert_close(elastic(pixels, 0.0), pixels, rtol=0, atol=1e-4)
    moved = (elastic(pixels, 1.0) - pixels)[:, :, 8:24, 8:24]
    for channel in (0, 1):
        assert float(moved[:, channel].mean()) == pytest.approx(0, abs=0.15)
        assert 0.5 < float(moved[:, channel].std()) < 1.0  # bicubic averages control points
    steps = (moved[:, :, 1:] - moved[:, :, :-1]).abs()
    assert float(steps.mean()) < 0.25
    assert float((moved[:, 0] * moved[:, 1]).mean()) == pytest.approx(0, abs=0.1)
    flat = torch.full((3, 1, 16, 24), 0.25)
    torch.testing.assert_close(elastic(flat, 2.0), flat)  # edges are repeated, not black
    assert torch.equal(augment(flat, noise=0, warp=0), flat)
