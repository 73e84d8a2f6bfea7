"""DHN: its pairwise form, its quantization and its identity with TAH's objective."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from metah_train.losses import pairwise, quantization
from metah_train.methods.base import Batch, TrainingProgress


def naive(h: torch.Tensor, similar: torch.Tensor, scale: float) -> float:
    n, total = len(h), 0.0
    for i in range(n):
        for j in range(n):
            x = scale * float(h[i] @ h[j])
            total += math.log(1 + math.exp(x)) - float(similar[i, j]) * x
    return total / n**2


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_product_form_equals_the_naive_one(scale: float) -> None:
    torch.manual_seed(0)
    h = torch.tanh(torch.randn(7, 9, dtype=torch.float64))
    similar = pairwise.shared_label(torch.tensor([0, 1, 2, 0, 1, 2, 0]))
    assert (h @ h.T).abs().max() < 10
    found = float(pairwise.product(h, similar, scale=scale))
    assert found == pytest.approx(naive(h, similar, scale))


def test_product_form_is_finite_for_large_products() -> None:
    h = torch.full((4, 10), 10.0) * torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    for similar in (torch.ones(4, 4, dtype=torch.bool), torch.zeros(4, 4, dtype=torch.bool)):
        loss = float(pairwise.product(h, similar))
        assert loss == pytest.approx(500)


def test_codes_of_zero_cost_log_two() -> None:
    h = torch.zeros(5, 8)
    assert float(pairwise.product(h, torch.eye(5).bool())) == pytest.approx(math.log(2))


def test_quantization_is_zero_at_one_alone_and_even() -> None:
    assert float(quantization.log_cosh_quantization(torch.tensor([[1.0, -1.0]]))) == 0
    h = torch.tanh(torch.randn(5, 8))
    value = float(quantization.log_cosh_quantization(h))
    assert value > 0
    assert value == pytest.approx(float(quantization.log_cosh_quantization(-h)))


def test_dissimilar_pairs_hardly_move_once_unscaled_products_are_negative() -> None:
    # The reason for the option ``scale``: sigma(x) is the slope of a dissimilar pair's loss.
    def slope(scale: float) -> float:
        x = torch.tensor([[-8.0]], requires_grad=True)
        loss = pairwise.product_losses(x, torch.ones(1, 1), torch.tensor([[False]]), scale=scale)
        loss.sum().backward()
        assert x.grad is not None
        return float(x.grad)

    assert slope(1.0) < 1e-3
    assert slope(0.2) > 0.03


def test_the_default_quantization_has_the_strength_of_the_authors_gradient(
    make_method: Callable[..., Any],
) -> None:
    assert make_method("dhn").weights["quantization"] == pytest.approx(0.3 * 16)
    method = make_method("dhn", options={"quantization": 0.7})
    assert method.weights == {"pairwise": 1.0, "quantization": 0.7}


@pytest.mark.parametrize("q", [0.0, 0.3])
def test_tah_without_its_discriminator_on_products_is_dhn(
    make_method: Callable[..., Any], q: float
) -> None:
    dhn = make_method("dhn", options={"quantization": q})
    tah = make_method(
        "tah",
        options={
            "pairwise": 1.0,
            "quantization": q,
            "adversarial": 0.0,
            "classifier": 0.0,
            "entropy": 0.0,
            "form": "product",
            "balance": False,
        },
    )
    tah.model.load_state_dict(dhn.model.state_dict())
    images = torch.randint(0, 256, (8, 4, 4, 1), dtype=torch.uint8)
    batch = Batch(source=images, labels=torch.arange(8) % 3, indices=torch.arange(8), target=images)
    losses = []
    for method in (dhn, tah):
        torch.manual_seed(4)
        terms = method.terms(batch, TrainingProgress(step=0, total=10))
        losses.append(sum(method.weights[name] * float(terms[name].detach()) for name in terms))
    assert losses[0] == losses[1]
