"""What holds for every method: codes, seeds, blindness to target labels, files, finite losses."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from metah_runtime import metrics
from metah_runtime.codes import pack, unpack
from metah_runtime.errors import DataError
from metah_train.data.base import ArrayImages, Split
from metah_train.evaluation.encode import encode
from metah_train.losses import (
    adversarial,
    classification,
    entropy,
    mmd,
    pairwise,
    quantization,
)
from metah_train.methods import METHODS, method_class
from metah_train.methods.base import Batch, DeepMethod, ShallowMethod, TrainingProgress
from metah_train.training import loop
from metah_train.training.checkpoint import Run

DEEP = [name for name in METHODS if issubclass(method_class(name), DeepMethod)]
SHALLOW = [name for name in METHODS if issubclass(method_class(name), ShallowMethod)]
UNSUPERVISED = ("sh", "itq")
SUPERVISED = [name for name in METHODS if name not in ("lsh", *UNSUPERVISED)]

every_method = pytest.mark.parametrize("name", METHODS)


def test_every_method_is_one_or_the_other() -> None:
    assert sorted(DEEP + SHALLOW) == sorted(METHODS)
    assert set(SHALLOW) == {"lsh", "sh", "itq", "ksh", "sdh"}


@every_method
def test_every_method_names_its_publication(name: str) -> None:
    assert method_class(name).title
    assert method_class(name).source


@every_method
def test_codes_are_plus_and_minus_one_for_any_number_of_images(
    name: str, fit: Callable[..., Run], make_blobs: Callable[..., Split]
) -> None:
    split = make_blobs()
    run = fit(name, split)
    codes, logits = encode(run.model, split.query)
    assert codes.shape == (40, 2)
    assert codes.dtype == np.uint8
    assert set(np.unique(unpack(codes))) <= {0, 1}
    assert (unpack(codes) == (logits > 0)).all()
    assert len(np.unique(codes, axis=0)) > 1
    for n in (0, 1):
        part, part_logits = encode(run.model, split.query.subset(np.arange(n)))
        assert part.shape == (n, 2)
        assert part.dtype == np.uint8
        assert part_logits.shape == (n, 16)
        assert part_logits.dtype == np.float32
        assert (part == codes[:n]).all()


def corrupted(split: Split) -> Split:
    """The split with every target label changed."""

    def wrong(images: Any) -> ArrayImages:
        labels = (images.labels + 1) % 4
        return ArrayImages(images.load(np.arange(len(images))), labels, images.names)

    return replace(split, query=wrong(split.query), database=wrong(split.database))


@every_method
def test_codes_depend_on_the_seed_and_never_on_target_labels(
    name: str, fit: Callable[..., Run], make_blobs: Callable[..., Split]
) -> None:
    split = make_blobs()
    _, first = encode(fit(name, split).model, split.query)
    _, again = encode(fit(name, corrupted(split)).model, split.query)
    _, other = encode(fit(name, split, seed=1).model, split.query)
    assert first.tobytes() == again.tobytes()
    assert (pack(first) != pack(other)).any()


@every_method
def test_target_images_that_carry_labels_are_refused(
    name: str, fit: Callable[..., Run], make_blobs: Callable[..., Split]
) -> None:
    split = make_blobs()
    with pytest.raises(DataError, match="target training images must come without labels"):
        fit(name, replace(split, target_train=split.database))


@pytest.mark.parametrize("name", SHALLOW)
def test_a_head_on_given_features_is_random_but_for_sh(
    name: str, make_method: Callable[..., Any]
) -> None:
    X, y = torch.randn(80, 24, generator=torch.Generator().manual_seed(0)), torch.arange(80) % 4
    codes = []
    for seed in (0, 0, 1):
        method = make_method(name)
        torch.manual_seed(seed)
        method.fit(X, y)
        codes.append(method.model.head(X) > 0)
    assert torch.equal(codes[0], codes[1])
    assert torch.equal(codes[0], codes[2]) == (name == "sh")


@every_method
def test_a_saved_run_gives_the_codes_of_the_fitted_network(
    name: str,
    fit: Callable[..., Run],
    make_blobs: Callable[..., Split],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    split = make_blobs()
    fitted: list[bytes] = []
    save = loop.save_run  # type: ignore[attr-defined]

    def record(path: Path, **parts: Any) -> None:
        fitted.append(encode(parts["model"], split.query)[1].tobytes())
        save(path, **parts)

    monkeypatch.setattr(loop, "save_run", record)
    run = fit(name, split)
    assert encode(run.model, split.query)[1].tobytes() == fitted[0]
    assert encode(Run.open(run.path).model, split.query)[1].tobytes() == fitted[0]


@pytest.mark.parametrize("name", [name for name in METHODS if name != "metah-plus"])
def test_several_labels_an_item_are_taken(
    name: str, fit: Callable[..., Run], make_blobs: Callable[..., Split]
) -> None:
    split = make_blobs(multi_label=True)
    codes, logits = encode(fit(name, split).model, split.query)
    assert np.isfinite(logits).all()
    assert len(np.unique(codes, axis=0)) > 1


@pytest.mark.parametrize("name", [name for name in SHALLOW if name not in ("ksh", "sdh")])
@pytest.mark.parametrize("fit_on", ["source", "target", "both"])
def test_unsupervised_heads_fit_the_domains_they_are_told(
    name: str, fit_on: str, fit: Callable[..., Run], make_blobs: Callable[..., Split]
) -> None:
    split = make_blobs()
    _, found = encode(fit(name, split, options={"fit_on": fit_on}).model, split.query)
    _, default = encode(fit(name, split).model, split.query)
    assert (found.tobytes() == default.tobytes()) == (fit_on == "source")


# Order on separable blobs


def train_map(logits: torch.Tensor, labels: np.ndarray) -> float:
    codes = pack(logits.detach().numpy())
    return float(metrics.evaluate(codes, labels, codes, labels).map_full)


def blobs(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """200 images (4, 4, 1) of 4 classes, apart from each other but in strong noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(200) % 4
    centres = np.random.default_rng(7).uniform(-1, 1, (4, 16))
    images = 128 + 28 * centres[labels] + 14 * rng.standard_normal((200, 16))
    pixels = images.clip(0, 255).astype(np.uint8).reshape(200, 4, 4, 1)
    return torch.from_numpy(pixels), torch.from_numpy(labels)


