"""Supervised discrete hashing: each step against brute force and its objective."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from metah_runtime.errors import DataError
from metah_train.methods.itq import signs
from metah_train.methods.sdh import (
    SDHOptions,
    code_step,
    discrete_codes,
    ridge_regression,
)


def problem(n: int, b: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """phi (n, 5), Y (n, 3), B (n, b)."""
    rng = np.random.default_rng(seed)
    Y = np.eye(3)[np.arange(n) % 3]
    phi = Y @ rng.standard_normal((3, 5)) + rng.standard_normal((n, 5))
    return phi, Y, signs(rng.standard_normal((n, b)))


def objective(
    phi: np.ndarray, Y: np.ndarray, B: np.ndarray, W: np.ndarray, P: np.ndarray, nu: float
) -> float:
    """The objective with lambda = 1."""
    fit, map_ = Y - B @ W, B - phi @ P
    return float((fit**2).sum() + (W**2).sum() + nu * (map_**2).sum())


@pytest.mark.parametrize("nu", [1e-5, 0.5])
def test_each_bit_is_the_best_given_the_others(nu: float) -> None:
    n, b = 6, 4
    phi, Y, B = problem(n, b)
    W, P = ridge_regression(B, Y, 1.0), ridge_regression(phi, B, 1e-2)
    Q = nu * phi @ P + Y @ W.T
    for k in range(b):
        # One bit alone: the other rows of W and columns of Q stay; so do their bits.
        best = min(
            (signs(np.array(choice)) for choice in product((-1.0, 1.0), repeat=n)),
            key=lambda column: objective(
                phi, Y, np.column_stack([B[:, :k], column, B[:, k + 1 :]]), W, P, nu
            ),
        )
        order = [k, *(j for j in range(b) if j != k)]
        first = code_step(B[:, order], Q[:, order], W[order], sweeps=1)[:, 0]
        expected = objective(phi, Y, np.column_stack([B[:, :k], best, B[:, k + 1 :]]), W, P, nu)
        assert objective(
            phi, Y, np.column_stack([B[:, :k], first, B[:, k + 1 :]]), W, P, nu
        ) == pytest.approx(expected)


@pytest.mark.parametrize("nu", [1e-5, 0.5])
def test_code_and_classifier_steps_never_raise_the_objective(nu: float) -> None:
    phi, Y, B = problem(60, 8, seed=1)
    W, P = ridge_regression(B, Y, 1.0), ridge_regression(phi, B, 1e-2)
    for _ in range(5):
        before = objective(phi, Y, B, W, P, nu)
        B = code_step(B, nu * phi @ P + Y @ W.T, W, sweeps=10)
        coded = objective(phi, Y, B, W, P, nu)
        W = ridge_regression(B, Y, 1.0)
        assert objective(phi, Y, B, W, P, nu) <= coded + 1e-9 <= before + 2e-9
        P = ridge_regression(phi, B, 1e-2)


def test_ridge_regression_solves_its_normal_equations() -> None:
    phi, _, B = problem(60, 8)
    P = ridge_regression(phi, B, 1e-2)
    residual = (phi.T @ phi + 1e-2 * np.eye(5)) @ P - phi.T @ B
    assert np.abs(residual).max() < 1e-8


def test_with_a_small_penalty_labels_decide_the_codes() -> None:
    phi, Y, B = problem(90, 16)
    codes, W, _ = discrete_codes(phi, Y, B, SDHOptions())
    assert ((codes @ W).argmax(1) == Y.argmax(1)).all()
    distances = (16 - codes @ codes.T) / 2
    same = Y @ Y.T > 0
    assert distances[same].mean() < 0.5 * distances[~same].mean()


def test_multi_hot_labels_are_taken(make_method: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    labels = (torch.rand(80, 4) < 0.5).float()
    method = make_method("sdh", multi_label=True)
    method.fit(torch.randn(80, 24), labels)
    assert torch.isfinite(method.model.head.linear.weight).all()


def test_head_is_the_map_of_unit_features(make_method: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    X = torch.randn(80, 24) * 7
    method = make_method("sdh")
    torch.manual_seed(5)
    method.fit(X, torch.arange(80) % 4)
    torch.manual_seed(5)
    unit = X.double() / X.double().norm(dim=1, keepdim=True)
    anchors = unit[torch.randperm(80)[:30]]
    kernel = torch.exp(-torch.cdist(unit, anchors).square() / (2 * 0.4**2))
    head = method.model.head
    expected = kernel @ head.linear.weight.double().T + head.linear.bias.double()
    found = head(X).double()
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    # Features enter by their direction alone.
    assert (head(3 * X) - head(X)).abs().max() < 1e-4 * expected.abs().max()


def test_too_few_items_for_the_anchors(make_method: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match=r"sdh takes 30 anchors .* got 20; fix: --set sdh.anchors"):
        make_method("sdh").fit(torch.randn(20, 24), torch.arange(20) % 4)
