"""HashNet: continuation, pair weights, and its identity with DHN."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metah_train.data.base import Split
from metah_train.losses import pairwise
from metah_train.methods import hashnet
from metah_train.methods.base import Batch, TrainingProgress
from metah_train.training import checkpoint, loop

PAPER = {"growth": 0.005, "power": 0.5, "refresh": 200}


@pytest.mark.parametrize(
    ("step", "beta"),
    [
        (0, 1.0),
        (199, 1.0),
        (200, 1.4142),
        (399, 1.4142),
        (1000, 2.4495),
        (5000, 5.0990),
        (10000, 7.1414),
    ],
)
def test_continuation_has_its_published_values(step: int, beta: float) -> None:
    assert hashnet.continuation(step, **PAPER) == pytest.approx(beta, abs=1e-4)


def test_growing_beta_takes_codes_to_one() -> None:
    z = torch.randn(100, 8)
    sizes = [float(torch.tanh(beta * z).abs().mean()) for beta in (1, 10, 100, 10_000)]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 0.999


def test_balanced_weights_give_both_kinds_the_same_total() -> None:
    labels = torch.arange(100)
    weights = hashnet.pair_weights(labels, labels, weighting="balanced")
    similar = pairwise.shared_label(labels)
    assert similar.float().mean() == pytest.approx(0.01)
    assert float(weights[similar].sum()) == pytest.approx(float(weights[~similar].sum()))


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3]])
def test_batches_of_one_kind_have_finite_weights(labels: list[int]) -> None:
    y = torch.tensor(labels)
    weights = hashnet.pair_weights(y[:2], y[2:], weighting="balanced")
    assert torch.isfinite(weights).all()
    assert (weights > 0).all()


def test_the_code_weighs_similar_pairs_by_a_constant() -> None:
    y = torch.tensor([0, 1])
    found = hashnet.pair_weights(y, y, weighting="similar", similar_weight=5.0)
    assert found.tolist() == [[5, 1], [1, 5]]
    assert hashnet.pair_weights(y, y, weighting="none").tolist() == [[1, 1], [1, 1]]


def test_continuous_similarity_of_label_sets() -> None:
    y = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 1]])
    found = hashnet.pair_weights(y, y, weighting="none")
    # |y_i & y_j|^2 / (|y_i| |y_j|) where a label is shared, else 1.
    expected = torch.tensor([[1, 1 / 6, 1], [1 / 6, 1, 1 / 3], [1, 1 / 3, 1]])
    torch.testing.assert_close(found, expected)
    plain = hashnet.pair_weights(y, y, weighting="none", continuous=False)
    assert (plain == 1).all()


@pytest.fixture
def halves() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    h, other = torch.tanh(torch.randn(2, 6, 16, dtype=torch.float64))
    return h, other, torch.arange(6) % 2, torch.arange(6) % 3


def test_swapping_the_batches_changes_nothing(
    make_method: Callable[..., Any],
    halves: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    method = make_method("hashnet")
    h, other, y, z = halves
    assert float(method.loss(h, other, y, z)) == pytest.approx(float(method.loss(other, h, z, y)))


def test_loss_equals_its_sum_over_pairs(
    make_method: Callable[..., Any],
    halves: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    method = make_method("hashnet")
    h, other, y, z = halves
    weights = hashnet.pair_weights(y, z, weighting="balanced")
    total = 0.0
    for i in range(6):
        for j in range(6):
            x = 10 / 16 * h[i] @ other[j]
            total += float(weights[i, j] * (torch.log1p(x.exp()) - (y[i] == z[j]) * x))
    assert float(method.loss(h, other, y, z)) == pytest.approx(total / float(weights.sum()))


def batch_of(n: int) -> Batch:
    images = torch.randint(0, 256, (n, 4, 4, 1), dtype=torch.uint8)
    return Batch(source=images, labels=torch.arange(n) % 3, indices=torch.arange(n), target=None)


def test_unit_weights_beta_and_scale_on_one_batch_are_dhn(
    make_method: Callable[..., Any],
) -> None:
    dhn = make_method("dhn", options={"quantization": 0.0})
    options = {"scale": 1.0, "weighting": "none", "pairs": "all"}
    method = make_method("hashnet", options=options)
    method.model.load_state_dict(dhn.model.state_dict())
    batch, progress = batch_of(8), TrainingProgress(step=0, total=10)
    torch.manual_seed(4)
    found = method.terms(batch, progress)["pairwise"]
    torch.manual_seed(4)
    torch.testing.assert_close(found, dhn.terms(batch, progress)["pairwise"])


def test_pairs_lie_between_the_halves_of_a_batch(make_method: Callable[..., Any]) -> None:
    method = make_method("hashnet", dropout=0.0, noise=0.0)
    batch = batch_of(8)
    h, y = torch.tanh(method.model(batch.source)), batch.labels
    found = method.terms(batch, TrainingProgress(step=0, total=10))["pairwise"]
    torch.testing.assert_close(found, method.loss(h[:4], h[4:], y[:4], y[4:]))


def test_beta_is_part_of_the_training_state(
    make_config: Callable[..., Any],
    make_method: Callable[..., Any],
    make_blobs: Callable[..., Split],
    tmp_path: Path,
) -> None:
    method, config = make_method("hashnet"), make_config("hashnet")
    (tmp_path / checkpoint.METRICS).touch()
    steps = loop.train(method, make_blobs(), tmp_path)
    _, tensors = checkpoint.load_state(tmp_path, config)
    assert float(tensors["method.beta"]) == pytest.approx((1 + 0.1 * 8) ** 0.5)
    assert steps == 12


def test_codes_do_not_depend_on_beta(make_method: Callable[..., Any]) -> None:
    method = make_method("hashnet").eval()
    before = method.model(batch_of(8).source)
    method.beta.fill_(7.0)
    torch.manual_seed(0)
    assert torch.equal(torch.tanh(7 * before) > 0, before > 0)
