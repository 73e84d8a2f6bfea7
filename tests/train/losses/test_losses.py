"""Each loss against golden values, closed forms, finite differences and its stated invariances."""

import math
from collections.abc import Callable

import pytest
import torch
from torch.autograd import gradcheck

from metah_train.losses import adversarial, classification, entropy, pairwise, quantization

FORMS = pairwise.FORMS


def codes_at(distance: int, bits: int = 48) -> torch.Tensor:
    """Two binary codes that differ in ``distance`` bits."""
    h = torch.ones(2, bits, dtype=torch.float64)
    h[1, :distance] = -1
    return h


def kind(similar: bool, n: int = 2) -> torch.Tensor:
    return torch.full((n, n), similar)


@pytest.fixture
def h() -> torch.Tensor:
    torch.manual_seed(3)
    return torch.tanh(torch.randn(6, 16, dtype=torch.float64)).requires_grad_()


LABELS = torch.tensor([0, 1, 0, 2, 1, 0])


# Pairwise


@pytest.mark.parametrize(
    ("distance", "similar_loss", "dissimilar_loss"),
    [
        (0, 0.0, 24.0),
        (1, 0.0082, 4.8082),
        (2, 0.0672, 2.7338),
        (3, 0.1466, 1.9927),
        (24, 0.5771, 0.8245),
    ],
)
def test_released_form_has_its_published_values(
    distance: int, similar_loss: float, dissimilar_loss: float
) -> None:
    # The mean over four pairs holds the two diagonal ones, whose distance is 0.
    h = codes_at(distance)
    for similar, expected, diagonal in ((True, similar_loss, 0.0), (False, dissimilar_loss, 24.0)):
        loss = pairwise.released(h, kind(similar))
        assert float(2 * loss - diagonal) == pytest.approx(expected, abs=6e-5)


@pytest.mark.parametrize(
    ("distance", "p"), [(0, 0.9640), (1, 0.3799), (2, 0.2186), (3, 0.1526), (24, 0.0206)]
)
def test_paper_form_has_its_published_probabilities(distance: int, p: float) -> None:
    h = codes_at(distance)
    assert float(torch.exp(-pairwise.paper(h, kind(True)))) == pytest.approx(p, abs=6e-5)
    assert float(torch.exp(-pairwise.paper(h, kind(False)))) == pytest.approx(1 - p, abs=6e-5)


@pytest.mark.parametrize(("distance", "gamma"), [(1, 8.0), (2, 8.0), (24, 20.0)])
def test_cauchy_form_is_the_cauchy_probability_of_the_hamming_distance(
    distance: int, gamma: float
) -> None:
    h, p = codes_at(distance), gamma / (gamma + distance)
    similar = pairwise.cauchy(h, kind(True), gamma=gamma)
    assert float(similar) == pytest.approx(-math.log(p), rel=1e-9)
    dissimilar = pairwise.cauchy(h, kind(False), gamma=gamma)
    assert float(dissimilar) == pytest.approx(-math.log(1 - p), rel=1e-9)


