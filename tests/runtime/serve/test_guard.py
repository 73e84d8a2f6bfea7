"""Token, host, headers of every answer, log and metrics."""

import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest

from metah_runtime.errors import ConfigError
from metah_runtime.serve import guard
from metah_runtime.serve.logs import JsonLines
from metah_runtime.serve.proxies import TrustedProxies

from .conftest import Running, World, running

TOKEN = "s3cret-token-of-the-test"

OPEN = ["/healthz", "/readyz", "/openapi.json", "/"]
CLOSED = ["/v1/index", "/v1/images/0/thumbnail", "/metrics", "/v1/nothing"]


@pytest.fixture(scope="module")
def locked(world: World) -> Iterator[Running]:
    with running(world.service(token=TOKEN, images=world.images)) as server:
        yield server


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"Authorization": ""},
        {"Authorization": TOKEN},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Bearer {TOKEN.upper()}"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN} {TOKEN}"},
        {"Authorization": "Bearer \xff\xfe"},
        {"Cookie": f"token={TOKEN}"},
    ],
)
def test_without_the_right_token_nothing_is_told(locked: Running, given: dict[str, str]) -> None:
    for path in CLOSED:
        answer = locked.call("GET", path, headers=given)
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json == {
            "error": "no valid token",
            "rule": "the request needs the header Authorization: Bearer TOKEN",
            "fix": "ask whoever runs this server for the token",
        }
    assert locked.search({"id": 0}, **given).status == 401
    assert locked.get(f"/v1/index?token={TOKEN}").status == 401
    for path in OPEN:
        assert locked.call("GET", path, headers=given).status in (200, 404)  # 404: no page built


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_with_the_right_token_all_is_answered(locked: Running, scheme: str) -> None:
    given = {"Authorization": f"{scheme} {TOKEN}"}
    for path in CLOSED[:-1]:
        assert locked.call("GET", path, headers=given).status == 200
    assert locked.search({"id": 0}, **given).status == 200
    assert locked.call("GET", "/v1/nothing", headers=given).status == 404
    assert locked.call("GET", "/v1/index", headers={**given, "Host": "any.example"}).status == 200


def test_tokens_are_compared_in_constant_time(
    locked: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    real = guard.hmac.compare_digest  # type: ignore[attr-defined]

    def spy(one: bytes, other: bytes) -> bool:
        seen.append((len(one), len(other)))
        return real(one, other)

    monkeypatch.setattr(guard.hmac, "compare_digest", spy)  # type: ignore[attr-defined]
    for given in ("", "a", TOKEN, "a" * 5000):
        locked.get("/v1/index", Authorization=f"Bearer {given}")
    assert seen == [(32, 32)] * 4


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:1234", 200),
        ("LOCALHOST", 200),
        ("[::1]:80", 200),
        ("127.1.2.3:99999", 200),
        ("evil.example", 421),
        ("evil.example:8000", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("", 421),
        ("[::1", 421),
        ("192.168.0.1", 421),
        ("localhost:", 200),
        ("[::1]", 200),
        ("[::1].evil", 421),
        ("[::1].evil.example:80", 421),
        ("[::1]evil", 421),
        ("[::1%25lo].evil", 421),
        ("[::1%lo]", 421),
        ("[127.0.0.1]", 421),
        ("[localhost]", 421),
        ("::1", 421),
        ("localhost:80.evil", 421),
        ("localhost:80@evil", 421),
        ("localhost:80:80", 421),
        ("127.0.0.1:evil", 421),
        ("evil@127.0.0.1", 421),
        ("127.0.0.1,evil", 421),
        ("127.0.0.1 evil", 421),
        ("127.0.0.1.", 421),
        ("2130706433", 421),
        ("localhost\xa0", 421),
    ],
)
def test_another_sites_name_for_this_machine_is_refused(
    served: Running, host: str, status: int
) -> None:
    for path in ("/healthz", "/v1/index"):
        answer = served.call("GET", path, headers={"Host": host})
        assert answer.status == status
    if status == 421:
        assert served.search({"id": 0}, Host=host).status == 421


def test_every_answer_has_the_headers_of_a_careful_site(served: Running, world: World) -> None:
    answers = [
        served.get("/healthz"),
        served.get("/"),
        served.get("/nothing"),
        served.search({"id": 0}),
        served.search({"id": -1}),
        served.get("/v1/images/0/thumbnail"),
        served.get("/v1/index", Host="evil.example"),
    ]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert "*" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers
    timing = served.search(world.files[0].read_bytes()).headers["server-timing"]
    assert re.fullmatch(r"decode;dur=[\d.]+, encode;dur=[\d.]+, search;dur=[\d.]+", timing)


