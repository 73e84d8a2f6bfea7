"""Codes of two parts and domains encoded apart, in bundle, runner and encoder; format 1 opens."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metah_runtime import codes
from metah_runtime.codes import CodeFormat
from metah_runtime.errors import BackendUnavailable, BundleError, ConfigError, EngineError
from metah_runtime.model import runners
from metah_runtime.model.bundle import Bundle, add_engine
from metah_runtime.model.encoder import Encoder
from metah_runtime.model.manifest import Engine, manifest_to_dict, seal
from metah_runtime.search import CodeIndex

Make = Callable[..., Bundle]

GOLDEN = ["6cb62216", "3aeb3f58", "40869ec4"]
TINY = Path(__file__).parents[2] / "release" / "tiny.bundle"
"""Written by an earlier version, as format 1."""


def images(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 4, 5, 3), dtype=np.uint8)


def rows(n: int, detail_bits: int, seed: int = 0, part: int = 0) -> np.ndarray:
    """Codes of ``images(n)`` by the definition: signs of a product, hash code then detail code.

    part: 0 for the model of the target, 1 for that of the source.
    """
    rng = np.random.default_rng(seed)
    for _ in range(part + 1):
        weight = rng.standard_normal((60, 16 + detail_bits)).astype(np.float32)
    return np.packbits(images(n).reshape(n, 60).astype(np.float64) @ weight > 0, axis=1)


def edit(bundle: Bundle, **changes: Any) -> None:
    path = bundle.path / "manifest.json"
    path.write_text(json.dumps(seal({**json.loads(path.read_text()), **changes})))


@pytest.mark.parametrize("n", [0, 1, 3, 97])
@pytest.mark.parametrize("detail_bits", [8, 64, 192])
def test_a_row_is_hash_code_then_detail_code(make_bundle: Make, detail_bits: int, n: int) -> None:
    bundle = make_bundle(detail_bits=detail_bits)
    runner = runners.open(bundle, threads=1)
    assert (runner.bits, runner.detail_bits) == (16, detail_bits)
    found, logits = runner.run(images(n))
    assert (found.shape, logits.shape) == ((n, 2 + detail_bits // 8), (n, 16))
    np.testing.assert_array_equal(found, rows(n, detail_bits))
    np.testing.assert_array_equal(bundle.code_format.code_part(found), codes.pack(logits))


def test_encoder_gives_whole_rows(make_bundle: Make, tmp_path: Path) -> None:
    from PIL import Image

    encoder = Encoder.open(make_bundle(detail_bits=24, code_weight=2), threads=1)
    assert encoder.code_format == CodeFormat(bits=16, detail_bits=24, code_weight=2)
    assert (encoder.bits, encoder.domain) == (16, "target")
    np.testing.assert_array_equal(encoder.encode(images(7), batch=3), rows(7, 24))
    assert encoder.encode([]).shape == (0, 5)
    paths = [tmp_path / f"{i}.png" for i in range(7)]
    for path, image in zip(paths, images(7), strict=True):
        Image.fromarray(image).save(path)
    found = np.concatenate([part.codes for part in encoder.encode_files(paths, batch=4)])
    np.testing.assert_array_equal(found, rows(7, 24))


def test_encoder_searches_by_both_parts(make_bundle: Make) -> None:
    encoder = Encoder.open(make_bundle(detail_bits=24), threads=1)
    index = CodeIndex(encoder.encode(images(40)), code_format=encoder.code_format)
    found = encoder.search(images(40)[:9], index, 3)
    np.testing.assert_array_equal(found.ids[:, 0], np.arange(9))
    want = index.search(rows(40, 24)[:9], 3)
    np.testing.assert_array_equal(found.distances, want.distances)


def test_two_parts_never_stay_on_the_gpu(make_bundle: Make) -> None:
    runner = runners.open(make_bundle(detail_bits=24), threads=1)
    with pytest.raises(BackendUnavailable, match=r"16 \+ 24 bits cannot stay on the GPU"):
        next(runner.resident(images(2)))

    class Host(CodeIndex):
        device = "cuda"

    encoder = Encoder(make_bundle("other", detail_bits=24), runner)
    runner.device = "cuda"  # type: ignore[misc]
    found = encoder.search(images(5), Host(rows(5, 24), code_format=encoder.code_format), 1)
    np.testing.assert_array_equal(found.ids[:, 0], np.arange(5))


def test_domains_have_models_of_their_own(make_bundle: Make) -> None:
    bundle = make_bundle(detail_bits=24, source=True)
    assert bundle.domains == ("target", "source")
    assert [bundle.model_file(domain) for domain in ("target", "source")] == [
        "model.onnx",
        "source.onnx",
    ]
    for part, domain in enumerate(("target", "source")):
        encoder = Encoder.open(bundle, domain=domain, threads=1)
        assert encoder.domain == domain
        assert encoder.fingerprint == bundle.fingerprint
        np.testing.assert_array_equal(encoder.encode(images(9)), rows(9, 24, part=part))


def test_a_domain_that_is_not_encoded_is_refused(make_bundle: Make) -> None:
    bundle = make_bundle(detail_bits=24)
    with pytest.raises(BundleError, match="images of the target alone, not of the source"):
        Encoder.open(bundle, domain="source")
    with pytest.raises(ConfigError, match="domain must be one of target, source, got 'photos'"):
        Encoder.open(bundle, domain="photos")  # type: ignore[arg-type]


def test_the_fingerprint_covers_what_determines_codes_and_order(make_bundle: Make) -> None:
    plain = make_bundle("a", model=make_bundle("m", detail_bits=24).read(), detail_bits=24)
    weighted = make_bundle("b", model=plain.read(), detail_bits=24, code_weight=2)
    source = make_bundle("c", model=plain.read(), detail_bits=24, source=True)
    other = make_bundle("d", model=plain.read(), detail_bits=24, source=True, seed=1)
    found = {bundle.fingerprint for bundle in (plain, weighted, source, other)}
    assert len(found) == 4


def test_a_bundle_without_new_facts_is_format_1(make_bundle: Make) -> None:
    new = {"detail_bits", "code_weight", "domains", "source_parity"}
    for name, settings, version in (
        ("a", {}, 1),
        ("b", {"detail_bits": 8}, 2),
        ("c", {"source": True}, 2),
    ):
        bundle = make_bundle(name, **settings)
        value = json.loads((bundle.path / "manifest.json").read_text())
        assert value["format"] == bundle.manifest.format == version
        assert new & set(value) == (new if version == 2 else set())
        assert Bundle.open(bundle.path).manifest == bundle.manifest


def test_a_bundle_of_format_1_still_opens(tmp_path: Path) -> None:
    bundle = Bundle.open(TINY)
    assert (bundle.manifest.format, bundle.code_format) == (1, CodeFormat(bits=32))
    assert bundle.domains == ("target",)
    assert bundle.fingerprint == "2246661340c24d6d7481f839cad42bf27a589cdaf02713697b14638118b9269f"
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 1), dtype=np.uint8)
    found = Encoder.open(bundle, threads=1).encode(pixels)
    assert [row.tobytes().hex() for row in found] == GOLDEN
    assert manifest_to_dict(bundle.manifest) == json.loads((TINY / "manifest.json").read_text())
    copy = Bundle.open(shutil.copytree(TINY, tmp_path / "bundle"))
    add_engine(copy, engine(copy), b"plan")
    again = Bundle.open(copy.path)
    assert (again.manifest.format, again.fingerprint) == (1, bundle.fingerprint)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"detail_bits": 12}, "detail_bits must be a multiple of 8 from 0 on, got 12"),
        ({"detail_bits": -8}, "detail_bits must be a multiple of 8"),
        ({"detail_bits": "24"}, "detail_bits must be int"),
        ({"detail_bits": 32}, "does not belong to this model"),
        ({"code_weight": 0}, "code_weight must be 1, or more"),
        ({"code_weight": 64}, r"at most 1024, got 64 \* 16 \+ 24"),
        ({"code_weight": 3}, "does not belong to this model"),
        ({"domains": []}, "domains must be target, or target, source"),
        ({"domains": ["source", "target"]}, "domains must be target, or target, source"),
        ({"domains": ["target"]}, "does not belong to this model"),
        ({"format": 1}, "unknown key detail_bits"),
        ({"format": 3}, "format version 3, this program reads 1, 2"),
    ],
)
def test_manifest_rules(make_bundle: Make, changes: dict[str, Any], match: str) -> None:
    bundle = make_bundle(detail_bits=24, source=True)
    edit(bundle, **changes)
    with pytest.raises(BundleError, match=match):
        Bundle.open(bundle.path)


def test_the_source_model_is_listed_and_checked(make_bundle: Make) -> None:
    bundle = make_bundle(source=True)
    (bundle.path / "source.onnx").write_bytes(bundle.read())
    with pytest.raises(BundleError, match=r"source.onnx is damaged"):
        Bundle.open(bundle.path)
    other = make_bundle("other", source=True)
    listed = json.loads((other.path / "manifest.json").read_text())["files"]
    edit(other, files={name: entry for name, entry in listed.items() if name != "source.onnx"})
    with pytest.raises(BundleError, match=r"files must list source\.onnx"):
        Bundle.open(other.path)


def test_a_model_without_the_details_is_refused(make_bundle: Make) -> None:
    for name, have, said in (("a", 0, 24), ("b", 24, 0), ("c", 24, 32)):
        model = make_bundle(f"{name}-model", detail_bits=have).read()
        bundle = make_bundle(name, model=model, detail_bits=said)
        match = r"output details must be tensor\(uint8\) \[batch, 4\]" if have and said else "named"
        with pytest.raises(BundleError, match=match):
            runners.open(bundle, threads=1)


def engine(bundle: Bundle, file: str = "model.onnx") -> Engine:
    return Engine(
        kind="tensorrt",
        file=f"engines/{file}.plan",
        builder="10.0",
        targets=("8.9",),
        platform="linux-x86_64",
        batch=(1, 1, 1),
        flags=(),
        model_sha256=bundle.manifest.files[file].sha256,
        parity=None,
    )


def test_an_engine_belongs_to_the_domain_of_its_model(
    make_bundle: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metah_runtime.model.runners import tensorrt_runner

    bundle = make_bundle(source=True, detail_bits=8)
    bundle = add_engine(bundle, engine(bundle, "source.onnx"), b"plan")
    assert [e.file for e in bundle.engines("source")] == ["engines/source.onnx.plan"]
    assert bundle.engines() == ()
    with pytest.raises(EngineError, match=r"has no engine; fix: metah-export engine \S+ on this"):
        tensorrt_runner.open_trt(bundle)
    alone = make_bundle("alone", source=True)
    alone = add_engine(alone, engine(alone), b"plan")
    with pytest.raises(EngineError, match=r"images of the source; fix: .* --domain source on this"):
        tensorrt_runner.open_trt(alone, domain="source")
    with pytest.raises(BundleError, match="was built from another model"):
        add_engine(alone, replace(engine(alone), model_sha256="0" * 64), b"plan")


def test_lengths_that_do_not_fit_are_refused(make_bundle: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="code_weight must be 1, or more with a detail code"):
        make_bundle(code_weight=2)
    assert list(tmp_path.iterdir()) == []
