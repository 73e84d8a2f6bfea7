"""Parity in bits against a plain count, and the limits that stop an export."""

import contextlib
import dataclasses
import io
import json
import zipfile
from typing import Any

import numpy as np
import pytest

from metah_export import parity
from metah_export.parity import LIMITS, Limits, Parity, compare
from metah_export.reference_set import DATABASE, QUERY, SOURCE, ReferenceSet
from metah_export.retrieval import bootstrap
from metah_runtime import schema
from metah_runtime.codes import pack
from metah_runtime.errors import BundleError, ConfigError, ParityError
from metah_runtime.model.manifest import PRECISIONS

SHAPE = (2, 3, 1)


def make_reference(n: int = 60, bits: int = 16, seed: int = 0, **changes: Any) -> ReferenceSet:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    centres = rng.standard_normal((3, bits))
    values: dict[str, Any] = {
        "images": rng.integers(0, 256, (n, *SHAPE), dtype=np.uint8),
        "logits": (centres[labels] + 0.3 * rng.standard_normal((n, bits))).astype(np.float32),
        "roles": np.repeat(np.array([SOURCE, QUERY, DATABASE], np.uint8), [20, 10, n - 30]),
        "names": np.array([f"{i}.png" for i in range(n)]),
        "labels": labels,
    }
    return ReferenceSet(**(values | changes))


def against(reference: ReferenceSet, logits: np.ndarray, limits: Limits | None = None) -> Parity:
    limits = Limits() if limits is None else limits
    return compare(reference, pack(logits), logits, precision="fp32", runner="test", limits=limits)


def test_equal_codes_have_no_flips() -> None:
    reference = make_reference()
    found = against(reference, reference.logits, LIMITS["fp32"]).check()
    assert (found.flips, found.far_flips, found.worst_flip, found.max_error) == (0, 0, 0.0, 0.0)
    assert found.hamming == (60,)
    assert found.flips_per_bit == (0,) * 16
    assert (found.images, found.source_images, found.target_images) == (60, 20, 40)
    assert found.map_delta == 0
    assert found.top10_overlap == 1


def test_every_number_equals_a_plain_count() -> None:
    reference = make_reference()
    noise = np.random.default_rng(1).standard_normal(reference.logits.shape)
    logits = (reference.logits + 0.4 * noise).astype(np.float32)
    found = against(reference, logits, Limits(margin=0.1))
    flips = far = 0
    worst = 0.0
    per_bit, hamming = [0] * 16, []
    in_bin, flipped_in_bin = [0] * 30, [0] * 30
    for old, new in zip(reference.logits, logits, strict=True):
        count = 0
        for bit in range(16):
            margin = abs(float(old[bit]))
            place = max(i for i, edge in enumerate(parity.MARGIN_EDGES) if edge <= margin)
            in_bin[place] += 1
            if (old[bit] > 0) != (new[bit] > 0):
                count += 1
                per_bit[bit] += 1
                far += margin > 0.1
                worst = max(worst, margin)
                flipped_in_bin[place] += 1
        flips += count
        hamming.append(count)
    assert flips > far > 0
    assert (found.flips, found.far_flips) == (flips, far)
    assert found.flip_rate == pytest.approx(flips / (60 * 16))
    assert found.worst_flip == pytest.approx(worst)
    assert found.flips_per_bit == tuple(per_bit)
    assert found.hamming == tuple(hamming.count(d) for d in range(max(hamming) + 1))
    assert found.margin_counts == tuple(in_bin)
    assert found.margin_flips == tuple(flipped_in_bin)
    assert (found.worst_image, found.worst_image_flips) == (
        f"{hamming.index(max(hamming))}.png",
        max(hamming),
    )
    assert found.max_error == pytest.approx(np.abs(logits - reference.logits).max(), rel=1e-6)


def test_retrieval_is_scored_on_the_target_domain() -> None:
    reference = make_reference()
    logits = reference.logits.copy()
    logits[:20] *= -1  # source images play no part in the ranking
    found = against(reference, logits)
    assert found.map_delta == 0
    assert found.top10_overlap == 1
    logits = reference.logits.copy()
    logits[20:30] *= -1  # every query is turned to its complement
    found = against(reference, logits)
    assert found.map_h2 == 0
    assert found.map_h2_truth > 0.5
    assert found.top10_overlap < 0.5


def test_without_labels_or_queries_there_is_no_map() -> None:
    unlabelled = make_reference(labels=None)
    found = against(unlabelled, unlabelled.logits)
    assert (found.map_h2, found.map_delta, found.top10_overlap) == (None, None, 1.0)
    source = make_reference(roles=np.zeros(60, np.uint8))
    found = against(source, source.logits, Limits(map_delta=0.0)).check()
    assert (found.map_h2, found.top10_overlap) == (None, None)


