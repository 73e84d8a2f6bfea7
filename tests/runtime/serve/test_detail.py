"""A server of codes with a detail part answers as its index: both distances, radius, code, id."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metah_runtime import Encoder, Index
from metah_runtime.codes import CodeFormat
from metah_runtime.errors import IndexMismatch
from metah_runtime.model.bundle import Bundle
from metah_runtime.serve.openapi import IndexAnswer, SearchAnswer
from metah_runtime.serve.service import Service
from metah_runtime.serve.settings import ServerSettings

from .conftest import Running, World, running


@pytest.fixture
def world(tmp_path: Path, make_bundle: Callable[..., Bundle]) -> World:
    """Images whose hash codes collapse to two: those of the index are edited."""
    bundle = make_bundle(bits=8, detail_bits=24)
    images = tmp_path / "images"
    images.mkdir()
    files = [images / f"{number:03d}.png" for number in range(40)]
    rng = np.random.default_rng(2)
    for path in files:
        Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).save(path)
    encoder = Encoder.open(bundle, threads=1)
    codes = encoder.encode(files)
    codes[:, 0] &= 1
    index = Index.create(
        tmp_path / "index", code_format=encoder.code_format, fingerprint=encoder.fingerprint
    )
    index.add(codes, paths=files)
    return World(tmp_path, bundle, images, index.path, files)


@pytest.fixture
def server(world: World) -> Iterator[Running]:
    with running(world.service()) as started:
        yield started


def rows(answer: dict) -> list[tuple[int, int, int]]:
    SearchAnswer.model_validate(answer, strict=True)
    return [(n["id"], n["distance"], n["code_distance"]) for n in answer["neighbours"]]


def test_answers_are_those_of_the_index(server: Running, world: World) -> None:
    index = Index.open(world.index)
    code = world.encoder().encode([world.files[3]])
    found = index.search(code, 7)
    assert found.code_distances is not None
    due = list(
        zip(
            found.ids[0].tolist(),
            found.distances[0].tolist(),
            found.code_distances[0].tolist(),
            strict=True,
        )
    )
    answer = server.search(world.files[3].read_bytes(), "?k=7").json
    assert rows(answer) == due
    assert (answer["bits"], answer["detail_bits"], len(answer["logits"])) == (8, 24, 8)
    assert answer["code"] == bytes(code[0]).hex()
    assert rows(server.search({"code": answer["code"]}, "?k=7").json) == due
    for number in range(40):
        assert rows(server.search({"id": number}, "?k=1").json)[0] == (number, 0, 0)
    facts = server.get("/v1/index").json
    IndexAnswer.model_validate(facts, strict=True)
    assert (facts["bits"], facts["detail_bits"], facts["code_weight"]) == (8, 24, 1)
    assert facts["distances"]["most"] == 8
    short = server.search({"code": "00"}, "?k=1")
    assert (short.status, "8 hex digits" in short.json["rule"]) == (422, True)


@pytest.mark.parametrize("radius", [0, 1, 8])
@pytest.mark.parametrize("limit", [1, 2, 1000])
def test_a_radius_is_one_of_the_hash_code(
    server: Running, world: World, radius: int, limit: int
) -> None:
    index = Index.open(world.index)
    for number in (0, 5):
        ball = index.range_search(index.codes([number]), radius)
        assert ball.code_distances is not None
        columns = (ball.ids, ball.distances, ball.code_distances)
        due = list(zip(*(column.tolist() for column in columns), strict=True))
        answer = server.search({"id": number}, f"?radius={radius}&limit={limit}").json
        assert rows(answer) == due[:limit]
        assert (answer["within"], answer["cut"]) == (len(due), len(due) > limit)


def test_an_index_of_other_parts_is_refused(world: World, tmp_path: Path) -> None:
    encoder = world.encoder()
    form = CodeFormat(bits=16, detail_bits=16)
    Index.create(tmp_path / "other", code_format=form, fingerprint=encoder.fingerprint)
    with pytest.raises(IndexMismatch, match=r"codes of 16 \+ 16 bits .* have 8 \+ 24 bits"):
        Service(tmp_path / "other", encoder, ServerSettings(decoders=1))
