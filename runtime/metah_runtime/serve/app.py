"""The HTTP interface: routes, errors, and the files of the page."""

import asyncio
import mimetypes
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from metah_runtime.errors import ConfigError, ImageError, IndexMismatch, MetahError
from metah_runtime.index.attributes import OF_FILES
from metah_runtime.index.conditions import Where
from metah_runtime.serve.body import MAX_ID, read_query
from metah_runtime.serve.decoding import DecoderDied, DecoderSlow, TooManyPixels
from metah_runtime.serve.docs_page import POLICY, docs_page
from metah_runtime.serve.guard import UNEXPECTED, Guard
from metah_runtime.serve.logs import log
from metah_runtime.serve.openapi import (
    Health,
    IndexAnswer,
    SearchAnswer,
    document,
    problems,
    search_body,
)
from metah_runtime.serve.problems import Problem, busy, of_error, too_slow
from metah_runtime.serve.service import SearchSpec, Service
from metah_runtime.text import printable

PAGE = FilePath(__file__).parent / "page"
DEFAULT_COUNT = 10
DEFAULT_LIMIT = 100
SMALLEST, LARGEST = 16, 2048

RULE_OF_IMAGES = "an image is a whole file of a known format that can be decoded in time and memory"
FIX_OF_IMAGES = "open it in an image viewer and save it again"

FAILED = Problem(
    500,
    "the index or the model failed",
    rule="the server's log says more",
    fix="look at the server's log",
)


def create_app(service: Service, page: FilePath = PAGE) -> Guard:
    """Return the ASGI application of a service, which must be started.

    page: folder of the files that are served at /; they are read once, here.
    """
    settings, form = service.settings, service.encoder.code_format

    class SearchParams(BaseModel):
        """Parameters of a search: k, or radius and limit."""

        model_config = ConfigDict(extra="forbid")
        k: int | None = Field(None, ge=1, le=settings.max_k, description="the k nearest")
        radius: int | None = Field(
            None, ge=0, le=form.bits, description="all within so many bits of the hash code"
        )
        limit: int | None = Field(
            None, ge=1, le=settings.max_k, description="with radius: at most so many, the nearest"
        )

        where: list[Annotated[str, Field(max_length=1000)]] = Field(
            [],
            max_length=16,
            description="conditions such as label=cat, label=cat|dog, year>=2020; all must be met",
        )

    api = FastAPI(
        title="metah-search",
        description="Exact search for images by their binary codes.",
        version="1",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )

    @api.post(
        "/v1/search",
        response_model=SearchAnswer,
        responses=problems(400, 404, 408, 413, 415, 422, 429, 503, 504),
        openapi_extra=search_body(form.total_bits),
        operation_id="search",
    )
    async def search(request: Request, params: Annotated[SearchParams, Query()]) -> Response:
        """Find the images nearest to an image, a code or an indexed image."""
        spec = _search_spec(params.k, params.radius, params.limit, settings.max_k)
        spec = replace(spec, where=_where(params.where))
        client = _client(request)
        with service.gate.enter(client), service.budget.hold() as hold:
            query = await read_query(request, settings, form.total_bits, hold)
            try:
                async with asyncio.timeout(settings.timeout):
                    answer, times = await service.search(query, spec, client)
            except TimeoutError:
                raise too_slow(settings.timeout) from None
        timing = ", ".join(f"{name};dur={1000 * value:.2f}" for name, value in times.items())
        return JSONResponse(answer, headers={"Server-Timing": timing})

    @api.get("/v1/index", response_model=IndexAnswer, operation_id="index")
    async def index() -> Response:
        """Say what is served: the index, its model, and what may be asked."""
        return JSONResponse(_index_answer(service))

    @api.get(
        "/v1/images/{id}/thumbnail",
        response_class=Response,
        responses={
            200: {"content": {"image/png": {}, "image/jpeg": {}}},
            **problems(404, 422, 429, 503, 504),
        },
        operation_id="thumbnail",
    )
    async def thumbnail(
        request: Request,
        image: Annotated[int, Path(alias="id", ge=0, le=MAX_ID)],
        size: Annotated[int, Query(ge=SMALLEST, le=LARGEST)] = 160,
    ) -> Response:
        """Give a small picture of an indexed image."""
        if service.thumbnails is None:
            raise Problem(
                404,
                "this server has no pictures",
                rule="pictures are served from one folder, named when the server starts",
                fix="start it with --images FOLDER",
            )
        client = _client(request)
        with service.gate.enter(client), service.budget.hold() as hold:
            try:
                async with asyncio.timeout(settings.timeout):
                    kind, picture = await service.thumbnail(image, size, client, hold.add)
            except TimeoutError:
                raise too_slow(settings.timeout) from None
            except ImageError as error:
                raise of_error(
                    404,
                    error,
                    rule="a picture is made from the file that the index names",
                    fix="look at the file on the server",
                ) from None
        headers = {"Cache-Control": "private, max-age=300"}
        return Response(picture, media_type=kind, headers=headers)

    @api.get("/healthz", response_model=Health, operation_id="healthz")
    async def healthz() -> Response:
        """Say that the server runs."""
        return JSONResponse({"status": "ok"})

    @api.get(
        "/readyz",
        response_model=Health,
        responses=problems(503),
        operation_id="readyz",
    )
    async def readyz() -> Response:
        """Say whether queries are welcome."""
        reason = service.not_ready()
        if reason is not None:
            raise busy(f"not ready: {reason}", rule="queries go to a server that is ready")
        return JSONResponse({"status": "ready"})

    @api.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}},
        operation_id="metrics",
    )
    async def metrics() -> Response:
        """Give the counters, in the text format of Prometheus."""
        return Response(service.metrics.text(), media_type=service.metrics.media_type)

    @api.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
        return Response(docs_page(api.openapi()), media_type="text/html", headers=headers)

    for name, (kind, data) in _page_files(page).items():
        _serve_file(api, name, kind, data)
    _add_handlers(api)
    document(api, bearer=settings.token is not None)
    return Guard(api, settings, service.metrics)