def test_the_log_has_one_line_a_request_and_nothing_of_what_was_sent(
    served: Running, locked: Running, caplog: pytest.LogCaptureFixture
) -> None:
    for earlier in (served, locked):
        earlier.settle()
    caplog.clear()
    caplog.set_level(logging.INFO, "metah.serve")
    secret = "canary%0Ainjected"
    good = {"Authorization": f"Bearer {TOKEN}"}
    locked.search({"code": "abcd"}, f"?k=3&x={secret}", **good)
    locked.search(b"canary image", **good)
    locked.get(f"/{secret}", Authorization=f"Bearer {TOKEN}")
    locked.get("/v1/index", Authorization="Bearer wrong-canary", User_Agent="canary")
    locked.call("CANARY", "/v1/index", headers=good)
    locked.get("/healthz")
    locked.settle()
    formatter = JsonLines()
    lines = [formatter.format(record) for record in caplog.records]
    found: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert [(item["method"], item["route"], item["status"]) for item in found] == [
        ("POST", "/v1/search", 422),
        ("POST", "/v1/search", 422),
        ("GET", "other", 404),
        ("GET", "other", 401),
        ("other", "/v1/index", 405),
        ("GET", "/healthz", 200),
    ]
    text = "\n".join(lines)
    assert "canary" not in text.lower()
    assert TOKEN not in text
    assert all("\n" not in line for line in lines)


def test_a_line_of_the_log_stays_one_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        import sys

        info = sys.exc_info()
    record = logging.LogRecord("x", logging.ERROR, "", 0, "a\r\n%s", ("\x1b[2J\u2028",), info)
    line = JsonLines().format(record)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["event"] == "a\r\n\x1b[2J\u2028"
    assert "two\nlines" in json.loads(line)["traceback"]


@pytest.mark.parametrize(
    "path",
    [
        *OPEN,
        *CLOSED,
        "/v1/images/999999/thumbnail",
        "/v1/images/x/thumbnail",
        "/nothing",
    ],
)
def test_head_is_get_without_the_body(served: Running, path: str) -> None:
    got, head = served.get(path), served.call("HEAD", path)
    assert (head.status, head.body) == (got.status, b"")
    if path != "/metrics":  # which changes from one to the next
        assert head.headers["content-length"] == str(len(got.body))
    for changing in ("date", "content-length"):
        got.headers.pop(changing, None)
        head.headers.pop(changing, None)
    assert head.headers == got.headers


def test_head_of_what_has_no_get_is_405(served: Running) -> None:
    head = served.call("HEAD", "/v1/search")
    assert (head.status, head.headers["allow"], head.body) == (405, "POST", b"")
    assert served.call("DELETE", "/healthz").headers["allow"] == "GET, HEAD"


def test_head_needs_the_token_and_is_logged_as_such(
    locked: Running, caplog: pytest.LogCaptureFixture
) -> None:
    assert locked.call("HEAD", "/v1/index").status == 401
    locked.settle()
    caplog.clear()
    caplog.set_level(logging.INFO, "metah.serve")
    good = {"Authorization": f"Bearer {TOKEN}"}
    assert locked.call("HEAD", "/v1/index", headers=good).status == 200
    locked.settle()
    (line,) = [json.loads(JsonLines().format(record)) for record in caplog.records]
    assert (line["method"], line["route"], line["status"]) == ("HEAD", "/v1/index", 200)


def test_metrics_count_what_happened(world: World) -> None:
    with running(world.service()) as server:
        server.search(world.files[0].read_bytes())
        server.search({"id": 1})
        server.search({"id": 10**6})
        server.get("/a/path/of/the/client")
        answer = server.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.body.decode().splitlines()
    for line in (
        'metah_requests_total{route="/v1/search",status="200"} 2.0',
        'metah_requests_total{route="/v1/search",status="404"} 1.0',
        'metah_requests_total{route="other",status="404"} 1.0',
        'metah_stage_seconds_count{stage="decode"} 1.0',
        'metah_stage_seconds_count{stage="search"} 3.0',
        "metah_batch_images_count 1.0",
        "metah_decoder_restarts_total 0.0",
        'metah_reloads_total{result="failed"} 0.0',
        "metah_index_codes 40.0",
        "metah_index_stale 0.0",
        "metah_queue_requests 0.0",
        "metah_log_dropped_lines 0.0",
    ):
        assert line in lines
    assert "path/of/the/client" not in answer.body.decode()


@pytest.mark.parametrize(
    ("peer", "named", "due"),
    [
        ("10.0.0.1", "1.2.3.4", "1.2.3.4"),
        ("10.0.0.1", "6.6.6.6, 1.2.3.4, 10.0.0.9", "1.2.3.4"),
        ("10.0.0.1", "nonsense, 10.0.0.9", "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "2001:db8::1", "2001:db8::1"),
        ("9.9.9.9", "1.2.3.4", "9.9.9.9"),
    ],
)
def test_trusted_proxies_name_the_client(peer: str, named: str, due: str) -> None:
    proxies = TrustedProxies(["10.0.0.0/8", "::1"])
    headers = [(b"x-forwarded-for", named.encode())] if named else []
    scope = {"type": "http", "client": (peer, 5), "headers": headers}
    assert proxies.of_client(scope)["client"][0] == due
    assert TrustedProxies([]).of_client(scope) is scope


def test_a_proxy_that_is_no_address_is_refused() -> None:
    with pytest.raises(ConfigError, match="--trusted-proxy must be an address"):
        TrustedProxies(["example.org"])


def test_the_interface_is_described_for_people(served: Running) -> None:
    answer = served.get("/docs")
    assert answer.status == 200
    page = answer.body.decode()
    for text in ("POST /v1/search", "Neighbour", "where", "code_distance"):
        assert text in page
    assert "<script" not in page
    assert "unsafe-inline" in answer.headers["content-security-policy"]