def blob_map(name: str, make_method: Callable[..., Any], seed: int) -> float:
    """Train MAP of a method on blobs: shallow ones on pixels, deep ones trained for 150 steps."""
    images, labels = blobs(seed)
    X = images.reshape(200, 16).float() / 255
    options = {
        "ksh": {"labelled": 200, "anchors": 100},
        "sdh": {"anchors": 100},
        "thn": {"mmd": 0.3},
    }.get(name, {})
    method = make_method(
        name, bits=8, options=options, **({} if name in DEEP else {"features": 16})
    )
    torch.manual_seed(seed)
    if name in SHALLOW:
        method.fit(X, labels)
        return train_map(method.model.head(X), labels.numpy())
    source = ArrayImages(images.numpy(), labels.numpy(), [str(i) for i in range(200)])
    method.prepare(source, source)
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)
    for step in range(150):
        rows = torch.randint(0, 200, (32,))
        batch = Batch(
            source=images[rows], labels=labels[rows], indices=rows, target=images[rows.flip(0)]
        )
        terms = method.terms(batch, TrainingProgress(step=step, total=150))
        loss = torch.stack([method.weights[key] * term for key, term in terms.items()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return train_map(method.eval().model(images), labels.numpy())


@pytest.fixture(scope="module")
def ladder() -> dict[str, float]:
    """Train MAP of LSH and of the best unsupervised method, filled by the first test to ask."""
    return {}


@pytest.mark.parametrize("name", SUPERVISED)
def test_supervised_beats_unsupervised_beats_random_on_blobs(
    name: str, make_method: Callable[..., Any], ladder: dict[str, float]
) -> None:
    if not ladder:
        for other in ("lsh", *UNSUPERVISED):
            ladder[other] = float(np.mean([blob_map(other, make_method, seed) for seed in (0, 1)]))
    assert ladder["lsh"] + 0.05 < min(ladder[other] for other in UNSUPERVISED)
    assert blob_map(name, make_method, 0) > max(ladder.values()) + 0.05


# Losses


def codes(n: int = 6) -> torch.Tensor:
    torch.manual_seed(3)
    return torch.tanh(torch.randn(n, 8, dtype=torch.float64)).requires_grad_()


LABELS = torch.tensor([0, 1, 0, 2, 1, 0])
SIMILAR = pairwise.shared_label(LABELS)
LOSSES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "released": lambda h: pairwise.released(h, SIMILAR),
    "paper": lambda h: pairwise.paper(h, SIMILAR, balance=True),
    "cauchy": lambda h: pairwise.cauchy(h, SIMILAR, balance=True),
    "product": lambda h: pairwise.product(h, SIMILAR, scale=0.7),
    "product between": lambda h: pairwise.product_losses(h[:3], h[3:], SIMILAR[:3, 3:]).mean(),
    "quantization": quantization.log_cosh_quantization,
    "domain": lambda h: adversarial.domain_loss(h[:3, 0], h[3:, 1]),
    "softmax": lambda h: classification.softmax_cross_entropy(h, LABELS),
    "sigmoid": lambda h: classification.sigmoid_cross_entropy(
        h[:, :3], LABELS[:, None] == LABELS[:3]
    ),
    "softmax entropy": entropy.softmax_entropy,
    "sigmoid entropy": entropy.sigmoid_entropy,
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_match_finite_differences(name: str) -> None:
    assert gradcheck(LOSSES[name], (codes(),), eps=1e-6, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", DEEP)
def test_gradients_of_an_objective_match_finite_differences(
    name: str,
    make_method: Callable[..., Any],
    make_blobs: Callable[..., Split],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # In float64, with respect to the logits of both domains. Reversal is not a gradient, and the
    # bandwidth of the discrepancy counts as constant: both are tested on their own.
    monkeypatch.setattr(adversarial, "reverse_gradient", lambda x, eta: x)
    monkeypatch.setattr(mmd, "squared_distances", with_fixed_mean)
    method = make_method(name).double().eval()
    method.prepare(make_blobs().source_train, make_blobs().target_train)
    method.model.head = torch.nn.Identity()
    torch.manual_seed(3)
    source, target = torch.randn(2, 6, 16, dtype=torch.float64)
    images = torch.zeros(2, 6, 4, 4, 1, dtype=torch.uint8)
    batch = Batch(source=images[0], labels=LABELS, indices=torch.arange(6), target=images[1])

    def objective(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        method.features = lambda x: source if x is batch.source else target
        if name == "metah-plus":  # its distorted view: other codes of the target
            method._distorted = lambda _: method.classes(torch.tanh(0.9 * target), target)
        for key, buffer in list(method.named_buffers(recurse=False)):
            setattr(method, key, buffer.clone())  # HashNet writes into beta
        with monkeypatch.context() as patch:
            if name == "metah-plus":  # let its constants (weights of images) have gradients too
                patch.setattr(torch.Tensor, "detach", lambda x: x)
            terms = method.terms(batch, TrainingProgress(step=5, total=10))
        return torch.stack([method.weights[key] * term for key, term in terms.items()]).sum()

    inputs = (source.requires_grad_(), target.requires_grad_(method.uses_target))
    assert objective(*inputs).dtype == torch.float64
    assert gradcheck(objective, inputs, eps=1e-6, rtol=1e-5, atol=1e-8)


def with_fixed_mean(h: torch.Tensor) -> torch.Tensor:
    """Squared distances that, once detached, are 8 each."""
    found = pairwise.squared_distances(h)
    found.detach = lambda: torch.full_like(found, 8.0)  # type: ignore[method-assign]
    return found


@pytest.mark.parametrize("labels", [[2, 2, 2, 2], [0, 1, 2, 3]], ids=["similar", "dissimilar"])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("name", DEEP)
def test_losses_and_gradients_are_finite(
    name: str,
    size: float,
    labels: list[int],
    make_method: Callable[..., Any],
    make_blobs: Callable[..., Split],
) -> None:
    method = make_method(name)
    method.prepare(make_blobs().source_train, make_blobs().target_train)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (8, 4, 4, 1), dtype=torch.uint8)
    last = list(method.model.head.parameters())[-2:]
    with torch.no_grad():
        factor = size / method.model.eval()(images).abs().max()
        for parameter in last:
            parameter.mul_(factor)
        assert float(method.model(images).abs().max()) == pytest.approx(size, rel=1e-3)
    method.train()
    batch = Batch(
        source=images[:4], labels=torch.tensor(labels), indices=torch.arange(4), target=images[4:]
    )
    terms = method.terms(batch, TrainingProgress(step=5, total=10))
    loss = torch.stack([method.weights[key] * term for key, term in terms.items()]).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert terms.keys() <= method.weights.keys()
    for parameter in method.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()
