"""The page at /docs: the OpenAPI document for people, without a script."""

from collections.abc import Iterator
from typing import Any

from metah_runtime.html.page import Html, document, facts, table, text

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def docs_page(api: dict[str, Any]) -> str:
    """Return the page of an OpenAPI document."""
    parts = [
        "".join(_operation(path, method, operation))
        for path, methods in api["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = api["components"]["schemas"]
    parts += ["".join(_schema(name, schema)) for name, schema in schemas.items()]
    link = Html('<a href="openapi.json">openapi.json</a>')
    header = facts([("Version", api["info"]["version"]), ("For programs", link)])
    title = f"{api['info']['title']}: the HTTP interface"
    return document(title, parts, header=f"<p>{text(api['info']['description'])}</p>{header}")


def _operation(path: str, method: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"<section><h2>{text(method.upper())} {text(path)}</h2>"
    yield f"<p>{text(operation.get('description', ''))}</p>"
    if "security" in operation:
        yield "<p>Needs the header Authorization: Bearer TOKEN.</p>"
    given = operation.get("parameters", [])
    if given:
        rows = [(item["name"], item["in"], _kind(item["schema"]), item.get("description")
                 or item["schema"].get("description", "")) for item in given]  # fmt: skip
        yield table(["parameter", "in", "value", ""], rows, left=4)
    bodies = operation.get("requestBody", {}).get("content", {})
    if bodies:
        yield table(["body", "value"], [(kind, _kind(of["schema"])) for kind, of in bodies.items()],
                    left=2)  # fmt: skip
    answers = [
        (status, of["description"], ", ".join(_kind(c["schema"]) if "schema" in c else kind
         for kind, c in of.get("content", {}).items()))
        for status, of in operation["responses"].items()
    ]  # fmt: skip
    yield f"{table(['answer', '', 'value'], answers, left=3)}</section>"


def _schema(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield f"<section><h2>{text(name)}</h2><p>{text(schema.get('description', ''))}</p>"
    rows = [
        (key, _kind(of), of.get("description", ""))
        for key, of in schema.get("properties", {}).items()
    ]
    yield f"{table(['key', 'value', ''], rows, left=3)}</section>"


def _kind(schema: dict[str, Any]) -> str:
    """Return what a value is, in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    several = schema.get("anyOf") or schema.get("oneOf")
    if several:
        return " or ".join(map(_kind, several))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if schema.get("properties"):
        inner = ", ".join(f'"{key}": {_kind(of)}' for key, of in schema["properties"].items())
        return f"{{{inner}}}"
    words = (("minimum", "from"), ("maximum", "to"), ("pattern", "like"))
    limits = [f"{word} {schema[key]}" for key, word in words if key in schema]
    return " ".join([str(schema.get("format") or schema.get("type", "any")), *limits])
