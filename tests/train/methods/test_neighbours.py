"""The memory of target images, against a slow reading of the paper; its loss."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metah_train.losses.neighbourhood import neighbourhood_loss
from metah_train.methods.neighbours import Memory


def slow(memory: Memory, rows: list[int], features: np.ndarray, count: int) -> tuple[list, list]:
    bank, p = memory.features.numpy().astype(float), memory.p.numpy().astype(float)
    seen = np.flatnonzero(memory.seen.numpy())
    total = p.sum(0)
    sharp = {j: (p[j] ** 2 / total) / (p[j] ** 2 / total).sum() for j in seen}
    labels, weights = [], []
    for row, f in zip(rows, features, strict=True):
        others = sorted(
            (j for j in seen if j != row), key=lambda j: -(f / np.linalg.norm(f)) @ bank[j]
        )
        mean = np.mean([sharp[j] for j in others[:count]], axis=0)
        labels.append(int(mean.argmax()))
        weights.append(float(mean.max()))
    return labels, weights


@given(st.integers(0, 2**32), st.integers(1, 12))
def test_classes_are_those_of_the_paper(seed: int, count: int) -> None:
    torch.manual_seed(seed)
    memory = Memory(9, 4, 3)
    written = torch.randperm(9)[:7]
    memory.update(written, torch.randn(7, 4), torch.randn(7, 3))
    rows, features = torch.randperm(9)[:5], torch.randn(5, 4)
    labels, weights = memory.classes(rows, features, count)
    due = slow(memory, rows.tolist(), features.numpy(), count)
    assert labels.tolist() == due[0]
    np.testing.assert_allclose(weights.numpy(), due[1], rtol=1e-5)


def test_an_image_does_not_ask_itself_and_nobody_knows_at_first() -> None:
    memory = Memory(3, 2, 2)
    rows, features = torch.tensor([0]), torch.tensor([[1.0, 0.0]])
    assert memory.classes(rows, features, 5)[1].tolist() == [0]
    memory.update(rows, features, torch.tensor([[9.0, 0.0]]))
    assert memory.classes(rows, features, 5)[1].tolist() == [0]
    labels, weights = memory.classes(torch.tensor([1]), features, 1)
    assert labels.tolist() == [0]
    assert weights[0] > 0.99
    memory.update(torch.tensor([1]), features, torch.tensor([[0.0, 9.0]]))
    assert memory.classes(rows, features, 1)[0].tolist() == [1]


def test_the_loss() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, 5.0]], requires_grad=True)
    labels, weights = torch.tensor([0, 0, 1]), torch.tensor([0.5, 1.0, 0.0])
    loss = neighbourhood_loss(logits, labels, weights)
    due = (0.5 * np.log1p(np.exp(-2)) + np.log1p(np.exp(1))) / 1.5
    assert float(loss.detach()) == pytest.approx(due, rel=1e-6)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad[2].abs().sum() == 0
    assert float(neighbourhood_loss(logits, labels, torch.zeros(3)).detach()) == 0
