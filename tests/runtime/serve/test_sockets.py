"""Hostile connections: slow, huge, endless, many. Each is cut off; all others are answered."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from .conftest import Running, World, running

HEAD, BODY = 1.0, 1.2
MAX_BODY = 100_000
CONNECTIONS = 12


@pytest.fixture(scope="module")
def tight(world: World) -> Iterator[Running]:
    service = world.service(
        header_timeout=HEAD, body_timeout=BODY, max_body=MAX_BODY, connections=CONNECTIONS
    )
    with running(service) as server:
        yield server
        assert service.budget.used == 0
        assert service.gate.count == 0


@contextlib.contextmanager
def link(server: Running) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as made:
        yield made


def head(line: str, *headers: str) -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def rest(sock: socket.socket) -> tuple[int, dict[str, str], Any]:
    """Read to the end of the connection: status, headers and JSON body of one response."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(65536):
            data += part
    top, _, body = data.partition(b"\r\n\r\n")
    lines = top.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), headers, json.loads(body)


def drip(sock: socket.socket, data: bytes, every: float = 0.05) -> float:
    """Send byte by byte until the server answers or closes; return the seconds."""
    start = time.monotonic()
    sock.settimeout(every)
    for at in range(len(data)):
        try:
            sock.send(data[at : at + 1])
            sock.recv(1, socket.MSG_PEEK)
            break
        except TimeoutError:
            continue
        except OSError:
            break
    sock.settimeout(20)
    return time.monotonic() - start


def flood(sock: socket.socket, chunk: bytes, limit: int) -> int:
    """Send ``chunk`` again and again until the server stops it; return the bytes that went."""
    sent = 0
    try:
        while sent < limit:
            sock.sendall(chunk)
            sent += len(chunk)
    except OSError:
        pass
    return sent


@pytest.mark.parametrize("start", [b"", b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_a_slow_head_is_cut_off(tight: Running, start: bytes) -> None:
    with link(tight) as slow:
        slow.sendall(start)
        if start:
            assert drip(slow, b"a" * 400) < 15
        assert tight.get("/healthz").status == 200
        status, headers, body = rest(slow)
    assert (status, headers["connection"]) == (408, "close")
    assert body["rule"] == f"the head of a request may take {HEAD:g} s"


def test_a_slow_second_head_is_cut_off(tight: Running) -> None:
    with link(tight) as slow:
        slow.sendall(head("GET /healthz"))
        assert slow.recv(65536).startswith(b"HTTP/1.1 200")
        assert drip(slow, b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 400) < 15
        assert rest(slow)[0] == 408


@pytest.mark.parametrize("length", ["Content-Length: 400", "Transfer-Encoding: chunked"])
def test_a_slow_body_is_cut_off(tight: Running, length: str) -> None:
    with link(tight) as slow:
        slow.sendall(head("POST /v1/search", "Content-Type: image/png", length))
        body = b"a" * 400 if "Length" in length else b"1\r\na\r\n" * 100
        assert drip(slow, body) < 15
        assert tight.search({"id": 0}).status == 200
        status, headers, answer = rest(slow)
    assert (status, headers["connection"]) == (408, "close")
    assert answer["rule"] == f"a body may take {BODY:g} s"


@pytest.mark.parametrize("length", [MAX_BODY + 1, 10**15])
@pytest.mark.parametrize("expect", [(), ("Expect: 100-continue",)])
def test_a_body_that_states_too_much_is_refused_unread(
    tight: Running, length: int, expect: tuple[str, ...]
) -> None:
    with link(tight) as sock:
        kind = "Content-Type: image/png"
        sock.sendall(head("POST /v1/search", kind, f"Content-Length: {length}", *expect))
        status, headers, body = rest(sock)
    assert (status, headers["connection"]) == (413, "close")
    assert body["error"] == f"the body is larger than {MAX_BODY:,} bytes"


def test_a_body_as_large_as_allowed_is_read(tight: Running) -> None:
    assert tight.search(b"x" * MAX_BODY).status == 422
    assert tight.search(b"x" * (MAX_BODY + 1)).status == 413


CHUNK = b"10000\r\n" + b"x" * 65536 + b"\r\n"


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("POST /v1/search", 413),
        ("POST /nothing", 404),
        ("GET /healthz", 200),
        ("PUT /v1/index", 405),
    ],
)
def test_an_endless_body_is_cut_off(tight: Running, line: str, status: int) -> None:
    with link(tight) as sock:
        sock.sendall(head(line, "Content-Type: image/png", "Transfer-Encoding: chunked"))
        assert flood(sock, CHUNK, 64 << 20) < 32 << 20
        assert tight.get("/healthz").status == 200


