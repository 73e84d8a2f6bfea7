"""The model card: all that the bundle knows, nothing that it does not, sealed as every file."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metah_runtime.cli import console
from metah_runtime.cli.main import cli
from metah_runtime.errors import BundleError
from metah_runtime.model import card
from metah_runtime.model.bundle import Bundle
from metah_runtime.model.manifest import seal

Make = Callable[..., Bundle]

METRICS = {
    "map_h2": 0.831234,
    "map_h2_tieavg": 0.83,
    "empty_balls": 0.06,
    "ball_size": 101.5,
    "precision_h2": 0.9,
    "recall_h2": 0.774,
    "map_full": 0.813,
    "queries": 300,
    "database": 1497,
    "bits": 16,
    "radius": 2,
}
TRAINING: dict[str, Any] = {
    "class_names": ["zero", "one"],
    "config": {
        "method": "metah-e",
        "backbone": "small-cnn",
        "weights": None,
        "seed": 7,
        "split": {"queries_per_class": 30, "valid_fraction": 0.1, "target_train": None},
    },
    "data": "digits",
    "direction": "syn2real",
    "evaluation": {
        "data": "digits",
        "direction": "syn2real",
        "metrics": METRICS,
        "source_validation": METRICS | {"map_h2": 0.99},
    },
    "licence": "CC-BY-4.0",
    "run": "ab12",
}
PARITY = {
    "runner": "onnxruntime 1.32.0 cpu",
    "images": 600,
    "source_images": 150,
    "target_images": 450,
    "flips": 3,
    "map_h2": 0.71,
    "map_h2_truth": 0.72,
}


def run(capsys: pytest.CaptureFixture[str], *args: str | Path) -> tuple[Any, str, str]:
    with pytest.raises(SystemExit) as stop:
        console.run(cli, "metah-search", [str(arg) for arg in args])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_every_fact_of_the_bundle_is_on_the_card(make_bundle: Make) -> None:
    bundle = make_bundle(training=TRAINING, parity=PARITY, versions={"metah": "0.1.0"})
    text = bundle.read(card.FILE).decode()
    assert text == card.render(bundle.manifest)
    assert text.startswith("# Model card: metah-e, 16 bits\n")
    for row in (
        "| method | metah-e |",
        "| weights that the backbone began with | none |",
        "| seed | 7 |",
        f"| fingerprint | `{bundle.fingerprint}` |",
        "| training run | ab12 |",
        "| data | digits |",
        "| direction (source to target) | syn2real |",
        "| queries of each class | 30 |",
        "| unlabelled target images | all, or as published |",
        "| classes | 2 |",
        "Classes: zero, one.",
        "resized to 4 x 5 (height x width) by bilinear",
        "300 queries against a database of 1497 images, Hamming radius 2.",
        "| MAP within the ball | 0.8312 | 0.99 |",
        "| recall within the ball | 0.774 | 0.774 |",
        "on 150 source and 450 target images, by onnxruntime 1.32.0 cpu: 3 of 9600 bits differ.",
        "these images: 0.71, of the trained network 0.72;",
        "not checked: CC-BY-4.0\n",
        "| metah | 0.1.0 |",
    ):
        assert row in text, row


def test_what_the_bundle_does_not_know_is_said_to_be_missing(make_bundle: Make) -> None:
    text = make_bundle(training={}, parity={}).read(card.FILE).decode()
    for row in (
        "# Model card: not stated, 16 bits",
        "| data | not stated |",
        "| classes | not stated |",
        "Not evaluated: the run held no evaluation",
        "The codes were not compared",
        "Not stated by whoever exported the model.",
    ):
        assert row in text, row
    assert "MAP" not in text
    assert "within the ball" not in text


def test_scores_that_are_missing_are_not_made_up(make_bundle: Make) -> None:
    evaluation = {"metrics": {"map_h2": "high", "recall_h2": 0.5, "surprise": 1}}
    text = make_bundle(training={"evaluation": evaluation}).read(card.FILE).decode()
    assert "| MAP within the ball | not stated | not stated |" in text
    assert "| recall within the ball | 0.5 | not stated |" in text
    assert "surprise" not in text
    assert "not stated queries against a database of not stated images" in text


def test_a_target_without_labels_is_not_scored(make_bundle: Make) -> None:
    evaluation = {"unscored": "the target images have no labels", "source_validation": METRICS}
    text = make_bundle(training={"evaluation": evaluation}).read(card.FILE).decode()
    assert "Not scored: the target images have no labels." in text
    assert "MAP" not in text


def test_scores_in_the_source_say_so(make_bundle: Make) -> None:
    more = {"database": "source", "cross": METRICS | {"map_h2": 0.5}}
    evaluation = TRAINING["evaluation"] | more
    text = make_bundle(training={"evaluation": evaluation}).read(card.FILE).decode()
    assert "against a database of 1497 images of the source, Hamming" in text
    assert "| MAP within the ball | 0.8312 | 0.99 | 0.5 |" in text


def test_weights_and_queries_that_nobody_set(make_bundle: Make) -> None:
    split = {"queries_per_class": None, "query_fraction": 0.1, "valid_fraction": 0.1}
    config = TRAINING["config"] | {"split": split}
    training = TRAINING | {"config": config, "pretrained": "ImageNet, of a package"}
    text = make_bundle(training=training).read(card.FILE).decode()
    assert "| weights that the backbone began with | ImageNet, of a package |" in text
    assert "| part of the labelled target images that queries | 0.1 |" in text
    assert "queries of each class" not in text


def test_many_classes_are_cut(make_bundle: Make) -> None:
    names = [f"class{i}" for i in range(100)]
    text = make_bundle(training={"class_names": names}).read(card.FILE).decode()
    assert "class39 and 60 more." in text
    assert "class40" not in text


@given(name=st.text())
def test_names_cannot_pass_for_markup(make_manifest: Any, name: str) -> None:
    plain = card.render(make_manifest("x"))
    text = card.render(make_manifest(name))
    assert len(text.splitlines()) == len(plain.splitlines())
    starts = [line[:2] for line in text.splitlines()]
    assert starts == [line[:2] for line in plain.splitlines()]
    bare = re.sub(r"\\.", "", text)
    expected = re.sub(r"\\.", "", plain)
    for mark in "`*_[]<|":
        assert bare.count(mark) == expected.count(mark), mark
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", text)


@pytest.fixture(scope="module")
def make_manifest(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Give manifests whose class, data and licence have a name."""
    from metah_runtime.images.preprocess import Preprocess
    from metah_runtime.model.bundle import write_bundle

    manifest = write_bundle(
        tmp_path_factory.mktemp("card") / "b",
        model=b"m",
        bits=8,
        preprocess=Preprocess(height=1, width=1),
        precision="fp32",
        opset=20,
        versions={},
        training={},
        parity={},
    ).manifest

    def make(name: str) -> Any:
        training = {"class_names": [name], "data": name, "licence": name}
        return replace(manifest, training=training, versions={name: name})

    return make


