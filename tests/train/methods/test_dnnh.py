"""DNNH: triplets, the hinge, the step function and the divided head."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck

from metah_runtime.errors import ConfigError
from metah_train.losses import pairwise, triplet
from metah_train.methods.dnnh import DividedHead


@pytest.mark.parametrize("multi_label", [False, True])
def test_triplets_are_all_similar_and_dissimilar_ones(multi_label: bool) -> None:
    torch.manual_seed(0)
    labels = (torch.rand(9, 4) < 0.4).float() if multi_label else torch.randint(0, 3, (9,))
    similar = pairwise.shared_label(labels)
    found = set(zip(*(index.tolist() for index in triplet.triplets(similar)), strict=True))
    expected = {
        (a, p, n)
        for a in range(9)
        for p in range(9)
        for n in range(9)
        if a != p and similar[a, p] and not similar[a, n]
    }
    assert found == expected
    assert expected


def test_hinge_equals_its_sum_over_triplets() -> None:
    torch.manual_seed(0)
    f, labels = torch.rand(8, 5, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2, 0, 1, 2])
    similar = pairwise.shared_label(labels)
    losses = [
        max(0.0, 0.7 + float((f[a] - f[p]).square().sum() - (f[a] - f[n]).square().sum()))
        for a, p, n in zip(*(index.tolist() for index in triplet.triplets(similar)), strict=True)
    ]
    found = float(triplet.triplet_hinge(f, similar, margin=0.7))
    assert found == pytest.approx(sum(losses) / len(losses))


def test_a_satisfied_margin_costs_nothing() -> None:
    f = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    similar = pairwise.shared_label(torch.tensor([0, 0, 1]))
    assert float(triplet.triplet_hinge(f, similar, margin=2.0)) == 0
    assert float(triplet.triplet_hinge(f, similar, margin=2.5)) == pytest.approx(0.5)


def test_gradient_of_the_anchor_is_that_of_its_formula() -> None:
    f = torch.tensor([[0.2, 0.6], [0.3, 0.1], [0.4, 0.5]], requires_grad=True)
    # 0 is the anchor of (0, 1, 2); 1 of (1, 0, 2). 2 has no positive.
    similar = pairwise.shared_label(torch.tensor([0, 0, 1]))
    (2 * triplet.triplet_hinge(f, similar, margin=5.0)).backward()
    assert f.grad is not None
    x = f.detach()
    as_anchor, as_positive = 2 * (x[2] - x[1]), 2 * (x[0] - x[1])
    torch.testing.assert_close(f.grad[0], as_anchor + as_positive)


def test_gradcheck() -> None:
    torch.manual_seed(1)
    f = torch.rand(6, 4, dtype=torch.float64, requires_grad=True)
    similar = pairwise.shared_label(torch.tensor([0, 0, 1, 1, 2, 0]))
    assert gradcheck(lambda f: triplet.triplet_hinge(f, similar, margin=0.5), (f,), eps=1e-6)


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]])
def test_a_batch_without_triplets_costs_nothing(labels: list[int]) -> None:
    f = torch.rand(3, 4, requires_grad=True)
    loss = triplet.triplet_hinge(f, pairwise.shared_label(torch.tensor(labels)), margin=1.0)
    loss.backward()
    assert float(loss.detach()) == 0
    assert f.grad is not None
    assert not f.grad.any()


def test_soft_step_has_three_pieces_and_no_gradient_outside_the_slope() -> None:
    s = torch.tensor([0.1, 0.39, 0.45, 0.5, 0.55, 0.61, 0.9], requires_grad=True)
    g = triplet.soft_step(s, 0.1)
    torch.testing.assert_close(g, torch.tensor([0.0, 0.0, 0.45, 0.5, 0.55, 1.0, 1.0]))
    g.sum().backward()
    assert s.grad is not None
    assert s.grad.tolist() == [0, 0, 1, 1, 1, 0, 0]
    assert torch.equal(triplet.soft_step(s, 0.5), s)


def test_a_bit_depends_on_its_own_slice_only() -> None:
    head = DividedHead(6, 8, width=5, dropout=0.0)
    slices = torch.randn(3, 40, requires_grad=True)
    for k in range(8):
        (gradient,) = torch.autograd.grad(head.encode(slices)[:, k].sum(), slices)
        own = torch.zeros(40, dtype=torch.bool)
        own[5 * k : 5 * k + 5] = True
        assert (gradient[:, own] != 0).all()
        assert not gradient[:, ~own].any()


def test_the_bit_is_set_where_the_sigmoid_passes_a_half(make_method: Callable[..., Any]) -> None:
    method = make_method("dnnh").eval()
    images = torch.randint(0, 256, (50, 4, 4, 1), dtype=torch.uint8)
    logits = method.model(images)
    assert torch.equal(logits > 0, torch.sigmoid(logits) > 0.5)
    assert 0 < (logits > 0).float().mean() < 1


def test_epsilon_is_checked(make_config: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"epsilon must be in 0.001..0.5, got 0.6"):
        make_config("dnnh", options={"epsilon": 0.6})