@pytest.mark.parametrize("chunk", [b"1\r\na\r\n", b"1;x=" + b"y" * 90 + b"\r\na\r\n"])
@pytest.mark.parametrize("line", ["POST /v1/search", "POST /nothing", "GET /healthz"])
def test_a_body_in_tiny_chunks_is_cut_off(tight: Running, line: str, chunk: bytes) -> None:
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(link(tight)) for _ in range(4)]
        for sock in crowd:
            sock.sendall(head(line, "Content-Type: image/png", "Transfer-Encoding: chunked"))
        sent = sum(flood(sock, chunk * 1000, 8 << 20) for sock in crowd)
        assert sent < 16 << 20
        start = time.monotonic()
        assert tight.search({"id": 0}).status == 200
        assert time.monotonic() - start < 2


def test_a_body_in_tiny_chunks_is_told_why(tight: Running) -> None:
    with link(tight) as sock:
        sock.sendall(
            head("POST /v1/search", "Content-Type: image/png", "Transfer-Encoding: chunked")
        )
        sock.sendall(b"1\r\na\r\n" * 1001)
        status, _, body = rest(sock)
    assert (status, body["rule"]) == (400, "1,000 pieces of a body have 64 bytes each, on average")
    assert body["error"] == "the body comes in 1,001 pieces of 1,001 bytes"


def test_a_small_body_may_come_in_tiny_chunks(tight: Running) -> None:
    code = b'{"code": "0000"}'
    with link(tight) as sock:
        kind = ("Content-Type: application/json", "Connection: close")
        sock.sendall(head("POST /v1/search?k=1", *kind, "Transfer-Encoding: chunked"))
        sock.sendall(b"".join(b"1\r\n%c\r\n" % byte for byte in code) + b"0\r\n\r\n")
        assert rest(sock)[0] == 200


def link_from(server: Running, address: str) -> socket.socket:
    """Connect as another client: all of 127.0.0.0/8 is this machine."""
    return socket.create_connection(
        ("127.0.0.1", server.port), timeout=20, source_address=(address, 0)
    )


def test_one_connection_too_many_is_told_so(tight: Running) -> None:
    share = CONNECTIONS * 3 // 4
    with contextlib.ExitStack() as stack:
        links = [stack.enter_context(link_from(tight, "127.0.0.2")) for _ in range(share + 1)]
        status, headers, body = rest(links[-1])
        assert (status, headers["retry-after"]) == (503, "1")
        assert body["error"] == "too many connections"
        assert body["rule"] == f"at most {share} connections of one client"
        assert tight.get("/healthz").status == 200  # the others have room
        links = [
            stack.enter_context(link_from(tight, "127.0.0.3"))
            for _ in range(CONNECTIONS - share + 1)
        ]
        status, headers, body = rest(links[-1])
        assert (status, headers["retry-after"]) == (503, "1")
        assert body["error"] == "too many connections"
        assert body["rule"] == f"at most {CONNECTIONS} connections at once"
    for _ in range(100):
        with contextlib.suppress(OSError):
            if tight.get("/healthz").status == 200:
                return
        time.sleep(0.05)
    pytest.fail("the server did not recover")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 50,
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX : smuggled\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_request_is_answered_as_a_bad_one(tight: Running, data: bytes) -> None:
    with link(tight) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(data)
        status, headers, body = rest(sock)
    assert (status, headers["content-type"]) == (400, "application/problem+json")
    assert set(body) == {"error", "rule", "fix"}


@pytest.mark.parametrize("line", [b"A: " + b"a" * 100_000 + b"\r\n", b"A: a\r\n" * 10_000])
def test_a_huge_head_is_refused(tight: Running, line: bytes) -> None:
    """Whole in one piece, or too large before it is whole."""
    with link(tight) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + line + b"\r\n")
        status, headers, body = rest(sock)
    assert status in (400, 431)
    assert headers["connection"] == "close"
    assert set(body) == {"error", "rule", "fix"}


def test_a_client_that_does_not_read_is_cut_off(tight: Running) -> None:
    with link(tight) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ask = head("GET /openapi.json")
        assert flood(sock, ask * 100, 64 << 20) < 32 << 20


def test_a_client_that_goes_away_leaves_nothing_behind(tight: Running) -> None:
    for _ in range(5):
        with link(tight) as sock:
            sock.sendall(head("POST /v1/search", "Content-Type: image/png", "Content-Length: 400"))
            sock.sendall(b"half of it")
    deadline = time.monotonic() + 10
    while tight.service.gate.count and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (tight.service.gate.count, tight.service.budget.used) == (0, 0)


def test_pipelined_requests_are_answered_in_order(tight: Running) -> None:
    with link(tight) as sock:
        sock.sendall(
            head("GET /healthz") + head("GET /nothing") + head("GET /readyz", "Connection: close")
        )
        data = b""
        while part := sock.recv(65536):
            data += part
    found = [line.split()[1] for line in data.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    assert found[:1] == [b"200"]
    assert data.index(b'"ok"') < data.index(b"Not Found") < data.index(b'"ready"')