@pytest.mark.parametrize(("bits", "peak"), [(32, 2), (48, 3), (64, 3)])
def test_released_gradient_peaks_near_the_ball(bits: int, peak: int) -> None:
    def slope(distance: int) -> float:
        square = torch.tensor(4.0 * distance, dtype=torch.float64, requires_grad=True)
        torch.nn.functional.softplus(-(bits // 2) / (1 + square)).backward()
        assert square.grad is not None
        return float(square.grad)

    slopes = [slope(d) for d in range(bits // 2 + 1)]
    assert slopes.index(max(slopes)) == peak
    if bits == 48:
        assert slopes[peak] / slopes[24] == pytest.approx(17, abs=1)


def test_released_gradient_is_the_closed_form(h: torch.Tensor) -> None:
    similar = pairwise.shared_label(LABELS)
    pairwise.released(h, similar).backward()
    n, c = len(h), h.shape[1] // 2
    expected = torch.zeros_like(h)
    for i in range(n):
        for j in range(n):
            square = float((h[i] - h[j]).detach().square().sum())
            sigma = 1 / (1 + math.exp(-c / (1 + square)))
            slope = (sigma - float(similar[i, j])) * (-2 * c) / (1 + square) ** 2
            expected[i] += 2 / n**2 * slope * (h[i] - h[j]).detach()
    assert h.grad is not None
    torch.testing.assert_close(h.grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("balance", [False, True])
def test_pairwise_equals_a_loop_over_pairs(form: str, balance: bool, h: torch.Tensor) -> None:
    h, similar = h.detach(), pairwise.shared_label(LABELS)
    losses: dict[bool, list[float]] = {True: [], False: []}
    for i in range(6):
        for j in range(6):
            if i == j and form not in ("released", "product"):
                continue
            s, square = bool(similar[i, j]), float((h[i] - h[j]).square().sum())
            if form in ("released", "product"):
                sim = 8 / (1 + square) if form == "released" else float(h[i] @ h[j])
                loss = math.log(1 + math.exp(sim)) - s * sim
            else:
                cos = float(torch.cosine_similarity(h[i], h[j], dim=0))
                p = math.tanh(2 / (1 + square)) if form == "paper" else 8 / (8 + 8 * (1 - cos))
                loss = -math.log(p if s else 1 - p)
            losses[s].append(loss)
    ones, zeros = losses[True], losses[False]
    if balance:
        expected = (sum(ones) / len(ones) + sum(zeros) / len(zeros)) / 2
    else:
        expected = (sum(ones) + sum(zeros)) / (len(ones) + len(zeros))
    found = pairwise.pairwise_loss(h, similar, form=form, balance=balance)
    assert float(found) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("balance", [False, True])
def test_pairwise_ignores_the_order_and_has_a_true_gradient(
    form: str, balance: bool, h: torch.Tensor
) -> None:
    def loss(x: torch.Tensor, labels: torch.Tensor = LABELS) -> torch.Tensor:
        return pairwise.pairwise_loss(x, pairwise.shared_label(labels), form=form, balance=balance)

    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(loss(h), loss(h[order], LABELS[order]))
    assert gradcheck(loss, (h,), eps=1e-6, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("form", FORMS)
def test_pairwise_falls_for_similar_and_rises_for_dissimilar_pairs_as_they_approach(
    form: str,
) -> None:
    def losses(similar: bool) -> list[float]:
        return [
            float(pairwise.pairwise_loss(codes_at(d), kind(similar), form=form))
            for d in range(24, 0, -1)
        ]

    assert losses(True) == sorted(losses(True), reverse=True)
    assert losses(False) == sorted(losses(False))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3]])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_pairwise_is_finite_for_extreme_logits_and_one_kind_of_pair(
    form: str, balance: bool, labels: list[int], scale: float
) -> None:
    torch.manual_seed(0)
    z = (scale * torch.randn(4, 32)).requires_grad_()
    similar = pairwise.shared_label(torch.tensor(labels))
    loss = pairwise.pairwise_loss(torch.tanh(z), similar, form=form, balance=balance)
    loss.backward()
    assert z.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(z.grad).all()


def test_items_are_similar_if_they_share_any_label() -> None:
    hot = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 1]], dtype=torch.uint8)
    assert pairwise.shared_label(hot).tolist() == [
        [True, True, False],
        [True, True, True],
        [False, True, True],
    ]
    assert pairwise.shared_label(torch.tensor([4, 2, 4])).tolist() == [
        [True, False, True],
        [False, True, False],
        [True, False, True],
    ]


def test_unknown_form_is_refused(h: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="form must be one of"):
        pairwise.pairwise_loss(h, pairwise.shared_label(LABELS), form="gauss")


# Quantization


def test_quantization_is_zero_on_codes_even_and_stable(h: torch.Tensor) -> None:
    binary = torch.where(h.detach() > 0, 1.0, -1.0)
    assert float(quantization.log_cosh_quantization(binary)) == 0
    loss = quantization.log_cosh_quantization(h)
    torch.testing.assert_close(loss, quantization.log_cosh_quantization(-h))
    expected = torch.log(torch.cosh(h.detach().abs() - 1)).mean()
    torch.testing.assert_close(loss.detach(), expected)
    assert float(quantization.log_cosh(torch.tensor(1e3))) == pytest.approx(1e3 - math.log(2))
    assert gradcheck(quantization.log_cosh_quantization, (h,), eps=1e-6, rtol=1e-5, atol=1e-8)


# Entropy


