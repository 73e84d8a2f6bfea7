"""CNNH: stage 1 against the plain algorithm and finite differences, stage 2 in data order."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from metah_train.data.base import Split
from metah_train.methods import cnnh
from metah_train.methods.base import Batch, TrainingProgress
from metah_train.methods.label_groups import LabelGroups


def similarity(labels: torch.Tensor) -> np.ndarray:
    if labels.ndim == 2:
        shared = (labels.float() @ labels.float().T > 0).numpy()
        np.fill_diagonal(shared, True)
    else:
        shared = (labels[:, None] == labels[None]).numpy()
    return np.where(shared, 1.0, -1.0)


def plain(H: np.ndarray, S: np.ndarray, column: int, rows: np.ndarray) -> None:
    """The algorithm as published: L = H H^T - q S is kept and updated after every entry."""
    q = H.shape[1]
    L = H @ H.T - q * S
    for i in rows:
        x = H[i, column]
        slope = 4 * L[i] @ H[:, column]
        curvature = 4 * (H[:, column] @ H[:, column] + x * x + L[i, i])
        d = cnnh.newton_step(float(x), float(slope), float(curvature))
        L[i] += d * H[:, column]
        L[:, i] += d * H[:, column]
        L[i, i] += d * d
        H[i, column] += d
    np.testing.assert_allclose(L, H @ H.T - q * S, atol=1e-6)


LABELS = {
    "single": torch.arange(70) % 3,
    "multi": (torch.rand(70, 4, generator=torch.Generator().manual_seed(1)) < 0.3).long(),
}


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
@pytest.mark.parametrize("kind", LABELS)
def test_descent_equals_the_plain_algorithm(
    kind: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cnnh, "BLOCK", block)
    labels = LABELS[kind]
    S, groups = similarity(labels), LabelGroups(labels)
    rng = np.random.default_rng(0)
    fast = rng.uniform(-1, 1, (70, 6))
    slow = fast.copy()
    for column in (2, 0, 5, 2):
        rows = rng.permutation(70)
        cnnh.descend(fast, groups, column, rows)
        plain(slow, S, column, rows)
        np.testing.assert_allclose(fast, slow, atol=1e-9)


def objective(H: np.ndarray, S: np.ndarray) -> float:
    return float(((H @ H.T - H.shape[1] * S) ** 2).sum())


def test_slope_and_curvature_match_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = LABELS["single"][:12]
    S = similarity(labels)
    H = np.random.default_rng(3).uniform(-1, 1, (12, 4))
    seen: list[tuple[float, float, float]] = []

    def record(x: float, slope: float, curvature: float) -> float:
        seen.append((x, slope, curvature))
        return 0.0

    monkeypatch.setattr(cnnh, "newton_step", record)
    cnnh.descend(H.copy(), LabelGroups(labels), 1, np.arange(12))
    eps = 1e-4
    for i, (x, slope, curvature) in enumerate(seen):
        values = []
        for change in (-eps, 0.0, eps, 0.5):
            moved = H.copy()
            moved[i, 1] += change
            values.append(objective(moved, S))
        assert slope == pytest.approx((values[2] - values[0]) / (2 * eps), rel=1e-6, abs=1e-4)
        second = (values[2] - 2 * values[1] + values[0]) / eps**2
        assert curvature == pytest.approx(second, rel=1e-4, abs=1e-2)
        # The quartic that newton_step trusts is exact.
        d = 0.5
        quartic = values[1] + slope * d + curvature * d**2 / 2 + 4 * x * d**3 + d**4
        assert values[3] == pytest.approx(quartic)


@pytest.mark.parametrize(
    ("x", "slope", "curvature", "expected"),
    [
        (0.0, -10.0, 100.0, 0.1),  # Newton
        (0.5, -1000.0, 100.0, 0.5),  # cut at +1
        (0.5, 1000.0, 100.0, -1.5),  # cut at -1
        (0.2, -50.0, -1.0, 0.8),  # concave: the bound downhill
        (0.2, 50.0, -1.0, -1.2),
        (1.0, -5.0, 10.0, 0.0),  # at the bound already
        (0.0, 0.0, -1.0, 0.0),  # flat
        (1.0, 2.0, 1.0, -2.0),
        (0.0, -1.0, 1.0, 0.0),  # the step would end at the bound, higher: not taken
    ],
)
def test_newton_step(x: float, slope: float, curvature: float, expected: float) -> None:
    assert cnnh.newton_step(x, slope, curvature) == pytest.approx(expected)


@pytest.mark.parametrize("kind", LABELS)
def test_objective_never_rises_and_codes_stay_in_bounds(kind: str) -> None:
    labels = LABELS[kind]
    S, groups = similarity(labels), LabelGroups(labels)
    rng = np.random.default_rng(0)
    H = rng.uniform(-1, 1, (70, 8))
    values = [objective(H, S)]
    for _ in range(6):
        for column in range(8):
            cnnh.descend(H, groups, column, rng.permutation(70))
        values.append(objective(H, S))
        assert np.abs(H).max() <= 1
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0]


def test_two_classes_get_opposite_codes() -> None:
    torch.manual_seed(0)
    labels = torch.arange(40) % 2
    H = cnnh.approximate_codes(labels, 8, sweeps=10)
    np.testing.assert_allclose(np.abs(H), 1, atol=1e-9)
    assert (H[::2] == H[0]).all()
    assert (H[1::2] == -H[0]).all()


def test_codes_follow_the_order_of_the_data(
    make_method: Callable[..., Any], make_blobs: Callable[..., Split]
) -> None:
    source = make_blobs().source_train
    assert source.labels is not None
    order = np.random.default_rng(0).permutation(len(source))
    shuffled = source.subset(order)
    method = make_method("cnnh")
    method.prepare(shuffled, shuffled)
    labels = source.labels[order]
    codes = method.codes.numpy()
    for c in range(4):
        # After a few sweeps items of a class share a code; rows out of order would mix classes.
        assert len(np.unique(codes[labels == c], axis=0)) == 1
    assert len(np.unique(codes, axis=0)) == 4


def test_each_item_is_regressed_on_its_own_code(make_method: Callable[..., Any]) -> None:
    method = make_method("cnnh", dropout=0.0, noise=0.0).eval()
    method.register_buffer("codes", torch.randn(10, 16).sign(), persistent=False)
    images = torch.randint(0, 256, (3, 4, 4, 1), dtype=torch.uint8)
    rows = torch.tensor([7, 2, 5])
    batch = Batch(source=images, labels=torch.zeros(3).long(), indices=rows, target=None)
    h = torch.tanh(method.model(images))
    expected = sum((h[i] - method.codes[row]).square().mean() for i, row in enumerate(rows)) / 3
    found = method.terms(batch, TrainingProgress(step=0, total=1))["regression"]
    torch.testing.assert_close(found, expected)
