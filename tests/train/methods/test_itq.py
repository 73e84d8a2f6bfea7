"""Iterative quantization: its objective, its rotation and its guards."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from metah_runtime.errors import ConfigError, DataError
from metah_train.methods.itq import rotation_step, signs


def orthogonal(b: int, seed: int) -> np.ndarray:
    q: np.ndarray = np.linalg.qr(np.random.default_rng(seed).standard_normal((b, b)))[0]
    return q


def loss(V: np.ndarray, R: np.ndarray, B: np.ndarray) -> float:
    return float(((B - V @ R) ** 2).sum())


def test_each_half_step_lowers_the_objective_and_keeps_the_rotation() -> None:
    V = np.random.default_rng(0).standard_normal((200, 8)) * np.arange(8, 0, -1)
    R = orthogonal(8, 1)
    first = loss(V, R, signs(V @ R))
    B = signs(V @ R)
    for _ in range(30):
        following = rotation_step(V, R)
        rotated, before = loss(V, following, B), loss(V, R, B)
        B = signs(V @ following)
        assert rotated <= before + 1e-9
        assert loss(V, following, B) <= rotated + 1e-9
        R = following
        assert np.linalg.norm(R.T @ R - np.eye(8)) < 1e-10
        assert np.linalg.norm(V @ R) == pytest.approx(np.linalg.norm(V))
    assert loss(V, R, B) <= first
    assert loss(V, R, B) <= loss(V, np.eye(8), signs(V))


def test_the_step_is_the_best_rotation_for_its_codes() -> None:
    V = np.random.default_rng(2).standard_normal((50, 4))
    R = orthogonal(4, 3)
    B, best = signs(V @ R), rotation_step(V, R)
    for seed in range(50):
        assert loss(V, best, B) <= loss(V, orthogonal(4, seed + 10), B)


def test_rotated_binary_data_is_recovered(make_method: Callable[..., Any]) -> None:
    rng = np.random.default_rng(5)
    B = signs(rng.standard_normal((400, 8)))
    X = B @ orthogonal(8, 6) + 3
    losses = []
    for seed in range(5):
        method = make_method("itq", bits=8, features=8)
        torch.manual_seed(seed)
        method.fit(torch.from_numpy(X).float(), None)
        projected = method.model.head(torch.from_numpy(X).float()).detach().double().numpy()
        losses.append(((signs(projected) - projected) ** 2).mean())
    assert min(losses) < 0.02


def test_the_training_mean_is_reused_for_new_data(make_method: Callable[..., Any]) -> None:
    X = torch.randn(100, 24) + 50
    method = make_method("itq")
    method.fit(X, None)
    assert method.model.head(X.mean(0, keepdim=True)).abs().max() < 1e-3
    assert float(method.model.head.weight.detach().norm()) == pytest.approx(4.0)


def test_more_bits_than_features_are_refused(make_config: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="itq needs features >= bits, got 24 features for 32"):
        make_config("itq", bits=32)


def test_a_rank_below_the_bits_is_refused(make_method: Callable[..., Any]) -> None:
    method = make_method("itq")
    with pytest.raises(DataError, match="span 5 dimensions, 16 bits need 16; fix: fewer bits"):
        method.fit(torch.randn(100, 5) @ torch.randn(5, 24), None)
    with pytest.raises(DataError, match="the 9 training features span 8 dimensions"):
        method.fit(torch.randn(9, 24), None)
