"""Kernel-based supervised hashing: similarity, spectral start, refinement and residual."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime

from metah_runtime.errors import DataError
from metah_train.methods.itq import signs
from metah_train.methods.ksh import Residual, refine, smooth_cost, smooth_gradient, spectral_start
from metah_train.methods.label_groups import LabelGroups


def dense(labels: torch.Tensor) -> np.ndarray:
    """S by its definition, entry by entry."""
    n = len(labels)
    S = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            if labels.ndim == 1:
                shared = bool(labels[i] == labels[j])
            else:
                shared = i == j or bool((labels[i] * labels[j]).sum() > 0)
            S[i, j] = 1 if shared else -1
    return S


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.booleans(), st.integers(0, 999))
def test_label_groups_multiply_like_the_dense_matrix(
    n: int, classes: int, multi_label: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shape = (n, classes) if multi_label else (n,)
    labels = torch.from_numpy(rng.integers(0, 2 if multi_label else classes, shape))
    groups, S = LabelGroups(labels), dense(labels)
    x = rng.standard_normal(n)
    assert len(groups) == n
    np.testing.assert_allclose(groups.product(x), S @ x, atol=1e-12)
    rows = rng.integers(0, n, 5)
    assert (groups.block(rows) == S[rows][:, rows]).all()
    assert (groups.block(np.arange(n)).diagonal() == 1).all()


LABELS = torch.arange(40) % 4


@pytest.fixture
def problem() -> tuple[np.ndarray, Residual, np.ndarray]:
    """K (40, 6), the residual after one bit, K^T K."""
    rng = np.random.default_rng(0)
    K = np.eye(4)[LABELS.numpy()] @ rng.standard_normal((4, 6)) + rng.standard_normal((40, 6))
    residual = Residual(LabelGroups(LABELS), 8)
    residual.subtract(signs(rng.standard_normal(40)))
    return K, residual, K.T @ K


def matrix(residual: Residual) -> np.ndarray:
    return residual.bits * dense(LABELS) - residual.fitted @ residual.fitted.T


def test_residual_acts_like_its_matrix(problem: tuple[np.ndarray, Residual, np.ndarray]) -> None:
    K, residual, _ = problem
    y = signs(K[:, 0])
    np.testing.assert_allclose(residual.product(y), matrix(residual) @ y)
    np.testing.assert_allclose(residual.project(K), K.T @ matrix(residual) @ K)
    assert residual.gain(y) == pytest.approx(y @ matrix(residual) @ y)


def test_spectral_start_solves_its_equation(
    problem: tuple[np.ndarray, Residual, np.ndarray],
) -> None:
    K, residual, gram = problem
    a = spectral_start(K, residual, gram)
    assert a @ gram @ a == pytest.approx(len(K))
    left = K.T @ matrix(residual) @ K @ a
    top = (a @ left) / (a @ gram @ a)
    assert np.linalg.norm(left - top * gram @ a) < 1e-6 * np.linalg.norm(left)
    for seed in range(20):
        other = np.random.default_rng(seed).standard_normal(6)
        assert other @ K.T @ matrix(residual) @ K @ other <= top * (other @ gram @ other) + 1e-9


def test_gradient_matches_finite_differences(
    problem: tuple[np.ndarray, Residual, np.ndarray],
) -> None:
    K, residual, _ = problem
    a = np.random.default_rng(2).standard_normal(6)
    value, product = smooth_cost(K @ a, residual)
    p = 2 / (1 + np.exp(-K @ a)) - 1
    assert value == pytest.approx(-p @ matrix(residual) @ p)
    estimated = approx_fprime(a, lambda a: smooth_cost(K @ a, residual)[0], 1e-7)
    found = smooth_gradient(K @ a, product, K)
    np.testing.assert_allclose(found, estimated, rtol=1e-4, atol=1e-3)


def test_refinement_lowers_the_smooth_cost_to_a_stationary_point(
    problem: tuple[np.ndarray, Residual, np.ndarray],
) -> None:
    K, residual, gram = problem
    start = spectral_start(K, residual, gram)
    first = smooth_cost(K @ start, residual)[0]
    costs = []
    for iterations in (1, 10, 100, 3000):
        a = refine(K, residual, start, iterations=iterations, tolerance=0.0)
        costs.append(smooth_cost(K @ a, residual)[0])
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < first
    # Scaling a up saturates phi, so g has no minimum in a finite a: the gain per step fades.
    assert costs[-2] - costs[-1] < 0.1 * (first - costs[-1])


def test_a_large_tolerance_stops_after_one_step(
    problem: tuple[np.ndarray, Residual, np.ndarray],
) -> None:
    K, residual, gram = problem
    start = spectral_start(K, residual, gram)
    stopped = refine(K, residual, start, iterations=500, tolerance=1e12)
    once = refine(K, residual, start, iterations=1, tolerance=0.0)
    assert np.array_equal(stopped, once)


def test_bits_take_from_the_residual_and_beat_the_spectral_start(
    make_method: Callable[..., Any], problem: tuple[np.ndarray, Residual, np.ndarray]
) -> None:
    K, _, gram = problem
    method = make_method("ksh", bits=8)
    groups = LabelGroups(LABELS)
    A = method.fit_bits(K, groups)
    ridged = gram + np.eye(6) * 1e-6 * np.trace(gram) / 6
    residual = Residual(groups, 8)
    norms = [np.linalg.norm(matrix(residual))]
    for k in range(8):
        y, start = signs(K @ A[:, k]), signs(K @ spectral_start(K, residual, ridged))
        assert residual.gain(y) >= residual.gain(start)
        gain = residual.gain(y)
        residual.subtract(y)
        norms.append(np.linalg.norm(matrix(residual)))
        # ||R - y y^T||^2 = ||R||^2 - 2 y^T R y + l^2
        assert norms[-1] ** 2 == pytest.approx(norms[-2] ** 2 - 2 * gain + len(K) ** 2)
        if gain >= len(K) ** 2 / 2:
            assert norms[-1] <= norms[-2]
    assert norms[-1] < norms[0]


def test_a_singular_gram_matrix_is_made_regular(make_method: Callable[..., Any]) -> None:
    K = np.repeat(np.random.default_rng(0).standard_normal((40, 3)), 2, axis=1)
    A = make_method("ksh", bits=8).fit_bits(K, LabelGroups(LABELS))
    assert np.isfinite(A).all()


@pytest.mark.parametrize("multi_label", [False, True])
def test_head_is_the_centred_kernel_expansion(
    make_method: Callable[..., Any], multi_label: bool
) -> None:
    torch.manual_seed(0)
    X = torch.randn(80, 24) + 3
    labels = torch.randint(0, 4, (80,))
    if multi_label:
        labels = torch.nn.functional.one_hot(labels, 4).float()
    method = make_method("ksh", multi_label=multi_label)
    torch.manual_seed(5)
    method.fit(X, labels)
    torch.manual_seed(5)
    anchors = X[torch.randperm(80)[:30]].double().numpy()
    data = X.double().numpy()
    squares = ((data[:, None] - anchors[None]) ** 2).sum(-1)
    kernel = np.exp(-squares / (2 * squares.mean()))
    weight = method.model.head.linear.weight.detach().double().numpy()
    expected = (kernel - kernel.mean(0)) @ weight.T
    found = method.model.head(X).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_too_few_items_for_the_anchors(make_method: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match=r"ksh takes 30 anchors .* got 20; fix: --set ksh.anchors"):
        make_method("ksh").fit(torch.randn(20, 24), torch.arange(20) % 4)
