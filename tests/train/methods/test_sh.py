"""Spectral hashing: its modes, and its head against the literal product of sines."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from metah_train.methods.sh import smoothest_modes


@pytest.mark.parametrize("ranges", [[3.0, 1.0], [1.0, 1.0, 1.0], [5.0, 0.2, 0.0], [2.0]])
@pytest.mark.parametrize("bits", [1, 8, 13])
def test_modes_are_the_smoothest_waves_along_one_component(ranges: list[float], bits: int) -> None:
    sides = np.array(ranges)
    modes = smoothest_modes(sides, bits)
    assert modes.shape == (bits, len(ranges))
    assert ((modes != 0).sum(1) == 1).all()
    assert len({tuple(mode) for mode in modes.tolist()}) == bits
    with np.errstate(divide="ignore", invalid="ignore"):
        smoothness = np.nansum(np.where(modes > 0, (modes / sides) ** 2, 0), axis=1)
        every = [(k / side) ** 2 for side in ranges if side for k in range(1, 4 * bits + 1)]
    assert smoothness.tolist() == pytest.approx(sorted(every)[:bits])


def test_there_are_always_enough_modes_beside_the_constant_one() -> None:
    for bits in (1, 2, 47, 64):
        counts = np.ceil((bits + 1) * np.array([1.0, 1e-9]) / 1.0)
        assert counts.sum() >= bits + 1
        assert len(smoothest_modes(np.array([1.0, 1e-9]), bits)) == bits


def fitted(make_method: Callable[..., Any], X: np.ndarray, **settings: Any) -> Any:
    method = make_method("sh", features=X.shape[1], **settings)
    method.fit(torch.from_numpy(X.astype(np.float32)), None)
    return method.model.head.eval()


def test_first_bit_splits_the_long_side_of_a_rectangle_at_its_centre(
    make_method: Callable[..., Any],
) -> None:
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.uniform(2, 12, 4000), rng.uniform(-1, 1, 4000)])
    bit = fitted(make_method, X, bits=8)(torch.from_numpy(X).float())[:, 0].detach().numpy() > 0
    middle = np.abs(X[:, 0] - 7) > 0.1
    left = X[:, 0] < 7
    assert (bit[middle] == left[middle]).all() or (bit[middle] != left[middle]).all()


def test_head_is_the_product_of_sines_of_the_principal_components(
    make_method: Callable[..., Any],
) -> None:
    rng = np.random.default_rng(1)
    X = rng.standard_normal((300, 6)) * [5, 4, 3, 2, 1, 0.5] + 10
    bits = 16
    pca = PCA(n_components=6, svd_solver="full").fit(X.astype(np.float32).astype(np.float64))
    V = pca.transform(X)
    low, sides = V.min(0), V.max(0) - V.min(0)
    omega = smoothest_modes(sides, bits) * math.pi / sides
    # New points lie outside the box as well: the waves go on there.
    new = rng.standard_normal((200, 6)) * 12 + 10
    angles = (pca.transform(new) - low)[:, None, :] * omega[None] + math.pi / 2
    expected = np.sin(angles).prod(-1)
    found = fitted(make_method, X)(torch.from_numpy(new).float()).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_bits_are_nearly_balanced_on_a_uniform_box(make_method: Callable[..., Any]) -> None:
    X = np.random.default_rng(2).uniform(-1, 1, (5000, 4)) * [4, 3, 2, 1]
    logits = fitted(make_method, X)(torch.from_numpy(X).float())
    ones = (logits > 0).float().mean(0)
    assert ((ones > 0.42) & (ones < 0.58)).all()


def test_a_flipped_component_only_relabels_bits(make_method: Callable[..., Any]) -> None:
    X = np.random.default_rng(3).uniform(-1, 1, (500, 4)) * [4, 3, 2, 1]
    codes = []
    for flip in ([1, 1, 1, 1], [-1, 1, -1, 1]):
        data = X * flip
        codes.append((fitted(make_method, data)(torch.from_numpy(data).float()) > 0).numpy())
    agreement = (codes[0] == codes[1]).mean(0)
    assert (np.minimum(agreement, 1 - agreement) < 0.01).all()


def test_fewer_features_than_bits_are_enough(make_method: Callable[..., Any]) -> None:
    X = np.random.default_rng(4).standard_normal((50, 3))
    logits = fitted(make_method, X)(torch.from_numpy(X).float())
    assert logits.shape == (50, 16)
    assert torch.isfinite(logits).all()
