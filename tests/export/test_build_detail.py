"""A run with a detail code becomes a bundle: both parts, both domains, in every precision."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metah_export import build as stage
from metah_export import parity
from metah_export.build import build
from metah_export.cli import main as cli
from metah_export.config import BuildConfig
from metah_export.verify import load_reference_set, verify
from metah_runtime.cli import console
from metah_runtime.codes import CodeFormat
from metah_runtime.errors import ParityError
from metah_runtime.model.bundle import Bundle
from metah_runtime.model.encoder import Encoder
from metah_runtime.search import CodeIndex
from metah_train.data import ImageSet, Split
from metah_train.evaluation.encode import all_logits, encode
from metah_train.training.checkpoint import Run

CONFIG = BuildConfig(images=600, threads=1)
FORMAT = CodeFormat(bits=48, detail_bits=64)


@pytest.fixture(scope="module")
def built(detail_run: Run, split: Split, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build(detail_run, tmp_path_factory.mktemp("built") / "bundle", CONFIG, split=split)[0]


def domain_images(split: Split, domain: str) -> ImageSet:
    return split.source_valid if domain == "source" else split.query


def test_the_bundle_says_what_it_is(built: Bundle) -> None:
    manifest = Bundle.open(built.path).manifest
    assert (manifest.format, manifest.code_format) == (2, FORMAT)
    assert manifest.domains == ("target", "source")
    assert set(manifest.files) == {"MODEL_CARD.md", "model.onnx", "source.onnx", "truth.npz"}
    for value, images in ((manifest.parity, 450), (manifest.source_parity, 150)):
        report = parity.stored(value)
        assert report.detail is not None
        assert (report.images, report.bits, report.detail.bits) == (images, 48, 64)
        assert (report.far_flips, report.detail.far_flips) == (0, 0)
    assert parity.stored(manifest.parity).map_delta == 0
    card = built.read("MODEL_CARD.md").decode()
    assert "48 bits of hash code + 64 bits of detail code, 14 bytes an image" in card


@pytest.mark.parametrize("domain", ["target", "source"])
def test_codes_of_both_parts_are_those_of_the_run(
    built: Bundle, detail_run: Run, split: Split, domain: Any
) -> None:
    images = domain_images(split, domain)
    network = detail_run.model.in_domain(domain)
    want, _ = encode(network, images)
    logits = all_logits(network, images)
    encoder = Encoder.open(built, domain=domain, threads=1)
    got = encoder.encode(images.load(np.arange(len(images))))
    assert got.shape == (len(images), 14)
    for part, values in zip((FORMAT.code_part, FORMAT.detail_part), logits, strict=True):
        flips = np.unpackbits(part(got) ^ part(want), axis=1).astype(bool)
        scale = np.sqrt((values.astype(np.float64) ** 2).mean())
        assert not (flips & (np.abs(values) > 1e-3 * scale)).any()


def test_domains_are_centred_apart(built: Bundle, split: Split) -> None:
    """Each domain's own model balances the bits of the detail code over its images."""
    for domain, other in (("target", "source"), ("source", "target")):
        images = split.source_train if domain == "source" else split.target_train
        pixels = images.load(np.arange(min(400, len(images))))
        means = [
            np.unpackbits(
                FORMAT.detail_part(Encoder.open(built, domain=each, threads=1).encode(pixels)),
                axis=1,
            ).mean(0)
            for each in (domain, other)
        ]
        own, foreign = (np.abs(mean - 0.5).mean() for mean in means)
        assert own < foreign


def test_a_self_query_finds_itself_first(built: Bundle, split: Split) -> None:
    encoder = Encoder.open(built, threads=1)
    codes = encoder.encode(split.query.load(np.arange(len(split.query))))
    found = CodeIndex(codes, code_format=encoder.code_format).search(codes, 1)
    assert (codes[found.ids[:, 0]] == codes).all()
    assert not found.distances.any()


def test_the_same_run_gives_the_same_bundle(
    built: Bundle, detail_run: Run, split: Split, tmp_path: Path
) -> None:
    again, _ = build(detail_run.path, tmp_path / "again", CONFIG, split=split)
    assert again.fingerprint == built.fingerprint
    for name in built.manifest.files:
        assert (again.path / name).read_bytes() == (built.path / name).read_bytes()


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_every_precision_keeps_both_parts(
    detail_run: Run, split: Split, tmp_path: Path, precision: str
) -> None:
    config = BuildConfig(images=600, threads=1, precision=precision)
    bundle, report = build(detail_run, tmp_path / "bundle", config, split=split)
    assert report.detail is not None
    found = verify(bundle.path, threads=1)
    for each in (found.parity, found.source_parity):
        assert each is not None
        assert each.detail is not None
        allowed = each.limits.detail_flip_rate
        assert allowed is not None
        assert each.detail.flip_rate <= allowed


@pytest.mark.parametrize("domain", ["target", "source"])
def test_a_flip_in_the_detail_code_of_either_domain_writes_nothing(
    detail_run: Run, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, domain: str
) -> None:
    real = stage.collect_reference_set

    def shifted(*args: Any, **settings: Any) -> Any:
        known = real(*args, **settings)
        row = 0 if domain == "source" else len(known) - 1
        known.detail_logits[row, 3] *= -1
        return known

    monkeypatch.setattr(stage, "collect_reference_set", shifted)
    with pytest.raises(ParityError, match="1 flipped bits of the detail code with"):
        build(detail_run, tmp_path / "bundle", CONFIG, split=split)
    assert list(tmp_path.iterdir()) == []


def test_the_command_names_both_parts(built: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        console.run(cli.cli, "metah-export", ["verify", str(built.path), "--threads", "1"])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    assert f"{450 * 64}" in out
    assert "parity, images of the source" in out
    known = load_reference_set(built, "source")
    assert known is not None
    assert len(known) == 150
    assert json.loads((built.path / "manifest.json").read_text())["domains"] == ["target", "source"]