def _client(request: Request) -> str:
    return request.client.host if request.client else ""


def _search_spec(k: int | None, radius: int | None, limit: int | None, most: int) -> SearchSpec:
    if radius is None and limit is None:
        return SearchSpec(k if k is not None else min(DEFAULT_COUNT, most))
    if radius is None or k is not None:
        raise Problem(
            422,
            "limit is given without radius" if radius is None else "k and radius are both given",
            rule="give k, or radius and, if you like, limit",
            fix="leave one out",
        )
    return SearchSpec(limit if limit is not None else min(DEFAULT_LIMIT, most), radius)


def _where(conditions: Sequence[str]) -> Where | None:
    """Return the conditions of a search; those that could probe the server's files are refused."""
    if not conditions:
        return None
    where = Where.of(list(conditions))
    for condition in where.conditions:
        probes = condition.name == "path" and any(v[:1] in "/*?[" for v in condition.values)
        if probes or condition.name.startswith(OF_FILES):
            raise Problem(
                422,
                f"where: {condition.name} with {'|'.join(condition.values)!r:.60} is not allowed",
                rule="a path is one below the base of the index, without * at its begin",
                fix="where=path=folder/, or a condition on an attribute",
            )
    return where


def _index_answer(service: Service) -> dict[str, Any]:
    settings, encoder = service.settings, service.encoder
    bundle = encoder.bundle
    version = service.versions.current
    most = settings.max_k
    return {
        "version": version.name,
        "count": len(version.snapshot),
        "bits": encoder.bits,
        "detail_bits": encoder.code_format.detail_bits,
        "code_weight": encoder.code_format.code_weight,
        "bundle": {
            "name": printable(bundle.path.resolve().name),
            "fingerprint": bundle.fingerprint,
            "digest": bundle.manifest.files[bundle.model_path.name].sha256,
            "device": encoder.device,
            "image": list(bundle.preprocess.shape),
        },
        "distances": {"least": 0, "most": encoder.bits, "default": None},
        "k": {"least": 1, "most": most, "default": min(DEFAULT_COUNT, most)},
        "limit": {"least": 1, "most": most, "default": min(DEFAULT_LIMIT, most)},
        "max_body": settings.max_body,
        "max_pixels": settings.max_pixels,
        "thumbnails": service.thumbnails is not None,
    }


def _page_files(folder: FilePath) -> dict[str, tuple[str, bytes]]:
    """Return the page's files by the path at which they are served; index.html is /."""
    files = {}
    for file in sorted(folder.glob("*")):
        if file.is_file() and re.fullmatch(r"[a-z][a-z0-9_-]*\.(html|js|css|svg|png)", file.name):
            kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
            where = "/" if file.name == "index.html" else f"/{file.name}"
            files[where] = (kind, file.read_bytes())
    return files


def _serve_file(api: FastAPI, where: str, kind: str, data: bytes) -> None:
    async def give() -> Response:
        return Response(data, media_type=kind, headers={"Cache-Control": "no-cache"})

    api.add_api_route(where, give, include_in_schema=False)


def _add_handlers(api: FastAPI) -> None:
    @api.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> Response:
        return error.response()

    def answer_as(status: int, rule: str, fix: str, *kinds: type[MetahError]) -> None:
        async def handler(_: Request, error: MetahError) -> Response:
            return of_error(status, error, rule=rule, fix=fix).response()

        for kind in kinds:
            api.add_exception_handler(kind, handler)  # type: ignore[arg-type]

    answer_as(413, "images have a largest size", "make it smaller", TooManyPixels)
    answer_as(422, RULE_OF_IMAGES, FIX_OF_IMAGES, ImageError, DecoderDied)
    answer_as(504, RULE_OF_IMAGES, FIX_OF_IMAGES, DecoderSlow)
    answer_as(422, "conditions name attributes of the index", "see /openapi.json", ConfigError)
    answer_as(404, "an id is that of an indexed image", "take one from an answer", IndexMismatch)

    @api.exception_handler(MetahError)
    async def failed(_: Request, error: MetahError) -> Response:
        log.error("a request failed: %s", error)  # its text may name files of the server
        return FAILED.response()

    @api.exception_handler(Exception)
    async def unexpected(_: Request, __: Exception) -> Response:
        return UNEXPECTED.response()  # the guard logs it

    @api.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = " ".join(str(part) for part in first["loc"])
        return Problem(
            422,
            f"{where}: {first['msg']}, got {first.get('input')!r:.60}",
            rule="parameters are those of /openapi.json",
            fix="correct or leave out the parameter",
        ).response()

    @api.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        rule, fix = "paths and methods are those of /openapi.json", "see /openapi.json"
        headers = dict(error.headers or {})
        if headers.get("Allow") == "GET":
            headers["Allow"] = "GET, HEAD"
        return Problem(
            error.status_code, str(error.detail), rule=rule, fix=fix, headers=headers
        ).response()
