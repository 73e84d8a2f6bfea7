"""Both parts of a code and both domains, from the bundle's truth to reports, tables and servers."""

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from metah_export import parity, reference_set
from metah_export.cli import main as cli
from metah_export.compare import compare, table
from metah_export.compare_page import page
from metah_export.engine import engine
from metah_export.parity import LIMITS, Limits, Parity
from metah_export.reference_set import DATABASE, QUERY, SOURCE, ReferenceSet
from metah_export.to_engine import EngineConfig
from metah_export.triton import TritonConfig, triton
from metah_export.verify import verify
from metah_runtime.cli import console
from metah_runtime.codes import CodeFormat, pack
from metah_runtime.errors import BundleError, EngineError, ParityError
from metah_runtime.model.bundle import Bundle

Make = Callable[..., Bundle]
SHAPE = (4, 5, 3)
BITS, DETAIL = 16, 24


def truth(n: int = 80, *, source: bool = False, turned: str = "", **changes: Any) -> ReferenceSet:
    """The reference set of a toy bundle of seed 0, with a model for the source or without one.

    turned: the array in which the signs of a source image (row 3) and a query (30) are turned.
    """
    images = np.random.default_rng(1).integers(0, 256, (n, *SHAPE), dtype=np.uint8)
    rng = np.random.default_rng(0)
    whole = np.empty((n, BITS + DETAIL), np.float32)
    for domain in range(1 + source):
        weight = rng.standard_normal((60, BITS + DETAIL)).astype(np.float32)
        rows = slice(None, n // 4 if domain else None)
        whole[rows] = images[rows].reshape(-1, 60).astype(np.float64) @ weight
    logits, details = np.split(whole, [BITS], axis=1)
    arrays = {"logits": logits, "detail_logits": details}
    if turned:
        arrays[turned][[3, 30]] *= -1
    roles = np.repeat(np.array([SOURCE, QUERY, DATABASE], np.uint8), [n // 4, n // 4, n - n // 2])
    return ReferenceSet(
        images=images,
        roles=roles,
        names=np.array([f"{i}.png" for i in range(n)]),
        labels=np.arange(n) % 3,
        **(arrays | changes),  # type: ignore[arg-type]
    )


@pytest.fixture
def make(make_bundle: Make) -> Make:
    """Write a toy bundle of both parts with 80 reference images."""

    def build(name: str = "bundle", *, source: bool = False, turned: str = "") -> Bundle:
        known = truth(source=source, turned=turned)
        extra = {reference_set.FILE: known.to_bytes()}
        return make_bundle(name, detail_bits=DETAIL, source=source, extra=extra)

    return build


def against(reference: ReferenceSet, logits: np.ndarray, details: np.ndarray, **limits: Any) -> Any:
    packed = np.hstack([pack(logits), pack(details)])
    return parity.compare(
        reference, packed, logits, precision="fp32", runner="test", limits=Limits(**limits)
    )


def command(capsys: pytest.CaptureFixture[str], *args: Any) -> tuple[Any, str, str]:
    with pytest.raises(SystemExit) as stop:
        console.run(cli.cli, "metah-export", [str(arg) for arg in args])
    return (stop.value.code, *capsys.readouterr())


def test_flips_of_each_part_are_counted_apart() -> None:
    known = truth()
    assert known.detail_logits is not None
    assert known.code_format == CodeFormat(bits=BITS, detail_bits=DETAIL)
    rng = np.random.default_rng(2)
    scale = np.abs(known.detail_logits).mean()
    logits = known.logits.copy()
    logits[5, 3] *= -1
    details = known.detail_logits + scale * rng.standard_normal(known.detail_logits.shape) / 4
    found = against(known, logits, details, margin=0.2)
    assert (found.flips, found.hamming, found.worst_image) == (1, (79, 1), "5.png")
    part, flips, far, worst, per_bit, hamming = found.detail, 0, 0, 0.0, [0] * DETAIL, []
    margin = 0.2 * np.sqrt((known.detail_logits.astype(np.float64) ** 2).mean())
    for old, new in zip(known.detail_logits, details, strict=True):
        count = 0
        for bit in range(DETAIL):
            if (old[bit] > 0) != (new[bit] > 0):
                size = abs(float(old[bit]))
                count, flips, far = count + 1, flips + 1, far + (size > margin)
                worst, per_bit[bit] = max(worst, size), per_bit[bit] + 1
        hamming.append(count)
    assert flips > far > 0
    assert (part.bits, part.flips, part.far_flips) == (DETAIL, flips, far)
    assert part.margin == pytest.approx(margin)
    assert part.flip_rate == pytest.approx(flips / (80 * DETAIL))
    assert part.worst_flip == pytest.approx(worst)
    assert list(part.flips_per_bit) == per_bit
    assert list(part.hamming) == np.bincount(hamming).tolist()
    assert part.worst_image_flips == max(hamming)


def test_limits_hold_for_each_part() -> None:
    known = truth()
    details = known.detail_logits
    assert details is not None
    assert against(known, known.logits, details, far_flips=0).check().detail.flips == 0
    turned = details.copy()
    turned[3, :2] *= -1
    with pytest.raises(ParityError, match=r"2 flipped bits of the detail code with .*, limit 0"):
        against(known, known.logits, turned, far_flips=0).check()
    rate = 2 / (80 * DETAIL)
    against(known, known.logits, turned, detail_flip_rate=rate, flip_rate=0.0).check()
    with pytest.raises(ParityError, match="of bits of the detail code flip, limit"):
        against(known, known.logits, turned, detail_flip_rate=rate * 0.9).check()
    flipped = known.logits.copy()
    flipped[3, 0] *= -1
    against(known, flipped, details, detail_flip_rate=0.0).check()
    with pytest.raises(ParityError, match="of bits flip, limit"):
        against(known, flipped, details, flip_rate=0.0).check()
    assert all(
        limits.detail_flip_rate is not None or limits.far_flips == 0 for limits in LIMITS.values()
    )


def test_the_ten_nearest_are_those_by_whole_codes() -> None:
    known = truth(logits=np.ones((80, BITS), np.float32))  # one codeword: the detail code decides
    details = known.detail_logits
    assert details is not None
    assert against(known, known.logits, details).top10_overlap == 1
    assert against(known, known.logits, details[::-1]).top10_overlap < 0.9


@pytest.mark.parametrize("with_detail", [True, False])
def test_a_stored_report_is_read_again(with_detail: bool) -> None:
    known = truth()
    details = known.detail_logits
    assert details is not None
    if not with_detail:
        known = dataclasses.replace(known, detail_logits=None)
    packed = known.codes
    limits = Limits(far_flips=0, detail_flip_rate=0.5 if with_detail else None)
    found = parity.compare(
        known, packed, known.logits, precision="fp32", runner="test", limits=limits
    )
    value = json.loads(json.dumps(found.to_dict()))
    assert ("detail" in value) == ("detail_flip_rate" in value["limits"]) == with_detail
    assert parity.stored(value) == found
    with pytest.raises(ValueError, match="unknown key"):
        parity.stored({**value, "more": 1})
    if with_detail:
        for changes in ({"flips": -1}, {"bits": 2}, {"hamming": [2**60]}):
            with pytest.raises(ValueError, match=r"must be in|does not fit"):
                parity.stored({**value, "detail": value["detail"] | changes})


def test_the_reference_set_holds_both_parts_and_both_domains() -> None:
    known = truth(source=True, code_weight=2)
    settings: dict[str, Any] = {"bits": BITS, "image_shape": SHAPE}
    read = ReferenceSet.from_bytes(known.to_bytes(), detail_bits=DETAIL, code_weight=2, **settings)
    for field in dataclasses.fields(ReferenceSet):
        np.testing.assert_array_equal(getattr(read, field.name), getattr(known, field.name))
    assert read.codes.shape == (80, 5)
    for domain, rows in (("source", slice(20)), ("target", slice(20, 80))):
        part = read.of(domain)  # type: ignore[arg-type]
        np.testing.assert_array_equal(part.codes, known.codes[rows])
        np.testing.assert_array_equal(part.names, known.names[rows])
        assert len(part.labels) == len(part.roles) == len(part.images) == len(part)
        assert part.code_format == CodeFormat(bits=BITS, detail_bits=DETAIL, code_weight=2)
        with pytest.raises(BundleError, match="holds no images of the"):
            part.of("target" if domain == "source" else "source")
    with pytest.raises(BundleError, match=r"holds unknown \['detail_logits'\]"):
        ReferenceSet.from_bytes(known.to_bytes(), **settings)
    with pytest.raises(BundleError, match="does not belong to this model: detail_logits"):
        ReferenceSet.from_bytes(known.to_bytes(), detail_bits=8, **settings)
    plain = dataclasses.replace(known, detail_logits=None)
    with pytest.raises(BundleError, match=r"lacks \['detail_logits'\]"):
        ReferenceSet.from_bytes(plain.to_bytes(), detail_bits=DETAIL, **settings)


def test_verify_compares_both_parts_of_both_domains(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make(source=True)
    found = verify(bundle.path, threads=1)
    for report in (found.parity, found.source_parity):
        assert report is not None
        assert report.detail is not None
        assert (report.flips, report.detail.flips, report.detail.bits) == (0, 0, DETAIL)
    code, out, err = command(capsys, "verify", bundle.path, "--threads", 1)
    assert (code, err) == (0, "")
    for count in (20, 60):
        assert re.search(rf"detail code: flipped bits\W+0 of {count * DETAIL}\W", out)
    assert "parity, images of the source" in out
    code, out, _ = command(capsys, "verify", bundle.path, "--threads", 1, "--json")
    assert json.loads(out)["source_parity"]["detail"]["flips"] == 0
    assert verify(make("target").path, threads=1).source_parity is None


@pytest.mark.parametrize(("turned", "count"), [("logits", BITS), ("detail_logits", DETAIL)])
def test_verify_finds_flips_in_either_part(make: Make, turned: str, count: int) -> None:
    part = " of the detail code" if "detail" in turned else ""
    for source, images in ((True, 1), (False, 2)):
        bundle = make(f"bundle-{source}", source=source, turned=turned)
        with pytest.raises(ParityError, match=f"{count * images} flipped bits{part} with"):
            verify(bundle.path, threads=1)


def test_compare_has_rows_for_both_domains(make: Make) -> None:
    bundle = make(source=True, turned="detail_logits")
    found = compare([bundle.path], batches=(1,), seconds=0.01, threads=1)
    assert [row.artefact for row in found.rows] == ["onnx", "onnx, source"]
    for row in found.rows:
        assert "24 flipped bits of the detail code" in str(row.problem)
    cells = table(found)[1]
    assert [row[5] for row in cells] == ["0.0000% + 1.6667%", "0.0000% + 5.0000%"]
    text = page(found)
    assert "Of the detail code 24 of 480 bits flipped (5.0000%)" in text
    assert text.count("Flips of each bit of the detail code") == 2


def test_triton_serves_both_parts_of_either_domain(make: Make, tmp_path: Any) -> None:
    bundle = make(source=True)
    for domain, file in (("target", "model.onnx"), ("source", "source.onnx")):
        config = TritonConfig(name=domain, instances="cpu", domain=domain)  # type: ignore[arg-type]
        folder = triton(bundle, tmp_path / "repo", config)
        assert (folder / "1" / "model.onnx").read_bytes() == bundle.read(file)
        text = (folder / "config.pbtxt").read_text()
        assert (
            '  { name: "codes" data_type: TYPE_UINT8 dims: [ 2 ] },\n'
            '  { name: "details" data_type: TYPE_UINT8 dims: [ 3 ] },\n'
            '  { name: "logits" data_type: TYPE_FP32 dims: [ 16 ] }\n'
        ) in text
        for key, value in (("detail_bits", "24"), ("code_weight", "1"), ("domain", domain)):
            assert f'key: "metah.{key}" value {{ string_value: "{value}" }}' in text
    with pytest.raises(BundleError, match="encodes images of the target alone"):
        triton(make("target"), tmp_path / "repo", TritonConfig(name="x", domain="source"))
    with pytest.raises(EngineError, match="--engine tensorrt --domain source on the server"):
        triton(bundle, tmp_path / "r", TritonConfig(backend="tensorrt", domain="source"))


def test_an_engine_of_the_source_is_built_from_its_model(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metah_export import engine as stage

    bundle, seen = make(source=True), []

    def made(model: bytes, *, reference: ReferenceSet, **_: Any) -> Any:
        seen.append((model, reference.logits))
        raise EngineError("stop")

    monkeypatch.setattr(stage, "make_engine", made)
    for domain in ("target", "source"):
        with pytest.raises(EngineError, match="stop"):
            engine(bundle.path, EngineConfig(), domain=domain)  # type: ignore[arg-type]
    assert [model for model, _ in seen] == [bundle.read(), bundle.read("source.onnx")]
    assert [len(logits) for _, logits in seen] == [60, 20]


def test_the_card_states_both_parts(make_bundle: Make) -> None:
    known = truth(source=True)
    report = parity.compare(
        known, known.codes, known.logits, precision="fp32", runner="test", limits=Limits()
    )
    bundle = make_bundle(
        detail_bits=DETAIL,
        code_weight=2,
        source=True,
        parity=report.to_dict(),
        source_parity=report.to_dict(),
    )
    text = bundle.read("MODEL_CARD.md").decode()
    for row in (
        "# Model card: not stated, 16 + 24 bits",
        "| code | 16 bits of hash code + 24 bits of detail code, 5 bytes an image; bit rule",
        "| distance | 2 x bits of hash code that differ + bits of detail code that differ |",
        " bytes, for images of the target |",
        "| source.onnx | ",
        "0 of 1280 bits of the hash code and 0 of 1920 of the detail code differ.",
        "The model for images of the source: The codes were compared",
        "there are 16 + 24 bits.",
    ):
        assert row in text, row
    assert parity.stored(bundle.manifest.source_parity) == report
    assert isinstance(parity.stored(bundle.manifest.parity), Parity)
