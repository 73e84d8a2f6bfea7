"""Detail codes and refitted heads: equal to a plain numpy reference, fitted without any label."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from metah_runtime.codes import pack
from metah_runtime.errors import ConfigError, DataError
from metah_train.config import Config, load
from metah_train.data.base import ArrayImages
from metah_train.evaluation.encode import encode
from metah_train.methods.sampling import seed_step
from metah_train.training import projections
from metah_train.training.checkpoint import Run
from metah_train.training.loop import fit

QUICK = ["epochs=1", "batch=12", "features=32", "warmup=2", "threads=1"]


def reference(domains: list[np.ndarray], bits: int, whitening: float = 0) -> np.ndarray:
    """PCA-ITQ of features (n, d) a domain: one SVD, then 50 alternations; (d, bits)."""
    X = np.concatenate([f - f.mean(0) for f in domains])
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    _, S, Vt = np.linalg.svd(X - X.mean(0), full_matrices=False)
    noise = max(X.shape) * np.finfo(np.float32).eps * S[0]
    r = min(bits, np.count_nonzero(noise < S))
    W = Vt[:r].T
    W *= np.sign(W[np.abs(W).argmax(0), np.arange(r)])  # a component has no sign of its own
    W /= ((X - X.mean(0)) @ W).std(0) ** whitening
    P = (X - X.mean(0)) @ W
    R = np.linalg.svd(torch.randn(bits, bits, dtype=torch.float64).numpy())[0][:r]
    for _ in range(50):
        B = np.where(P @ R >= 0, 1.0, -1.0)
        U, _, Th = np.linalg.svd(B.T @ P, full_matrices=False)
        R = Th.T @ U.T
    return W @ R


@pytest.mark.parametrize("bits", [8, 24, 64])
@pytest.mark.parametrize("n", [(3, 4), (97, 31), (20, 257)])
@pytest.mark.parametrize("whitening", [0, 0.25, 1])
def test_a_projection_is_the_reference(bits: int, n: tuple[int, int], whitening: float) -> None:
    rng = np.random.default_rng(bits + n[0])
    scales = np.linspace(3, 0.2, 40)
    source, target = (rng.standard_normal((m, 40)) * scales + 5 * i for i, m in enumerate(n))
    layer = torch.nn.Linear(40, bits)
    bias = projections.fit(
        layer, {"target": target, "source": source}, 3, "detail", whitening=whitening
    )
    seed_step(3, "detail", 0)
    W = reference([target, source], bits, whitening)
    for f, own in ((target, layer.bias), (source, bias)):
        found = torch.from_numpy(f).float() @ layer.weight.T + own
        due = (f - f.mean(0)) @ W
        np.testing.assert_allclose(found.detach().numpy(), due, rtol=1e-3, atol=1e-3)
        sure = np.abs(due) > 1e-3
        assert np.array_equal(found.detach().numpy()[sure] > 0, due[sure] > 0)


def test_lengths_of_joined_features_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.standard_normal((2, 60, 12))
    codes = []
    for scale in (1.0, 512.0):
        layer = torch.nn.Linear(24, 16)
        domains = {"target": np.hstack([one, scale * two]), "source": np.hstack([two, scale * one])}
        projections.fit(layer, domains, 0, "detail", parts=(12, 12))
        codes.append(torch.from_numpy(domains["target"]).float() @ layer.weight.T + layer.bias > 0)
    assert torch.equal(*codes)


def test_equal_features_are_refused() -> None:
    same = {domain: np.ones((9, 5)) for domain in ("target", "source")}
    with pytest.raises(DataError, match=r"are equal: no projection .* fix: --set detail=0"):
        projections.fit(torch.nn.Linear(5, 8), same, 0, "detail")


def run_of(make_split: Any, path: Path, *settings: str, **options: Any) -> Run:
    given = {"bits": 16, "method": options.pop("method", "metah")}
    return fit(load("digits", given, [*QUICK, *settings]), make_split(**options), path)


def test_a_run_has_both_codes_of_both_domains(make_split: Any, tmp_path: Path) -> None:
    run = run_of(make_split, tmp_path / "run", gap=1, method="metah-plus")
    split = make_split(gap=1)
    assert (run.model.bits, run.model.detail_bits) == (16, 64)
    codes, logits = encode(run.model, split.query)
    assert codes.shape == (30, 10)
    assert np.array_equal(codes[:, :2], pack(logits))
    source = run.model.in_domain("source")
    assert source is not run.model
    assert run.model.in_domain("target") is run.model
    found = encode(source, split.source_valid)[0]
    assert found.shape == (30, 10)
    assert (found != encode(run.model, split.source_valid)[0]).any()
    with pytest.raises(ConfigError, match="domain must be one of target, source, got 'photos'"):
        run.model.in_domain("photos")
    again = Run.open(run.path).model.in_domain("source")
    assert np.array_equal(encode(again, split.source_valid)[0], found)


def test_each_bit_is_balanced_in_each_domain(make_split: Any, tmp_path: Path) -> None:
    run = run_of(make_split, tmp_path / "run", gap=1)
    split = make_split(gap=1)
    for domain, images in (("target", split.target_train), ("source", split.source_train)):
        details = encode(run.model.in_domain(domain), images)[0][:, 2:]
        ones = np.unpackbits(details, axis=1).mean(0)
        assert 0.2 < ones.mean() < 0.8


@pytest.mark.parametrize("settings", [(), ("head=itq",), ("head=itq", "train_bits=32")])
def test_training_is_that_of_the_paper_s_code(
    settings: tuple[str, ...], make_split: Any, tmp_path: Path
) -> None:
    """What is fitted afterwards changes no tensor that is trained."""
    bits = "train_bits=32" in settings
    bare = fit(
        load("digits", {"bits": 32 if bits else 16}, [*QUICK, "detail=0"]),
        make_split(),
        tmp_path / "bare",
    )
    whole = run_of(make_split, tmp_path / "whole", *settings)
    ours, theirs = (run.model.backbone.state_dict() for run in (bare, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    if not settings:
        state = whole.model.head.state_dict()
        assert all(torch.equal(state[k], v) for k, v in bare.model.head.state_dict().items())
    assert (whole.path / "metrics.jsonl").read_bytes() == (bare.path / "metrics.jsonl").read_bytes()


def test_a_refitted_head_is_fitted_on_the_trained_features(make_split: Any, tmp_path: Path) -> None:
    run = run_of(make_split, tmp_path / "run", "head=itq", "train_bits=32", gap=1)
    split = make_split(gap=1)
    found = projections.features(run.model, split, "trained")["head"]
    layer = torch.nn.Linear(32, 16)
    bias = projections.fit(layer, found, 0, "head")
    for domain, images, own in (
        ("target", split.target_train, layer.bias),
        ("source", split.source_train, bias),
    ):
        logits = encode(run.model.in_domain(domain), images)[1]
        due = torch.from_numpy(found[domain]).float() @ layer.weight.T + own
        np.testing.assert_allclose(logits, due.detach().numpy(), rtol=1e-3, atol=1e-4)


def test_no_label_is_read(make_split: Any, tmp_path: Path) -> None:
    """The same network and the same images in another order of classes give the same projection."""
    run = run_of(make_split, tmp_path / "run")
    split = make_split()
    labels = split.source_train.labels
    images = ArrayImages(
        split.source_train.load(np.arange(60)), labels[::-1].copy(), split.source_train.names
    )
    found = []
    for source in (split.source_train, images, images.unlabelled()):
        model = run.model.in_domain("target")
        changed = type(split)(**{**vars(split), "source_train": source})
        projections.add_projections(model, run.config, changed)
        assert model.detail is not None
        found.append(model.detail.weight.detach().clone())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_an_interrupted_run_ends_with_the_same_projections(
    make_split: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_of(make_split, tmp_path / "whole", "head=itq")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("metah_train.training.loop.add_projections", stop)
        with pytest.raises(KeyboardInterrupt):
            run_of(make_split, tmp_path / "cut", "head=itq")
    cut = fit(whole.config, make_split(), tmp_path / "cut", resume=True)
    ours, theirs = ((run.path / "model.safetensors").read_bytes() for run in (whole, cut))
    assert ours == theirs


def test_an_early_run_opens_without_detail(make_split: Any, tmp_path: Path) -> None:
    """A run whose settings and tensors do not know of detail is what it was."""
    run = run_of(make_split, tmp_path / "run", "detail=0", "statistics=training")
    stored = run.config.to_dict()
    assert not {"detail", "detail_features", "code_weight", "head", "train_bits"} & stored.keys()
    assert Config.from_dict(stored).detail == 0
    assert load("digits", {"bits": 16}, QUICK).detail == 64
    tensors = safetensors.torch.load_file(run.path / "model.safetensors")
    assert not [name for name in tensors if name.startswith(("detail", "source"))]
    assert run.model.domains == ("target",)
    assert run.model.in_domain("source") is run.model
    assert encode(run.model, make_split().query)[0].shape == (30, 2)


@pytest.mark.parametrize(("kind", "width"), [("trained", 32), ("pooled", 128), ("both", 160)])
def test_the_detail_code_is_fitted_on_the_features_asked_for(
    kind: str, width: int, make_split: Any, tmp_path: Path
) -> None:
    run = run_of(make_split, tmp_path / kind, f"detail_features={kind}")
    assert run.model.detail is not None
    assert run.model.detail.in_features == width
    images = torch.from_numpy(make_split().query.load(np.arange(4)))
    maps = run.model.backbone.convolutions(run.model.scaled(images)).mean((2, 3))
    trained = run.model.features(images)
    due = {"trained": trained, "pooled": maps, "both": torch.cat([trained, maps], 1)}[kind]
    logits, details = run.model.outputs(images)
    torch.testing.assert_close(details, run.model.detail(due))
    torch.testing.assert_close(logits, run.model(images))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["detail=12"], "detail must be a multiple of 8 >= 0, got 12"),
        (["detail=-8"], "detail must be a multiple of 8 >= 0, got -8"),
        (["detail=0", "code_weight=2"], "code_weight must be 1, or more with a detail code, got 2"),
        (["code_weight=0"], "code_weight must be"),
        (["bits=1024"], r"at most 1024, got 1 \* 1024 \+ 64; fix: --set detail=0"),
        (["code_weight=16"], r"got 16 \* 48 \+ 320; fix: --set detail=256"),
        (["train_bits=64"], "train_bits is of a head fitted anew, got 64; fix: --set head=itq"),
        (["head=itq", "train_bits=12"], "multiple of 8"),
        (["head=lsh"], "head must be one of itq, trained, got 'lsh'"),
        (["detail_features=deep"], "detail_features must be one of both, pooled, trained"),
        (["head=itq", "method=lsh"], "LSH fits its head on features: head must be trained"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: list[str], message: str) -> None:
    more = ["detail=320"] if settings == ["code_weight=16"] else []
    with pytest.raises(ConfigError, match=message):
        load("digits", {}, [*settings, *more])
