"""The reader of forms against a slow, general one, and against hostile forms."""

import time
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import HTTP

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metah_runtime.serve.body import _image_field
from metah_runtime.serve.problems import Problem

EDGES = st.text("abc-_.'", min_size=1, max_size=70).filter(lambda text: text.strip(" ") == text)


def make(edge: bytes, data: bytes, name: str = "image") -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"; filename="a.png"'.encode()
    return b"--" + edge + b"\r\n" + head + b"\r\n\r\n" + data + b"\r\n--" + edge + b"--\r\n"


@settings(max_examples=50)
@given(EDGES.map(str.encode), st.binary(max_size=200))
def test_what_goes_in_comes_out(edge: bytes, data: bytes) -> None:
    if b"\r\n--" + edge in b"\r\n" + data + b"\r\n":
        return
    assert _image_field(make(edge, data), edge) == data


@settings(max_examples=50)
@given(st.text("abc", min_size=1, max_size=4), st.text("abc\r\n -", max_size=40))
def test_the_mail_parser_reads_the_same(edge: str, data: str) -> None:
    body = make(edge.encode(), data.encode())
    mail = BytesParser(EmailMessage, policy=HTTP).parsebytes(
        f"Content-Type: multipart/form-data; boundary={edge}\r\n\r\n".encode() + body
    )
    parts = list(mail.iter_parts())
    try:
        found: bytes | None = _image_field(body, edge.encode())
    except Problem:
        found = None
    if len(parts) == 1 and f"\r\n--{edge}" not in "\r\n" + data:
        assert found is not None
        payload = parts[0].get_payload(decode=True)
        assert isinstance(payload, bytes)
        assert payload.splitlines() == found.splitlines()  # the mail parser knows lines, not bytes
    if len(parts) > 1:
        assert found is None or len(found) < len(data)


@settings(max_examples=50)
@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for body in (data, b"--x\r\n" + data, make(b"x", data) + data):
        try:
            found: object = _image_field(body, b"x")
        except Problem as problem:
            found = problem.status
        assert isinstance(found, bytes) or found == 422


@pytest.mark.parametrize("filler", [b"\r\n", b"\r", b"\r\n--", b"\r\n--edg", b"-", b"\0"])
def test_a_hostile_form_takes_no_longer(filler: bytes) -> None:
    data = filler * ((8 << 20) // len(filler))
    start = time.process_time()
    assert _image_field(make(b"edge", data), b"edge") == data
    assert time.process_time() - start < 5  # byte by byte in Python it would be far more


def test_a_huge_head_is_refused() -> None:
    body = b"--x\r\nA: " + b"a" * 10_000 + b"\r\n\r\n\r\n--x--"
    with pytest.raises(Problem, match="no proper head"):
        _image_field(body, b"x")
