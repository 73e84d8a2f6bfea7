"""The OpenAPI document: shapes of the answers, request bodies, problems, the token."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field

from metah_runtime.images.formats import FORMATS
from metah_runtime.serve.body import FIELD, MAX_ID
from metah_runtime.serve.guard import PROTECTED
from metah_runtime.serve.problems import MEDIA_TYPE

MEANINGS = {
    400: "The request did not arrive whole",
    401: "No valid token",
    404: "No such image, or no picture of it",
    405: "No such method here",
    408: "The body did not arrive in time",
    413: "The body or the image is too large",
    415: "The body has a type that is not known",
    421: "Not a name of this machine",
    422: "A parameter, the image, the code or the id breaks a rule",
    429: "Too many requests of one client; see Retry-After",
    503: "Too many requests, or not ready; see Retry-After",
    504: "No answer in time",
}


class ProblemBody(BaseModel):
    """Why a request was not answered."""

    error: str = Field(description="what is wrong, with the value")
    rule: str = Field(description="the rule that it breaks")
    fix: str = Field(description="what to do")


class Neighbour(BaseModel):
    """One indexed image."""

    id: int
    distance: int = Field(description="to the query, in bits, over hash code and detail code")
    code_distance: int | None = Field(
        description="Hamming distance of the hash codes; null where there is no detail code"
    )
    name: str = Field(description="file name; below the folder of the images, its path there")
    label: str | None = Field(description="null where not known")
    domain: str | None = Field(description="null where not known")
    attributes: dict[str, str | int | float] = Field(description="what the index holds beside it")


class SearchAnswer(BaseModel):
    """The nearest images, all of one version of the index.

    In the order (distance, id); (distance, code_distance, id) where there is a detail code.
    """

    version: str = Field(description="of the index that answered")
    code: str = Field(description="hash code and detail code of the query in hex, first bit first")
    bits: int = Field(description="length of the hash code")
    detail_bits: int = Field(description="length of the detail code, 0 for none")
    logits: list[float] | None = Field(
        description="what the bits of the hash code are the signs of, one a bit, a small one is "
        "unsure; null for a query that was no image"
    )
    neighbours: list[Neighbour]
    within: int | None = Field(description="all images within the radius; null for k")
    cut: bool = Field(description="whether some of those within the radius were left out")


class BundleInfo(BaseModel):
    """The model that encodes queries."""

    name: str
    fingerprint: str = Field(description="of the model; only its codes can be compared")
    digest: str = Field(description="SHA-256 of the model file")
    device: str
    image: list[int] = Field(description="height, width, channels that the model sees")


class Span(BaseModel):
    """The values that a number may have."""

    least: int
    most: int
    default: int | None


class IndexAnswer(BaseModel):
    """What is served."""

    version: str
    count: int = Field(description="indexed images")
    bits: int = Field(description="length of the hash code")
    detail_bits: int = Field(description="length of the detail code, 0 for none")
    code_weight: int = Field(
        description="distance = code_weight x code_distance + that of the detail codes"
    )
    bundle: BundleInfo
    distances: Span = Field(description="radius, in bits of the hash code")
    k: Span
    limit: Span = Field(description="neighbours in the answer to a radius")
    max_body: int = Field(description="bytes of an image")
    max_pixels: int
    thumbnails: bool = Field(description="whether pictures of indexed images can be had")


class Health(BaseModel):
    """The state of the server."""

    status: str


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of the statuses under which a problem is given."""
    schema = {"$ref": f"#/components/schemas/{ProblemBody.__name__}"}
    return {
        status: {"description": MEANINGS[status], "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }


def search_body(bits: int) -> dict[str, Any]:
    """Return the OpenAPI request body of a search."""
    image = {"type": "string", "format": "binary", "description": f"one of {', '.join(FORMATS)}"}
    code = {"type": "string", "pattern": f"^[0-9a-fA-F]{{{bits // 4}}}$"}
    number = {"type": "integer", "minimum": 0, "maximum": MAX_ID}
    return {
        "requestBody": {
            "required": True,
            "content": {
                "image/*": {"schema": image},
                "multipart/form-data": {"schema": _object(FIELD, image)},
                "application/json": {
                    "schema": {"oneOf": [_object("code", code), _object("id", number)]}
                },
            },
        }
    }


def document(api: FastAPI, *, bearer: bool) -> None:
    """Make the OpenAPI document of ``api`` complete; bearer: whether a token is needed."""

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            made = get_openapi(
                title=api.title,
                version=api.version,
                description=api.description,
                routes=api.routes,
            )
            _complete(made, bearer)
            api.openapi_schema = made
        return api.openapi_schema

    api.openapi = openapi  # type: ignore[method-assign]


def _complete(made: dict[str, Any], bearer: bool) -> None:
    parts = made["components"]
    parts["schemas"][ProblemBody.__name__] = ProblemBody.model_json_schema()
    for unused in ("HTTPValidationError", "ValidationError"):
        parts["schemas"].pop(unused, None)
    if bearer:
        parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, methods in made["paths"].items():
        for operation in methods.values():
            if not bearer:
                _add(operation, 421)
            elif path.startswith(PROTECTED):
                _add(operation, 401)
                operation["security"] = [{"token": []}]


def _add(operation: dict[str, Any], status: int) -> None:
    operation["responses"][str(status)] = problems(status)[status]


def _object(key: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {key: schema},
        "required": [key],
        "additionalProperties": False,
    }