def test_the_card_is_sealed(make_bundle: Make) -> None:
    bundle = make_bundle(training=TRAINING)
    path = bundle.path / card.FILE
    path.write_bytes(path.read_bytes().replace(b"0.8312", b"0.9312"))
    with pytest.raises(BundleError, match=r"MODEL_CARD.md is damaged: its SHA-256"):
        Bundle.open(bundle.path)


def test_the_command_shows_the_card(make_bundle: Make, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make_bundle(training=TRAINING, parity=PARITY)
    assert run(capsys, "card", bundle.path) == (0, bundle.read(card.FILE).decode(), "")
    code, out, _ = run(capsys, "card", bundle.path, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["training"] == TRAINING
    assert found["fingerprint"] == bundle.fingerprint


def test_a_bundle_without_a_card_and_no_bundle(
    make_bundle: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle()
    path = bundle.path / "manifest.json"
    value = json.loads(path.read_text())
    del value["files"][card.FILE]
    path.write_text(json.dumps(seal(value)))
    (bundle.path / card.FILE).unlink()
    assert Bundle.open(bundle.path).bits == 16
    code, out, err = run(capsys, "card", bundle.path)
    assert (code, out) == (1, "")
    assert re.fullmatch(r"metah-search: error: .*holds no MODEL_CARD.md.*fix: export again\n", err)
    code, out, err = run(capsys, "card", tmp_path / "nowhere")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "does not exist" in err


def test_hostile_text_of_a_card_does_not_reach_the_terminal(
    make_bundle: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    import hashlib

    bundle = make_bundle()
    data = b"\x1b[2J\xff evil\n"
    (bundle.path / card.FILE).write_bytes(data)
    path = bundle.path / "manifest.json"
    value = json.loads(path.read_text())
    value["files"][card.FILE] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    path.write_text(json.dumps(seal(value)))
    assert run(capsys, "card", bundle.path)[:2] == (0, "\\x1b[2J\\xff evil\n")


def test_images_that_were_left_out_are_counted(make_manifest: Any) -> None:
    training = {"config": {"skipped": ["source/a.png", "target/b.png"]}}
    text = card.render(replace(make_manifest("x"), training=training))
    assert "| images left out, for they could not be read | 2 |" in text
    assert "left out, for" not in card.render(make_manifest("x"))


def test_scores_of_another_radius_are_found_under_their_names(make_manifest: Any) -> None:
    def rendered(metrics: dict[str, float]) -> str:
        training = {"evaluation": {"metrics": metrics}}
        return card.render(replace(make_manifest("x"), training=training))

    text = rendered({"map_h3": 0.5, "recall_h3": 0.25, "map_full": 0.75, "radius": 3})
    for row in ("MAP within the ball | 0.5", "recall within the ball | 0.25", "ranking | 0.75"):
        assert f"{row} | not stated |" in text
    text = rendered({"map_h2": 0.5, "radius": 3})  # the names of an early version
    assert "| MAP within the ball | 0.5 | not stated |" in text
