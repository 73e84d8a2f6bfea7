"""THN: the discrepancy between domains, and its identity with DHN."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck

from metah_train.losses import adversarial, mmd
from metah_train.methods.base import Batch, TrainingProgress


def draws(n: int, shift: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.tanh(torch.randn(n, 8, generator=generator, dtype=torch.float64) + shift)


def test_discrepancy_equals_its_sums() -> None:
    h, o = draws(5, 0.0, 0), draws(7, 1.0, 1)
    both = torch.cat([h, o])
    mean = sum(float((a - b).square().sum()) for a in both for b in both) / 144

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        d = float((a - b).square().sum())
        return sum(float(torch.exp(torch.tensor(-d / (2 * w * mean)))) for w in mmd.WIDTHS)

    expected = (
        sum(kernel(a, b) for a in h for b in h) / 25
        + sum(kernel(a, b) for a in o for b in o) / 49
        - 2 * sum(kernel(a, b) for a in h for b in o) / 35
    )
    assert float(mmd.multi_kernel_mmd(h, o)) == pytest.approx(expected, rel=1e-5)


def test_discrepancy_vanishes_for_one_distribution_and_grows_with_the_shift() -> None:
    same = [float(mmd.multi_kernel_mmd(draws(n, 0, 0), draws(n, 0, 1))) for n in (10, 100, 400)]
    assert same == sorted(same, reverse=True)
    assert same[-1] < 0.02
    moved = [float(mmd.multi_kernel_mmd(draws(100, 0, 0), draws(100, s, 1))) for s in (0.2, 0.5, 1)]
    assert same[1] < moved[0] < moved[1] < moved[2]
    assert float(mmd.multi_kernel_mmd(draws(9, 0, 0), draws(9, 0, 0))) == pytest.approx(0)


def test_discrepancy_is_symmetric_and_never_negative() -> None:
    for seed in range(10):
        h, o = draws(4, 0, seed), draws(6, 0, seed + 50)
        value = float(mmd.multi_kernel_mmd(h, o))
        assert value >= 0
        assert value == pytest.approx(float(mmd.multi_kernel_mmd(o, h)))


def test_equal_codes_have_no_discrepancy_and_a_finite_gradient() -> None:
    h = torch.ones(4, 8, requires_grad=True)
    value = mmd.multi_kernel_mmd(h, torch.ones(3, 8))
    value.backward()
    assert float(value.detach()) == 0
    assert h.grad is not None
    assert torch.isfinite(h.grad).all()


def test_the_bandwidth_has_no_gradient() -> None:
    # With a fixed bandwidth, finite differences agree; through the mean they would not.
    h, o = draws(4, 0, 2).requires_grad_(), draws(5, 0.5, 3)
    both = torch.cat([h, o]).detach()
    mean = float((both[:, None] - both[None]).square().sum(-1).mean())

    def fixed(h: torch.Tensor) -> torch.Tensor:
        x = torch.cat([h, o])
        d = (x[:, None] - x[None]).square().sum(-1)
        k = sum(torch.exp(-d / (2 * w * mean)) for w in mmd.WIDTHS)
        assert isinstance(k, torch.Tensor)
        return k[:4, :4].mean() + k[4:, 4:].mean() - 2 * k[:4, 4:].mean()

    assert gradcheck(fixed, (h,), eps=1e-6)
    (expected,) = torch.autograd.grad(fixed(h), h)
    (found,) = torch.autograd.grad(mmd.multi_kernel_mmd(h, o), h)
    torch.testing.assert_close(found, expected)


def batch_of(n: int, target: int) -> Batch:
    torch.manual_seed(9)
    images = torch.randint(0, 256, (n + target, 4, 4, 1), dtype=torch.uint8)
    return Batch(
        source=images[:n],
        labels=torch.arange(n) % 3,
        indices=torch.arange(n),
        target=images[n:],
    )


def test_without_discrepancy_it_is_dhn(make_method: Callable[..., Any]) -> None:
    dhn = make_method("dhn", options={"quantization": 0.3})
    thn = make_method("thn", options={"mmd": 0.0})
    thn.model.load_state_dict(dhn.model.state_dict())
    assert not thn.uses_target
    batch = batch_of(8, 8)
    found = []
    for method in (dhn, thn):
        torch.manual_seed(4)
        terms = method.terms(batch, TrainingProgress(step=3, total=10))
        found.append({name: float(term.detach()) for name, term in terms.items()})
    assert found[0] == found[1]
    assert dhn.weights == {name: thn.weights[name] for name in dhn.weights}


@pytest.mark.parametrize("domains", ["separate", "joint"])
def test_the_discrepancy_is_between_the_domains_and_rises(
    make_method: Callable[..., Any], domains: str
) -> None:
    thn = make_method("thn", dropout=0.0, noise=0.0, domains=domains)
    assert thn.uses_target
    batch = batch_of(8, 8)
    assert batch.target is not None
    h, o = (torch.tanh(thn.model(images)) for images in (batch.source, batch.target))
    plain = float(mmd.multi_kernel_mmd(h, o).detach())
    for step in (0, 3, 10):
        found = float(thn.terms(batch, TrainingProgress(step=step, total=10))["mmd"].detach())
        assert found == pytest.approx(adversarial.ramp(step / 10) * plain, abs=1e-6)
