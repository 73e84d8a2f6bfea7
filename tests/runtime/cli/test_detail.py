"""Commands over codes with a detail part and images of two domains."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metah_runtime import Encoder, Index, reference
from metah_runtime.codes import CodeFormat
from metah_runtime.model.bundle import Bundle

FORM = CodeFormat(bits=8, detail_bits=24)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bundle(make_bundle: Callable[..., Bundle]) -> Bundle:
    return make_bundle(bits=8, detail_bits=24, source=True)


def draw(folder: Path, n: int, seed: int = 1) -> list[Path]:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = [folder / f"{number:02d}.png" for number in range(n)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).save(path)
    return paths


def encode(bundle: Bundle, images: list[Path], domain: Any = "target") -> np.ndarray:
    return Encoder.open(bundle, domain=domain, threads=1).encode(images)


def good(done: tuple[int, str, str]) -> Any:
    assert done[0] == 0, done
    return json.loads(done[1])


def test_query_shows_both_distances_and_ties(run: Run, tmp_path: Path, bundle: Bundle) -> None:
    images, index = draw(tmp_path / "images", 20), tmp_path / "index"
    said = good(run("add", index, images[0].parent, "--bundle", bundle.path, "--json"))
    assert (said["added"], said["bits"], said["detail_bits"]) == (20, 8, 24)
    codes = encode(bundle, images)
    found = good(run("query", index, *images, "-k", 5, "--json"))
    assert (found["bits"], found["detail_bits"]) == (8, 24)
    near = reference.search(codes, codes, 5, code_format=FORM)
    assert near.code_distances is not None
    for row, item in enumerate(found["queries"]):
        got = [(m["id"], m["distance"], m["code_distance"]) for m in item["matches"]]
        columns = (near.ids[row], near.distances[row], near.code_distances[row])
        assert got == list(zip(*(column.tolist() for column in columns), strict=True))
        assert got[0] == (row, 0, 0)
        keys = [(d, c) for _, d, c in got]
        assert item["tied"] == sum(keys.count(key) > 1 for key in keys)
    ball = reference.range_search(codes[:1], codes, 2, code_format=FORM)
    found = good(run("query", index, images[0], "--radius", 2, "--json"))
    assert [m["id"] for m in found["queries"][0]["matches"]] == ball.ids.tolist()
    out = run("query", index, images[0], "-k", 3)[1]
    assert "code distance" in out
    short = run("query", index, "--code", "00")
    assert (short[0], "8 hex digits" in short[2], "8 + 24 bits" in short[2]) == (2, True, True)
    page = tmp_path / "page.html"
    assert run("query", index, images[0], "--html", page)[0] == 0
    assert "of 32 bits, 0 bits of the hash code" in page.read_text()
    assert "codes of 8 + 24 bits" in page.read_text()


def test_ties_are_told_without_detail_too(
    run: Run, tmp_path: Path, make_bundle: Callable[..., Bundle]
) -> None:
    bundle = make_bundle("plain", bits=8)
    index = Index.create(tmp_path / "index", bits=8, fingerprint=bundle.fingerprint)
    index.add(np.array([[3], [3], [3], [1]], np.uint8))
    item = good(run("query", index.path, "--code", "03", "--json"))["queries"][0]
    assert item["tied"] == 3
    assert "code_distance" not in item["matches"][0]
    assert "3 of 4 tie with another" in run("query", index.path, "--code", "03")[1]
    assert "tie" not in run("query", index.path, "--code", "03", "-k", 1)[1]


def test_a_file_keeps_the_domain_that_it_was_added_in(
    run: Run, tmp_path: Path, bundle: Bundle
) -> None:
    index = tmp_path / "index"
    renders, photos = draw(tmp_path / "renders", 5, 2), draw(tmp_path / "photos", 6, 3)
    model = ("--bundle", bundle.path, "--json")
    assert good(run("add", index, tmp_path / "renders", "--domain", "source", *model))["added"] == 5
    assert good(run("add", index, tmp_path / "photos", *model))["added"] == 6
    store = Index.open(index)
    due = np.concatenate([encode(bundle, renders, "source"), encode(bundle, photos)])
    assert np.array_equal(store.codes(store.ids()), due)
    assert not np.array_equal(due[:5], encode(bundle, renders))
    draw(tmp_path / "renders", 5, 4)
    draw(tmp_path / "photos", 6, 5)
    said = good(run("add", index, tmp_path / "photos", tmp_path / "renders", *model, "--recheck"))
    assert said["changed"] == 11
    store = Index.open(index)
    due = np.concatenate([encode(bundle, renders, "source"), encode(bundle, photos)])
    assert np.array_equal(store.codes(store.ids()), due)
    assert store.domains(store.ids()) == ["source"] * 5 + ["target"] * 6
    facts = good(run("info", index, "--json"))
    assert facts["domains"] == {"target": 6, "source": 5}
    assert "8 + 24" in run("info", index)[1]
    for image, domain in ((renders[2], "source"), (photos[2], "target")):
        found = good(run("query", index, image, "--domain", domain, "-k", 1, "--json"))
        assert found["queries"][0]["matches"][0]["path"] == str(image)


def test_a_bundle_of_one_model_refuses_the_source(
    run: Run, tmp_path: Path, make_bundle: Callable[..., Bundle]
) -> None:
    draw(tmp_path / "images", 1)
    bundle = make_bundle("one", bits=8)
    options = ("--bundle", bundle.path, "--domain", "source")
    done = run("add", tmp_path / "index", tmp_path / "images", *options)
    assert done[0] == 1
    assert "leave the domain out" in done[2]
