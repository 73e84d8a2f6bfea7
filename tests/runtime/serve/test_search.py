"""What the server answers: exactly what the index answers, whatever way the query comes in."""

import io
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from metah_runtime import Index
from metah_runtime.codes import Codes
from metah_runtime.serve.openapi import IndexAnswer, ProblemBody, SearchAnswer

from .conftest import BITS, COUNT, Running, World, running

FORM = "multipart/form-data; boundary=edge"


def form(data: bytes, name: str = "image", filename: str = "x.png") -> bytes:
    head = f'--edge\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'
    return head.encode("utf-8", "surrogateescape") + data + b"\r\n--edge--\r\n"


def pairs(answer: Any) -> list[tuple[int, int]]:
    SearchAnswer.model_validate(answer, strict=True)
    return [(item["id"], item["distance"]) for item in answer["neighbours"]]


def nearest(world: World, code: Codes, k: int) -> list[tuple[int, int]]:
    with Index.open(world.index) as index:
        found = index.search(code, k)
    return list(zip(found.ids[0].tolist(), found.distances[0].tolist(), strict=True))


def problem(answer: Any, status: int) -> dict[str, str]:
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    ProblemBody.model_validate(answer.json, strict=True)
    value: dict[str, str] = answer.json
    assert set(value) == {"error", "rule", "fix"}
    return value


@pytest.mark.parametrize("number", [0, 7, COUNT - 1])
def test_an_image_finds_what_its_code_finds(served: Running, world: World, number: int) -> None:
    data = world.files[number].read_bytes()
    codes, logits = world.encoder().run([data])
    for answer in (
        served.search(data, "?k=5"),
        served.search(form(data), "?k=5", FORM),
        served.search({"code": codes[0].tobytes().hex()}, "?k=5"),
        served.search({"code": codes[0].tobytes().hex().upper()}, "?k=5"),
        served.search({"id": number}, "?k=5"),
    ):
        assert answer.status == 200, answer.body
        value = answer.json
        assert pairs(value) == nearest(world, codes, 5)
        assert value["code"] == codes[0].tobytes().hex()
        assert value["bits"] == BITS
        assert (value["within"], value["cut"]) == (None, False)
        with Index.open(world.index) as index:
            assert value["version"] == f"{index.info()['index_id']}.{index.generation}"
    image = served.search(data).json
    assert np.array_equal(np.array(image["logits"], np.float32), logits[0])
    assert len(image["neighbours"]) == 10
    assert served.search({"id": number}).json["logits"] is None


@pytest.mark.parametrize("radius", [0, 2, 5, BITS])
@pytest.mark.parametrize("limit", [None, 1, 3, 1000])
def test_a_radius_gives_the_nearest_within_it(
    served: Running, world: World, radius: int, limit: int | None
) -> None:
    code = np.array([[0x3A, 0x5C]], np.uint8)
    with Index.open(world.index) as index:
        ids, distances = index.range_search(code, radius)[0]
    expected = list(zip(ids.tolist(), distances.tolist(), strict=True))
    query = f"?radius={radius}" + ("" if limit is None else f"&limit={limit}")
    value = served.search({"code": "3a5c"}, query).json
    assert pairs(value) == expected[: 100 if limit is None else limit]
    assert value["within"] == len(expected)
    assert value["cut"] == (len(expected) > len(value["neighbours"]))


def test_k_may_be_more_than_there_are(served: Running, world: World) -> None:
    found = pairs(served.search({"code": "ffff"}, "?k=1000").json)
    assert found == nearest(world, np.array([[255, 255]], np.uint8), 1000)
    assert len(found) == COUNT


def test_names_labels_and_domains(served: Running, world: World) -> None:
    found = served.search({"id": 4}, "?k=1").json["neighbours"][0]
    if found["id"] == 4:  # another image may have the same code
        assert found["name"] == "sketch/class 1/004.png"
        assert (found["label"], found["domain"]) == ("class 1", "sketch")
    every = served.search({"id": 4}, f"?k={COUNT}").json["neighbours"]
    assert {item["id"]: item["name"] for item in every} == {
        number: str(file.relative_to(world.images)) for number, file in enumerate(world.files)
    }