def test_a_flip_near_zero_is_allowed_and_one_far_from_it_is_not() -> None:
    logits = np.ones((60, 16), np.float32)
    logits[3, 5] = 5e-4
    reference = make_reference(logits=logits)
    near = logits.copy()
    near[3, 5] = -5e-4
    found = against(reference, near, LIMITS["fp32"]).check()
    assert (found.flips, found.far_flips) == (1, 0)
    logits[3, 5] = 2e-3
    with pytest.raises(
        ParityError,
        match=r"1 flipped bits with \|logit\| > 0.001 \(worst 0.002\), limit 0 \(worst image 3.png",
    ):
        against(reference, near, LIMITS["fp32"]).check()


@pytest.mark.parametrize(
    ("limits", "match"),
    [
        (Limits(flip_rate=0.01), r"of bits flip, limit 1\.0000%"),
        (
            Limits(map_delta=0.005),
            r"MAP@H2 falls by 0\.\d+ \(95 % sure of 0\.\d+\), limit 0\.0050",
        ),
        (Limits(top10=0.99), r"\d\d\.\d% of the ten nearest stay, limit 99\.0%"),
        (Limits(far_flips=3), r"flipped bits with .* limit 3"),
    ],
)
def test_each_limit_stops(limits: Limits, match: str) -> None:
    reference = make_reference()
    noise = np.random.default_rng(1).standard_normal(reference.logits.shape)
    found = against(reference, (reference.logits + 0.8 * noise).astype(np.float32), limits)
    with pytest.raises(ParityError, match=match):
        found.check()


def test_the_change_of_map_is_judged_by_its_interval() -> None:
    reference = make_reference(n=400)
    logits = reference.logits.copy()
    logits[20] *= -1  # one query of ten loses its ball
    found = against(reference, logits, Limits(map_delta=0.005)).check()
    assert found.map_delta is not None
    assert found.map_delta < -0.005
    assert found.map_delta_interval is not None
    low, high = found.map_delta_interval
    assert low < found.map_delta < high
    assert high >= -0.005
    logits[21:30] *= -1
    found = against(reference, logits, Limits(map_delta=0.005))
    with pytest.raises(ParityError, match="MAP@H2 falls"):
        found.check()


def test_the_interval_is_that_of_a_plain_bootstrap() -> None:
    values = np.random.default_rng(3).standard_normal(40) + 0.3
    rng = np.random.default_rng(0)
    means = sorted(
        float(np.mean([values[row] for row in rows])) for rows in rng.integers(0, 40, (2000, 40))
    )
    low, high = bootstrap(values)
    assert means[45] < low < means[55]
    assert means[-55] < high < means[-45]
    assert bootstrap(np.zeros(5)) == (0, 0)


def test_a_first_look_refuses_what_is_far_off_and_nothing_else() -> None:
    reference = make_reference(n=400, bits=48, logits=np.ones((400, 48), np.float32))
    first = reference.sample(32)
    assert list(first.names[[0, -1]]) == ["0.png", "399.png"]
    limits = Limits(flip_rate=0.01, map_delta=0.0, top10=1.0)
    logits = first.logits.copy()
    logits[:8, :3] = -1  # 1.6 % of the bits, in a quarter of the images
    assert against(first, logits, limits).hopeless == ()
    logits[:, :3] = -1
    assert "of bits flip" in against(first, logits, limits).hopeless[0]
    logits[:, :] = 1
    logits[0, 0] = -1
    assert against(first, logits, LIMITS["fp32"]).hopeless
    assert against(first, first.logits, LIMITS["fp32"]).hopeless == ()


def test_codes_that_are_not_the_signs_of_the_logits_are_refused() -> None:
    reference = make_reference()
    packed = reference.codes
    packed[7, 1] ^= 4
    with pytest.raises(ParityError, match=r"codes of 1 images are not the packed signs .* 7\.png"):
        compare(
            reference, packed, reference.logits, precision="fp32", runner="test", limits=Limits()
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    reference = make_reference()
    logits = reference.logits.copy()
    logits[4, 2] = bad
    with pytest.raises(ParityError, match=r"logits of 1 images are not finite, first 4\.png"):
        compare(reference, reference.codes, logits, precision="fp16", runner="t", limits=Limits())


def test_limits_are_stated_for_every_precision() -> None:
    assert tuple(LIMITS) == PRECISIONS
    assert LIMITS["fp32"] == Limits(margin=1e-3, far_flips=0)
    with pytest.raises(ConfigError, match="limit flip_rate must be >= 0, got -1"):
        Limits(flip_rate=-1)
    with pytest.raises(ConfigError, match="limit margin must be >= 0, got nan"):
        Limits(margin=float("nan"))


def test_a_report_survives_json() -> None:
    reference = make_reference()
    found = against(reference, -reference.logits, LIMITS["int8"])
    stored = json.loads(json.dumps(schema.to_json(found)))
    assert schema.from_json(Parity, stored) == found
    with pytest.raises(ValueError, match="key flips is missing"):
        schema.from_json(Parity, {k: v for k, v in stored.items() if k != "flips"})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"flips": -1}, r"flips must be in 0\.\.2\^53, got -1"),
        ({"images": 10**400}, r"images must be in 0\.\.2\^53"),
        ({"hamming": [2**60]}, r"hamming must be in 0\.\.2\^53"),
        ({"bits": 2**40}, "do not fit"),
        ({"flips_per_bit": []}, "do not fit"),
        ({"margin_flips": [0]}, "do not fit"),
        ({"margin_edges": []}, "do not fit"),
    ],
)
def test_a_report_that_no_comparison_gives_is_refused(changes: dict[str, Any], match: str) -> None:
    reference = make_reference()
    stored = schema.to_json(against(reference, reference.logits, LIMITS["fp32"]))
    with pytest.raises(ValueError, match=match):
        schema.from_json(Parity, stored | changes)


