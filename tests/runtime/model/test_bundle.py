"""The bundle on disk: what is written is read, and everything foreign or damaged is refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metah_runtime.errors import BundleError
from metah_runtime.images.preprocess import Preprocess
from metah_runtime.model.bundle import Bundle, add_engine
from metah_runtime.model.manifest import Engine, fingerprint, seal

Make = Callable[..., Bundle]


def edit(bundle: Bundle, **changes: Any) -> None:
    """Rewrite manifest.json with some values changed, sealed; None drops the key."""
    path = bundle.path / "manifest.json"
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(seal({k: v for k, v in value.items() if v is not None})))


def engine(bundle: Bundle, **changes: Any) -> Engine:
    values = {
        "kind": "tensorrt-rtx",
        "file": "engines/a.plan",
        "builder": "1.7.1",
        "targets": ("8.9",),
        "platform": "linux-x86_64",
        "batch": (1, 8, 64),
        "flags": (),
        "model_sha256": bundle.manifest.files["model.onnx"].sha256,
        "parity": None,
    }
    return Engine(**(values | changes))


def test_what_is_written_is_read(make_bundle: Make) -> None:
    written = make_bundle(bits=24, precision="fp16", training={"seed": 3, "nested": {"a": [1]}})
    read = Bundle.open(written.path)
    assert read == written
    assert read.bits == 24
    assert read.preprocess == Preprocess(height=4, width=5)
    assert read.manifest.precision == "fp16"
    assert read.manifest.training == {"seed": 3, "nested": {"a": [1]}}
    assert read.model_path == written.path / "model.onnx"
    assert read.read() == read.model_path.read_bytes()
    names = sorted(p.name for p in read.path.iterdir())
    assert names == ["MODEL_CARD.md", "manifest.json", "model.onnx"]


def test_same_inputs_give_the_same_bytes(make_bundle: Make) -> None:
    one, two = make_bundle("one"), make_bundle("two")
    for name in ("model.onnx", "manifest.json"):
        assert (one.path / name).read_bytes() == (two.path / name).read_bytes()


def test_fingerprint_changes_with_all_that_determines_codes(make_bundle: Make) -> None:
    base = make_bundle("base").fingerprint
    assert make_bundle("same", training={"note": "other"}).fingerprint == base
    assert make_bundle("weights", seed=1).fingerprint != base
    spec = Preprocess(height=4, width=5)
    sha = "0" * 64
    prints = {
        fingerprint(model_sha256=sha, preprocess=spec, bits=16),
        fingerprint(model_sha256=sha, preprocess=spec, bits=24),
        fingerprint(model_sha256="1" * 64, preprocess=spec, bits=16),
        fingerprint(
            model_sha256=sha, preprocess=Preprocess(height=4, width=5, resample="box"), bits=16
        ),
    }
    assert len(prints) == 4


def test_fingerprint_is_pinned() -> None:
    # A change here makes every index on disk refuse its model: it needs a new format version.
    value = fingerprint(model_sha256="0" * 64, preprocess=Preprocess(height=32, width=32), bits=48)
    assert value == "31f71e137d939f037d1d0660a62a20e93cde4c2c72daa41bc494c4db514fc00f"


def test_never_overwrites(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle()
    before = (bundle.path / "manifest.json").read_bytes()
    with pytest.raises(BundleError, match="exists and a bundle is never overwritten"):
        make_bundle(seed=1)
    assert (bundle.path / "manifest.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_failed_write_leaves_nothing(make_bundle: Make, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="precision must be one of"):
        make_bundle(precision="fp5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["model.onnx", "engines/a.plan"])
def test_one_flipped_bit_is_found(make_bundle: Make, name: str) -> None:
    bundle = make_bundle()
    bundle = add_engine(bundle, engine(bundle), b"plan" * 100)
    data = bytearray((bundle.path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle.path / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{name} is damaged: its SHA-256 .*fix: copy"):
        Bundle.open(bundle.path)
    unverified = Bundle.open(bundle.path, verify=False)
    with pytest.raises(BundleError, match="SHA-256"):
        unverified.read(name)


def test_truncated_and_missing_files(make_bundle: Make) -> None:
    bundle = make_bundle()
    data = bundle.model_path.read_bytes()
    bundle.model_path.write_bytes(data[:-1])
    for verify in (True, False):
        with pytest.raises(BundleError, match=r"bytes, the manifest says"):
            Bundle.open(bundle.path, verify=verify)
    bundle.model_path.unlink()
    with pytest.raises(BundleError, match=r"model.onnx is missing though the manifest lists it"):
        Bundle.open(bundle.path)


def test_folders_that_are_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist; fix: metah-export build"):
        Bundle.open(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="is not a folder"):
        Bundle.open(tmp_path / "file")
    with pytest.raises(BundleError, match=r"manifest.json is missing"):
        Bundle.open(tmp_path)


def test_links_are_refused_inside_but_not_to_the_bundle(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle()
    (tmp_path / "current").symlink_to(bundle.path)
    assert Bundle.open(tmp_path / "current").fingerprint == bundle.fingerprint
    elsewhere = tmp_path / "elsewhere.onnx"
    bundle.model_path.rename(elsewhere)
    bundle.model_path.symlink_to(elsewhere)
    with pytest.raises(BundleError, match="symbolic link: not allowed"):
        Bundle.open(bundle.path)


def test_a_linked_manifest_and_a_linked_folder_are_refused(
    make_bundle: Make, tmp_path: Path
) -> None:
    bundle = make_bundle()
    bundle = add_engine(bundle, engine(bundle), b"plan")
    (bundle.path / "engines").rename(tmp_path / "outside")
    (bundle.path / "engines").symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match="symbolic link"):
        Bundle.open(bundle.path)
    (bundle.path / "manifest.json").rename(tmp_path / "m.json")
    (bundle.path / "manifest.json").symlink_to(tmp_path / "m.json")
    with pytest.raises(BundleError, match=r"manifest.json is a symbolic link"):
        Bundle.open(bundle.path)


def test_a_pipe_does_not_block(make_bundle: Make) -> None:
    bundle = make_bundle()
    bundle.model_path.unlink()
    os.mkfifo(bundle.model_path)
    with pytest.raises(BundleError, match="not a regular file"):
        Bundle.open(bundle.path)


@pytest.mark.parametrize(
    "name",
    [
        "../model.onnx",
        "/etc/passwd",
        "a/b",
        "engines/../x",
        "engines//x",
        ".hidden",
        "a\\b",
        "",
        "é",
    ],
)
def test_names_that_lead_out_are_refused(make_bundle: Make, name: str) -> None:
    bundle = make_bundle()
    listed = json.loads((bundle.path / "manifest.json").read_text())["files"]
    edit(bundle, files=listed | {name: {"sha256": "0" * 64, "size": 1}})
    with pytest.raises(BundleError, match=r"file name .* is not allowed"):
        Bundle.open(bundle.path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": 3}, "format version 3, this program reads 1, 2"),
        ({"format": 2}, "key code_weight is missing"),
        ({"format": None}, "format version None"),
        ({"format": True}, "format version True"),
        ({"bits": 50}, "bits must be a multiple of 8"),
        ({"bits": True}, "bits must be int, got bool"),
        ({"bits": "48"}, "bits must be int, got str"),
        ({"bits": None}, "key bits is missing"),
        ({"surprise": 1}, "unknown key surprise"),
        ({"bit_order": "little"}, "bit rule .* and order 'little'"),
        ({"bit_rule": "logit >= 0"}, "bit rule 'logit >= 0'"),
        ({"precision": "fp5"}, "precision must be one of"),
        ({"files": {}}, r"files must list model\.onnx"),
        ({"fingerprint": "0" * 64}, "does not belong to this model"),
        ({"preprocess": {"height": 4}}, "preprocess"),
        ({"opset": [20]}, "opset must be int, got list"),
    ],
)
def test_manifest_rules(make_bundle: Make, changes: dict[str, Any], match: str) -> None:
    bundle = make_bundle()
    edit(bundle, **changes)
    with pytest.raises(BundleError, match=match):
        Bundle.open(bundle.path)


def test_preprocess_of_another_model_is_found(make_bundle: Make) -> None:
    bundle = make_bundle()
    edit(bundle, preprocess=Preprocess(height=4, width=5, resample="box").to_dict())
    with pytest.raises(BundleError, match="does not belong to this model"):
        Bundle.open(bundle.path)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"\xff", b'{"a": 1, "a": 2}', b'{"a": NaN}', b"[" * 100_000],
)
def test_hostile_manifests(make_bundle: Make, text: bytes) -> None:
    bundle = make_bundle()
    (bundle.path / "manifest.json").write_bytes(text)
    with pytest.raises(BundleError, match=r"manifest.json is damaged"):
        Bundle.open(bundle.path)


def test_engines_are_added_and_replaced(make_bundle: Make) -> None:
    bundle = make_bundle()
    bundle = add_engine(bundle, engine(bundle), b"one")
    bundle = add_engine(bundle, engine(bundle, file="engines/b.plan"), b"two")
    bundle = add_engine(bundle, engine(bundle, builder="1.8"), b"three")
    read = Bundle.open(bundle.path)
    assert read == bundle
    assert [(e.file, e.builder) for e in read.manifest.engines] == [
        ("engines/b.plan", "1.7.1"),
        ("engines/a.plan", "1.8"),
    ]
    assert read.read("engines/a.plan") == b"three"
    assert read.fingerprint == make_bundle("plain").fingerprint


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_sha256": "0" * 64}, "built from another model"),
        ({"kind": "openvino"}, "engine kind must be one of"),
        ({"batch": (1, 9, 8)}, "1 <= min <= opt <= max"),
        ({"batch": (0, 1, 1)}, "1 <= min <= opt <= max"),
        ({"file": "../a.plan"}, "not allowed"),
        ({"file": "model.onnx"}, "must be listed once"),
    ],
)
def test_engine_rules(make_bundle: Make, changes: dict[str, Any], match: str) -> None:
    bundle = make_bundle()
    before = (bundle.path / "manifest.json").read_bytes()
    with pytest.raises(BundleError, match=match):
        add_engine(bundle, engine(bundle, **changes), b"plan")
    assert (bundle.path / "manifest.json").read_bytes() == before
    assert Bundle.open(bundle.path) == bundle


def test_unlisted_names_cannot_be_read(make_bundle: Make) -> None:
    bundle = make_bundle()
    (bundle.path / "extra").write_text("x")
    with pytest.raises(BundleError, match="lists no file 'extra'"):
        bundle.read("extra")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_changed_manifest_byte_is_an_error_or_white_space(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bundle = _cached(tmp_path_factory)
    path = bundle.path / "manifest.json"
    original = path.read_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    value = data.draw(st.integers(0, 255))
    changed = original[:position] + bytes([value]) + original[position + 1 :]
    path.write_bytes(changed)
    try:
        opened = Bundle.open(bundle.path)
    except BundleError:
        return
    finally:
        path.write_bytes(original)
    assert json.loads(changed) == json.loads(original)
    assert opened.manifest == bundle.manifest


_BUNDLES: list[Bundle] = []


def _cached(factory: pytest.TempPathFactory) -> Bundle:
    if not _BUNDLES:
        from metah_runtime.model.bundle import write_bundle

        _BUNDLES.append(
            write_bundle(
                factory.mktemp("fuzz") / "bundle",
                model=b"model",
                bits=16,
                preprocess=Preprocess(height=4, width=5),
                precision="fp32",
                opset=20,
                versions={},
                training={},
                parity={},
            )
        )
    return _BUNDLES[0]