def test_any_format_and_orientation_is_decoded_as_elsewhere(served: Running, world: World) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind, extra in (("JPEG", {"exif": exif}), ("WEBP", {}), ("BMP", {}), ("TIFF", {})):
        data = io.BytesIO()
        image.save(data, kind, **extra)
        code = world.encoder().encode([data.getvalue()])[0].tobytes().hex()
        answer = served.search(data.getvalue(), kind=f"image/{kind.lower()}")
        assert answer.json["code"] == code


def test_the_index_is_described(served: Running, world: World) -> None:
    value = served.get("/v1/index").json
    IndexAnswer.model_validate(value, strict=True)
    manifest = world.bundle.manifest
    assert (value["count"], value["bits"]) == (COUNT, BITS)
    assert value["bundle"] == {
        "name": "toy",
        "fingerprint": world.bundle.fingerprint,
        "digest": manifest.files["model.onnx"].sha256,
        "device": "cpu",
        "image": [4, 5, 3],
    }
    assert value["distances"] == {"least": 0, "most": BITS, "default": None}
    assert value["thumbnails"] is True


@pytest.mark.parametrize(
    ("body", "query", "kind", "status", "error"),
    [
        (b"", "", None, 422, "the image is empty"),
        (b"no image", "", None, 422, "not an image of a known format"),
        (b"GIF89a", "", "image/gif", 422, "not an image|cannot be decoded"),
        (b"x", "", "text/plain", 415, "'text/plain' is not known"),
        (b"x", "", "image/", 415, "is not known"),
        (b"x", "", "application/x-www-form-urlencoded", 415, "is not known"),
        (b"{", "", "application/json", 422, "is not JSON"),
        (b"\xff", "", "application/json", 422, "is not JSON"),
        (b"[" * 60_000, "", "application/json", 422, "nested too deeply"),
        (b"{}" + b" " * 70_000, "", "application/json", 413, "larger than 65,536 bytes"),
        (b'{"id": 1, "id": 2}', "", "application/json", 422, "duplicate key"),
        ({}, "", None, 422, "one key"),
        ([1], "", None, 422, "one key"),
        ({"id": 1, "code": "0000"}, "", None, 422, "one key"),
        ({"code": "00"}, "", None, 422, "'00' is no code of 16 bits"),
        ({"code": "00 0"}, "", None, 422, "no code"),
        ({"code": "００００"}, "", None, 422, "no code"),
        ({"code": 1}, "", None, 422, "1 is no code"),
        ({"id": -1}, "", None, 422, "-1 is no id"),
        ({"id": True}, "", None, 422, "True is no id"),
        ({"id": 1.5}, "", None, 422, "1.5 is no id"),
        ({"id": 2**63}, "", None, 422, "is no id"),
        ({"id": COUNT}, "", None, 404, f"id {COUNT} is not in the index"),
        ({"path": "/etc/passwd"}, "", None, 422, "key 'path' is not known"),
        ({"url": "http://127.0.0.1/"}, "", None, 422, "key 'url' is not known"),
        ({"id": 1}, "?k=0", None, 422, "query k: .*greater than or equal to 1, got '0'"),
        ({"id": 1}, "?k=1001", None, 422, "less than or equal to 1000"),
        ({"id": 1}, "?k=ten", None, 422, "valid integer"),
        ({"id": 1}, f"?radius={BITS + 1}", None, 422, "less than or equal to 16"),
        ({"id": 1}, "?radius=-1", None, 422, "greater than or equal to 0"),
        ({"id": 1}, "?radius=1&limit=0", None, 422, "limit"),
        ({"id": 1}, "?k=1&radius=1", None, 422, "k and radius are both given"),
        ({"id": 1}, "?limit=5", None, 422, "limit is given without radius"),
        ({"id": 1}, "?kk=5", None, 422, "query kk"),
        (form(b"x", "photo"), "", FORM, 422, "called b'photo'"),
        (form(b""), "", FORM, 422, "the image is empty"),
        (form(b"x")[:-8], "", FORM, 422, "not whole"),
        (form(b"x"), "", "multipart/form-data", 422, "boundary has 0"),
        (b"--edge--\r\n", "", FORM, 422, "not whole"),
        (form(b"x").replace(b"--edge--", form(b"y")[:-2]), "", FORM, 422, "more than one field"),
    ],
)  # fmt: skip
def test_a_bad_query_is_told_why(
    served: Running, body: Any, query: str, kind: str | None, status: int, error: str
) -> None:
    import re

    value = problem(served.search(body, query, kind), status)
    assert re.search(error, value["error"]), value["error"]
    assert value["rule"]
    assert value["fix"]


