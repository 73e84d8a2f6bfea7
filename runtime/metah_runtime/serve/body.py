"""Request bodies become queries: an encoded image, a code, or the id of an image."""

import asyncio
import re
from dataclasses import dataclass
from typing import TypeAlias

from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from metah_runtime import schema
from metah_runtime.images.formats import FORMATS
from metah_runtime.serve.limits import Hold
from metah_runtime.serve.problems import Problem
from metah_runtime.serve.settings import ServerSettings

JSON_LIMIT = 64 << 10
MULTIPART_EXTRA = 64 << 10
"""Bytes that a multipart body may have beside the image."""

HEAD_LIMIT = 8 << 10
FIELD = "image"
MAX_ID = 2**63 - 1

_FORMS = (
    f"fix the Content-Type: image/* with the image as the body, multipart/form-data with a field "
    f'"{FIELD}", or application/json with {{"code": "HEX"}} or {{"id": NUMBER}}'
)


@dataclass(frozen=True, slots=True)
class ImageQuery:
    """Search by an encoded image."""

    data: bytes


@dataclass(frozen=True, slots=True)
class CodeQuery:
    """Search by a code."""

    code: bytes


@dataclass(frozen=True, slots=True)
class IdQuery:
    """Search by the code of an indexed image."""

    id: int


Query: TypeAlias = ImageQuery | CodeQuery | IdQuery


async def read_query(request: Request, settings: ServerSettings, bits: int, hold: Hold) -> Query:
    """Read and check a request's body; raise Problem 408, 413, 415, 422 or 503."""
    header = request.headers.get("content-type", "")
    kind, options = parse_options_header(header)
    media = kind.decode("latin-1").strip().lower()
    if media == "application/json":
        return _parse_json(await _read(request, settings, JSON_LIMIT, hold), bits)
    if media == "multipart/form-data":
        limit = settings.max_body + MULTIPART_EXTRA
        body = await _read(request, settings, limit, hold)
        image = _image_field(body, options.get(b"boundary", b""))
        if len(image) > settings.max_body:
            raise _too_large(settings.max_body)
        return _image(image)
    if re.fullmatch(r"image/[!-.0-~]+", media):
        return _image(await _read(request, settings, settings.max_body, hold))
    raise Problem(
        415,
        f"a body of type {header!r:.80} is not known" if header else "there is no Content-Type",
        rule="the body is an image, a form with an image, or a JSON object",
        fix=_FORMS,
        headers={"Accept-Post": "image/*, multipart/form-data, application/json"},
    )


async def _read(request: Request, settings: ServerSettings, limit: int, hold: Hold) -> bytes:
    length = request.headers.get("content-length", "0")
    if length.isascii() and length.isdecimal() and int(length) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    try:
        async with asyncio.timeout(settings.body_timeout):
            async for chunk in request.stream():
                hold.add(len(chunk))
                if hold.bytes > limit:
                    raise _too_large(limit)
                parts.append(chunk)
    except TimeoutError:
        raise Problem(
            408,
            f"the body did not arrive within {settings.body_timeout:g} s",
            rule=f"a body may take {settings.body_timeout:g} s",
            fix="send it faster, or send a smaller image",
        ) from None
    except ClientDisconnect:
        raise Problem(
            400, "the client went away", rule="the body must arrive whole", fix="send it again"
        ) from None
    return b"".join(parts)


def _too_large(limit: int) -> Problem:
    return Problem(
        413,
        f"the body is larger than {limit:,} bytes",
        rule=f"such a body may have {limit:,} bytes",
        fix="make the image smaller: the model sees a small version of it anyway",
    )


def _image(data: bytes) -> ImageQuery:
    if not data:
        raise Problem(
            422, "the image is empty", rule="an image has at least one byte", fix="send an image"
        )
    return ImageQuery(data)


def _parse_json(body: bytes, bits: int) -> CodeQuery | IdQuery:
    try:
        value = schema.parse_json(body)
    except ValueError as error:
        raise _bad_json(f"the body is not JSON ({error})", bits) from None
    if not isinstance(value, dict) or len(value) != 1:
        raise _bad_json("the body is not an object with one key", bits)
    ((key, given),) = value.items()
    if key == "code":
        if not isinstance(given, str) or not re.fullmatch(f"[0-9a-fA-F]{{{bits // 4}}}", given):
            raise _bad_json(f"{given!r:.40} is no code of {bits} bits", bits)
        return CodeQuery(bytes.fromhex(given))
    if key == "id":
        if type(given) is not int or not 0 <= given <= MAX_ID:
            raise _bad_json(f"{given!r:.40} is no id", bits)
        return IdQuery(given)
    raise _bad_json(f"key {key!r:.40} is not known", bits)


def _bad_json(error: str, bits: int) -> Problem:
    return Problem(
        422,
        error,
        rule=f'the object is {{"code": "{bits // 4} hex digits"}} or {{"id": a whole number >= 0}}',
        fix="send one of the two",
    )


def _image_field(body: bytes, boundary: bytes) -> bytes:
    """Return the one field of a form, which is called ``image``; names of files mean nothing.

    Every step is a search for bytes, so that a hostile form takes no longer than another
    (RFC 2046, 5.1.1; a preamble is refused). Starlette's form parser would write images of more
    than 1 MB to temporary files and takes five times as long.
    """
    if not 1 <= len(boundary) <= 70:
        raise _bad_form(f"the form's boundary has {len(boundary)} characters, not 1 to 70")
    before, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary, 3)
    if before or len(parts) < 2 or not parts[-1].startswith(b"--"):
        raise _bad_form("the form is not whole")
    if len(parts) != 2:
        raise _bad_form("the form has more than one field")
    head, blank, data = parts[0].lstrip(b" \t").partition(b"\r\n\r\n")
    if not blank or not head.startswith(b"\r\n") or len(head) > HEAD_LIMIT:
        raise _bad_form("the form's field has no proper head")
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            field = parse_options_header(value.strip())[1].get(b"name", b"")
            if field == FIELD.encode():
                return data
            raise _bad_form(f"the form's field is called {field!r:.40}")
    raise _bad_form("the form's field has no name")


def _bad_form(error: str) -> Problem:
    return Problem(
        422,
        error,
        rule=f'a form has one field, "{FIELD}", with one image of a known format '
        f"({', '.join(FORMATS)})",
        fix=f"curl -F {FIELD}=@cat.jpg",
    )
