"""The losses of METAH+ against loops, closed forms and finite differences."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from metah_train.losses import bits, codeword, conditional, confusion, consistency, pseudo


@pytest.fixture
def logits() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(7, 4, dtype=torch.float64, requires_grad=True)


def test_class_confusion_equals_a_loop(logits: torch.Tensor) -> None:
    p = torch.softmax(logits.detach() / 2.5, 1).tolist()
    h = [-sum(q * math.log(q) for q in row) for row in p]
    total = sum(1 + math.exp(-x) for x in h)
    w = [7 * (1 + math.exp(-x)) / total for x in h]
    loss = 0.0
    for c in range(4):
        row = [sum(w[i] * p[i][c] * p[i][d] for i in range(7)) for d in range(4)]
        loss += sum(value for d, value in enumerate(row) if d != c) / sum(row)
    found = confusion.class_confusion(logits, temperature=2.5)
    assert float(found.detach()) == pytest.approx(loss / 4, rel=1e-12)


def test_class_confusion_is_0_for_certain_and_largest_for_uniform_predictions() -> None:
    certain = torch.eye(5)[torch.tensor([0, 1, 2, 3, 4, 4])] * 1e3
    assert float(confusion.class_confusion(certain)) == pytest.approx(0, abs=1e-6)
    uniform = torch.zeros(6, 5)
    assert float(confusion.class_confusion(uniform)) == pytest.approx(1 - 1 / 5)
    # Where entropy is content, it is not: all items in one class, but not quite certain of it.
    one = torch.zeros(6, 5)
    one[:, 0] = 5
    spread = torch.zeros(6, 5)
    spread[torch.arange(6), torch.tensor([0, 1, 2, 3, 4, 0])] = 5
    assert confusion.class_confusion(one) > 0.2 + confusion.class_confusion(spread)


def test_class_confusion_weights_have_no_gradient_and_extremes_are_finite(
    logits: torch.Tensor,
) -> None:
    weight = torch.softmax(logits.detach(), 1)
    entropy = -(weight * weight.log()).sum(1)
    w = 1 + torch.exp(-entropy)
    w = 7 * w / w.sum()

    def fixed(x: torch.Tensor) -> torch.Tensor:
        p = torch.softmax(x, 1)
        m = p.T @ (w[:, None] * p)
        m = m / m.sum(1, keepdim=True)
        return (m.sum() - m.trace()) / 4

    (found,) = torch.autograd.grad(confusion.class_confusion(logits, temperature=1), logits)
    (expected,) = torch.autograd.grad(fixed(logits), logits)
    torch.testing.assert_close(found, expected)
    large = torch.tensor([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0]], requires_grad=True)
    confusion.class_confusion(large).backward()
    assert large.grad is not None
    assert torch.isfinite(large.grad).all()


def test_codes_by_class_is_an_outer_product_that_reaches_the_codes_alone(
    logits: torch.Tensor,
) -> None:
    h = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    found = conditional.codes_by_class(h, logits)
    p = torch.softmax(logits, 1)
    assert found.shape == (7, 12)
    for i in range(7):
        for k in range(3):
            for c in range(4):
                assert float(found[i, 4 * k + c].detach()) == pytest.approx(
                    float((h[i, k] * p[i, c]).detach())
                )
    found.sum().backward()
    assert logits.grad is None
    torch.testing.assert_close(h.grad, torch.ones(7, 3, dtype=torch.float64))


@pytest.mark.parametrize("width", [8, 16, 24, 32, 48, 64, 96, 128])
def test_codewords_are_half_the_bits_apart(width: int) -> None:
    words = codeword.codewords(width - 1, width)
    assert set(words.unique().tolist()) == {-1.0, 1.0}
    products = words @ words.T
    assert torch.equal(products, width * torch.eye(width - 1))


@pytest.mark.parametrize(("classes", "width"), [(12, 8), (68, 48), (99, 64), (10, 40), (3, 56)])
def test_codewords_of_other_numbers_are_far_from_one_another(classes: int, width: int) -> None:
    words = codeword.codewords(classes, width)
    assert words.shape == (classes, width)
    assert torch.equal(words, codeword.codewords(classes, width))
    distances = (width - words @ words.T) / 2 + width * torch.eye(classes)
    assert distances.min() >= (2 if width == 8 else width / 4)


def test_codeword_loss_is_the_cross_entropy_of_cosines_with_a_margin() -> None:
    torch.manual_seed(0)
    h = torch.tanh(torch.randn(5, 16, dtype=torch.float64)).requires_grad_()
    labels = torch.tensor([0, 2, 1, 2, 0])
    words = codeword.codewords(3, 16).double()
    loss = 0.0
    for i, y in enumerate(labels.tolist()):
        cosines = torch.cosine_similarity(h[i].detach()[None], words).tolist()
        z = [8 * (cos - 0.2 * (c == y)) for c, cos in enumerate(cosines)]
        loss += math.log(sum(math.exp(v) for v in z)) - z[y]
    found = codeword.codeword_loss(h, labels, words)
    assert float(found.detach()) == pytest.approx(loss / 5, rel=1e-12)
    assert gradcheck(lambda x: codeword.codeword_loss(x, labels, words), (h,), rtol=1e-5)
    own = words[labels]
    assert codeword.codeword_loss(own, labels, words) < found


def test_bit_losses_equal_loops() -> None:
    torch.manual_seed(0)
    h = torch.tanh(torch.randn(6, 8, dtype=torch.float64)).requires_grad_()
    x = h.detach().tolist()
    balance = sum((sum(row[k] for row in x) / 6) ** 2 for k in range(8)) / 8
    assert float(bits.bit_balance(h).detach()) == pytest.approx(balance)
    correlation = sum(
        (sum(row[k] * row[m] for row in x) / 6) ** 2 for k in range(8) for m in range(8) if k != m
    )
    assert float(bits.bit_correlation(h).detach()) == pytest.approx(correlation / 56)
    for loss in (bits.bit_balance, bits.bit_correlation):
        assert gradcheck(loss, (h,), rtol=1e-5)
    rows = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert float(bits.bit_balance(rows)) == float(bits.bit_correlation(rows)) == 0
    assert float(bits.bit_balance(rows[:1])) == float(bits.bit_correlation(rows[:1])) == 1


def test_confident_items_and_their_labels() -> None:
    logits = torch.tensor([[9.0, 0, 0], [1.0, 0, 0], [0, 0, 9.0]], requires_grad=True)
    rows, labels = pseudo.confident(logits, 0.95)
    assert (rows.tolist(), labels.tolist()) == ([0, 2], [0, 2])
    assert not rows.requires_grad
    assert pseudo.confident(logits, 0.0)[0].tolist() == [0, 1, 2]
    assert pseudo.confident(torch.zeros(2, 3), 0.95)[0].tolist() == []


def test_consistency_by_hand() -> None:
    logits = torch.tensor([[9.0, 0, 0], [1.0, 0, 0], [0, 0, 9.0]], requires_grad=True)
    view = torch.tensor([[0.0, 1, 2], [5.0, 5, 5], [1.0, 0, 0]], requires_grad=True)
    loss = consistency.consistency_loss(logits, view, threshold=0.95)
    total = math.log(1 + math.e + math.e**2) + math.log(math.e + 2)
    assert float(loss.detach()) == pytest.approx(total / 3, rel=1e-5)
    loss.backward()
    assert logits.grad is None  # the plain view is the teacher
    assert view.grad is not None
    assert view.grad[1].tolist() == [0, 0, 0]  # not confident: no gradient
    nobody = consistency.consistency_loss(torch.zeros(2, 3), torch.zeros(2, 3), threshold=0.95)
    assert float(nobody) == 0