def test_a_body_without_a_type_is_refused(served: Running) -> None:
    assert problem(served.call("POST", "/v1/search", b"x"), 415)["error"]


def test_names_of_files_in_a_form_mean_nothing(served: Running, world: World) -> None:
    data = world.files[0].read_bytes()
    want = served.search(data).json
    for name in (
        "../../etc/passwd",
        "/etc/passwd",
        "a\0b",
        "<img src=x>",
        "\udcff",
        "",
        "x" * 4000,
    ):
        assert served.search(form(data, filename=name), kind=FORM).json == want


def test_wrong_paths_and_methods(served: Running) -> None:
    assert problem(served.get("/nothing"), 404)["error"] == "Not Found"
    assert problem(served.get("/v1/search"), 405)
    assert problem(served.call("PUT", "/v1/index", b"x"), 405)
    assert problem(served.get("/v1/search/"), 404)
    for path in (
        "/redoc",
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
    ):
        assert served.get(path).status == 404


def test_an_unexpected_error_is_logged_and_told_without_detail(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    from .conftest import running

    class Broken:
        device, bits = "cpu", BITS

        def run(self, images: object) -> object:
            raise RuntimeError("secret detail")

    encoder = world.encoder()
    encoder.runner = Broken()  # type: ignore[assignment]
    with running(world.service(encoder=encoder)) as server:
        answer = server.search(world.files[0].read_bytes())
        assert problem(answer, 500)["error"] == "an unexpected error"
        assert b"secret" not in answer.body
        assert server.search({"id": 0}).status == 200
    assert "secret detail" in caplog.text


def test_an_image_for_which_the_model_gives_nan_is_alone_in_failing(world: World) -> None:
    from .conftest import running

    encoder = world.encoder()
    real = encoder.runner.run

    def run(images: Any) -> Any:
        codes, logits = real(images)
        logits[images.reshape(len(images), -1).max(axis=1) == 0] = np.nan
        return codes, logits

    encoder.runner.run = run  # type: ignore[method-assign]
    black = io.BytesIO()
    Image.new("RGB", (5, 4)).save(black, "PNG")
    with running(world.service(encoder=encoder)) as server:
        assert "NaN" in problem(server.search(black.getvalue()), 422)["error"]
        assert server.search(world.files[0].read_bytes()).status == 200


def test_an_empty_index_answers_with_nothing(world: World, tmp_path: Path) -> None:
    from .conftest import running

    Index.create(tmp_path / "empty", bits=BITS, fingerprint=world.bundle.fingerprint)
    with running(world.service(tmp_path / "empty")) as server:
        assert pairs(server.search({"code": "0000"}, "?k=3").json) == []
        value = server.search(world.files[0].read_bytes(), "?radius=16").json
        assert (value["neighbours"], value["within"], value["cut"]) == ([], 0, False)


def test_a_search_may_be_limited_by_conditions(world: World, tmp_path: Path) -> None:
    with Index.create(
        tmp_path / "i", bits=world.encoder().bits, fingerprint=world.encoder().fingerprint
    ) as index:
        codes = world.encoder().encode(world.files)
        n = len(world.files)
        labels = [("cat", "dog", None)[at % 3] for at in range(n)]
        index.add(codes, paths=world.files, attributes={"label": labels, "year": range(n)})
    with running(world.service(index=tmp_path / "i")) as served:
        answer = served.search({"id": 0}, "?k=100&where=label%3Dcat&where=year%3E2").json
        found = [one["id"] for one in answer["neighbours"]]
        assert sorted(found) == list(range(3, n, 3))
        assert answer["neighbours"][0]["label"] == "cat"
        assert answer["neighbours"][0]["attributes"] == {"label": "cat", "year": found[0]}
        ball = served.search({"id": 0}, "?radius=16&limit=2&where=label%3Dcat")
        assert ball.json["within"] == len(range(0, n, 3))
        for where, reason in (
            ("lable=cat", "did you mean"),
            ("cat", "NAME=VALUE"),
            ("path=/etc/", "not allowed"),
            ("path=*x", "not allowed"),
            ("file.size>3", "not allowed"),
        ):
            refused = served.search({"id": 0}, f"?where={quote(where)}")
            assert refused.status == 422
            assert reason in refused.json["error"] + refused.json["fix"]