def test_softmax_entropy_is_log_classes_when_uniform_and_zero_when_certain() -> None:
    assert float(entropy.softmax_entropy(torch.full((3, 10), 7.0))) == pytest.approx(math.log(10))
    certain = torch.zeros(3, 10)
    certain[:, 2] = 1e4
    assert float(entropy.softmax_entropy(certain)) == 0
    assert float(entropy.sigmoid_entropy(torch.zeros(3, 10))) == pytest.approx(10 * math.log(2))
    assert float(entropy.sigmoid_entropy(torch.full((3, 10), -1e4))) == 0


@pytest.mark.parametrize("loss", [entropy.softmax_entropy, entropy.sigmoid_entropy])
def test_entropy_is_finite_at_extreme_logits(
    loss: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]], requires_grad=True)
    value = loss(logits)
    value.backward()
    assert logits.grad is not None
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()


def test_softmax_entropy_has_its_closed_gradient_and_ignores_a_constant() -> None:
    torch.manual_seed(1)
    o = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    value = entropy.softmax_entropy(o)
    value.backward()
    p = torch.softmax(o.detach(), 1)
    each = -(p * p.log()).sum(1, keepdim=True)
    torch.testing.assert_close(o.grad, -p * (p.log() + each) / 4)
    torch.testing.assert_close(value, entropy.softmax_entropy(o + 100.0))
    assert 0 <= float(value.detach()) <= math.log(5)
    assert gradcheck(entropy.softmax_entropy, (o,), eps=1e-6, rtol=1e-5, atol=1e-8)
    assert gradcheck(entropy.sigmoid_entropy, (o,), eps=1e-6, rtol=1e-5, atol=1e-8)


# Classification


def test_classification_of_one_label_equals_its_one_hot_form() -> None:
    torch.manual_seed(2)
    o, y = torch.randn(4, 3), torch.tensor([0, 2, 1, 2])
    hot = torch.nn.functional.one_hot(y, 3)
    single = classification.softmax_cross_entropy(o, y)
    torch.testing.assert_close(single, classification.softmax_cross_entropy(o, hot.float()))
    expected = -torch.log_softmax(o, 1)[torch.arange(4), y].mean()
    torch.testing.assert_close(single, expected)
    sigmoid = classification.sigmoid_cross_entropy(o, hot)
    p = torch.sigmoid(o)
    torch.testing.assert_close(
        sigmoid, -torch.where(hot.bool(), p.log(), (1 - p).log()).mean(), rtol=1e-5, atol=1e-6
    )


def test_several_labels_share_the_weight() -> None:
    o = torch.tensor([[1.0, 2.0, 3.0]])
    loss = classification.softmax_cross_entropy(o, torch.tensor([[1.0, 0.0, 1.0]]))
    log_p = torch.log_softmax(o, 1)[0]
    torch.testing.assert_close(loss, -(log_p[0] + log_p[2]) / 2)


# Adversarial


@pytest.mark.parametrize(
    ("fraction", "eta"), [(0, 0.0), (0.1, 0.4621), (0.25, 0.8483), (0.5, 0.9866), (1, 0.9999)]
)
def test_ramp_has_its_published_values(fraction: float, eta: float) -> None:
    assert adversarial.ramp(fraction) == pytest.approx(eta, abs=6e-5)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_reversal_is_the_identity_forward_and_minus_eta_backward(eta: float) -> None:
    torch.manual_seed(4)
    x = torch.randn(3, 5, requires_grad=True)
    weight = torch.randn(3, 5)
    y = adversarial.reverse_gradient(x, eta)
    assert torch.equal(y, x)
    (y * weight).sum().backward()
    assert torch.equal(x.grad, -eta * weight)


def test_discriminator_gradient_does_not_depend_on_eta() -> None:
    torch.manual_seed(5)
    d = adversarial.Discriminator(8, width=4, dropout=0.0)
    h = torch.randn(6, 8)

    def gradient(eta: float) -> list[torch.Tensor]:
        logits = d(adversarial.reverse_gradient(h, eta))
        loss = adversarial.domain_loss(logits[:3], logits[3:])
        return list(torch.autograd.grad(loss, list(d.parameters())))

    assert all(map(torch.equal, gradient(0.0), gradient(1.0)))


def test_domain_loss_is_the_mean_over_both_domains() -> None:
    s, t = torch.tensor([0.5, -1.0]), torch.tensor([2.0])
    losses = [math.log(1 + math.exp(0.5)), math.log(1 + math.exp(-1)), math.log(1 + math.exp(-2))]
    assert float(adversarial.domain_loss(s, t)) == pytest.approx(sum(losses) / 3)