@pytest.mark.parametrize("labels", ["single", "multi", None])
def test_reference_set_survives_its_file(labels: str | None) -> None:
    reference = make_reference()
    if labels == "multi":
        reference = dataclasses.replace(
            reference, labels=np.eye(3, dtype=np.uint8)[reference.labels]
        )
    elif labels is None:
        reference = dataclasses.replace(reference, labels=None)
    data = reference.to_bytes()
    assert data == reference.to_bytes()
    read = ReferenceSet.from_bytes(data, bits=16, image_shape=SHAPE)
    for field in dataclasses.fields(ReferenceSet):
        np.testing.assert_array_equal(getattr(read, field.name), getattr(reference, field.name))


def test_reference_set_of_another_model_or_damaged_is_refused() -> None:
    data = make_reference().to_bytes()
    with pytest.raises(BundleError, match="does not belong to this model: logits"):
        ReferenceSet.from_bytes(data, bits=24, image_shape=SHAPE)
    with pytest.raises(BundleError, match="does not belong to this model: images"):
        ReferenceSet.from_bytes(data, bits=16, image_shape=(3, 2, 1))
    for bad in (b"", b"junk", data[: len(data) // 2], data[:-30]):
        with pytest.raises(BundleError, match=r"truth.npz is damaged"):
            ReferenceSet.from_bytes(bad, bits=16, image_shape=SHAPE)
    short = make_reference(names=np.array(["a"]))
    with pytest.raises(BundleError, match="does not belong to this model: names"):
        ReferenceSet.from_bytes(short.to_bytes(), bits=16, image_shape=SHAPE)


def test_reference_set_never_unpickles() -> None:
    import io

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("a pickle ran",))

    buffer = io.BytesIO()
    evil = np.array([Payload()], dtype=object)
    np.savez(buffer, images=evil, logits=evil, roles=evil, names=evil, allow_pickle=True)
    with pytest.raises(BundleError, match=r"truth.npz is damaged"):
        ReferenceSet.from_bytes(buffer.getvalue(), bits=16, image_shape=SHAPE)


def _archive(**changes: Any) -> bytes:
    known = make_reference()
    arrays: dict[str, Any] = {"images": known.images, "logits": known.logits}
    arrays |= {"roles": known.roles, "names": known.names, "labels": known.labels} | changes
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _raw(header: bytes) -> bytes:
    """Return an archive whose images have this header of an array."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("logits", "roles", "names"):
            archive.writestr(f"{name}.npy", b"")
        length = len(header).to_bytes(2, "little")
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + length + header)
    return buffer.getvalue()


def _directory(at: int, value: int) -> bytes:
    """Return an archive with one byte changed in the first entry of its directory."""
    whole = bytearray(_archive())
    whole[whole.index(b"PK\x01\x02") + at] = value
    return bytes(whole)


@pytest.mark.parametrize(
    "data",
    [
        _archive(images=np.uint8(1)),
        _archive(labels=np.int64(1)),
        _archive(labels=np.zeros((60, 1, 1), np.int64)),
        _archive(logits=np.full((60, 16), np.nan, np.float32)),
        _archive(
            images=np.zeros((0, *SHAPE), np.uint8),
            logits=np.zeros((0, 16), np.float32),
            roles=np.zeros(0, np.uint8),
            names=np.zeros(0, "U1"),
            labels=np.zeros(0, np.int64),
        ),
        _raw(b"{"),
        _raw(b"{'descr': '|u1', 'fortran_order': False, 'shape': (9000000000000, 9), }"),
        _raw(b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 9), }"),
        _raw(b"(" * 9000),
        _directory(8, 1),  # encrypted
        _directory(10, 99),  # an unknown compression
    ],
)
def test_a_hostile_reference_set_is_a_bundle_error(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"truth\.npz"):
        ReferenceSet.from_bytes(data, bits=16, image_shape=SHAPE)


def test_any_changed_byte_gives_arrays_or_a_bundle_error() -> None:
    whole = _archive()
    for at in range(0, len(whole), 7):
        changed = whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]
        with contextlib.suppress(BundleError):
            ReferenceSet.from_bytes(changed, bits=16, image_shape=SHAPE)


def test_a_reference_set_that_unpacks_to_more_than_the_limit_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("metah_export.reference_set.MAX_BYTES", 1000)
    with pytest.raises(BundleError, match="at most 1000 are read"):
        ReferenceSet.from_bytes(_archive(), bits=16, image_shape=SHAPE)
