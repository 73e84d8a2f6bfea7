"""The OpenAPI document against the server, by generated requests, right and wrong."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from PIL import Image

from .conftest import Running, World, running

schemathesis = pytest.importorskip("schemathesis", reason="needs metah[dev]")
from schemathesis import GenerationMode  # noqa: E402

ALL = list(HealthCheck)

TOKEN = "token-of-the-schema-test"
CANARY = b"canary-of-the-schema-test"


def _png() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (6, 6), (1, 2, 3)).save(data, "PNG")
    return data.getvalue()


schemathesis.openapi.media_type("image/*", st.sampled_from([_png(), b"no image", b"\x89PNG\r\n"]))


@pytest.fixture(scope="module")
def locked(world: World) -> Iterator[Running]:
    (world.folder / "canary.txt").write_bytes(CANARY)
    with running(world.service(token=TOKEN, images=world.images, timeout=25.0)) as server:
        yield server


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_the_server_keeps_to_its_document(locked: Running, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_dict(locked.get("/openapi.json").json)
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    checks = schemathesis.checks
    # "k or radius, not both" and "one field only" are beyond what OpenAPI says of a request.
    excluded = [checks.positive_data_acceptance]

    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=12,
            deadline=None,
            derandomize=True,
            suppress_health_check=ALL,
            phases=[Phase.generate],
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def run(case: schemathesis.Case) -> None:  # type: ignore[name-defined]
            response = case.call_and_validate(
                base_url=f"http://127.0.0.1:{locked.port}", headers=bearer, excluded_checks=excluded
            )
            assert CANARY not in response.content

        with contextlib.suppress(Unsatisfiable):  # an operation that takes nothing
            run()


def test_the_document_says_what_is_served(locked: Running, world: World) -> None:
    document = locked.get("/openapi.json").json
    assert set(document["paths"]) == {
        "/v1/search",
        "/v1/index",
        "/v1/images/{id}/thumbnail",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    search = document["paths"]["/v1/search"]["post"]
    assert set(search["requestBody"]["content"]) == {
        "image/*",
        "multipart/form-data",
        "application/json",
    }
    statuses = {"200", "400", "401", "404", "408", "413", "415", "422", "429", "503", "504"}
    assert set(search["responses"]) == statuses
    assert search["security"] == [{"token": []}]
    assert "security" not in document["paths"]["/healthz"]["get"]
    text = str(document)
    for word in (str(Path.home()), str(world.folder)):
        assert word not in text
