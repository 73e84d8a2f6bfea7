"""Error responses of the server: one JSON object {error, rule, fix}."""

from collections.abc import Mapping

from starlette.responses import JSONResponse

from metah_runtime.errors import MetahError
from metah_runtime.text import printable

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):  # noqa: N818 - RFC 9457's word
    """A request that is refused or fails: HTTP status, error, rule and fix.

    headers: of the response.
    """

    def __init__(
        self,
        status: int,
        error: str,
        *,
        rule: str,
        fix: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.rule = rule
        self.fix = fix
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        """Return the HTTP response."""
        body = {name: printable(getattr(self, name)) for name in ("error", "rule", "fix")}
        return JSONResponse(body, self.status, self.headers, media_type=MEDIA_TYPE)


def of_error(status: int, error: MetahError, *, rule: str, fix: str) -> Problem:
    """Return the problem of a MetahError; a fix in its message takes precedence over ``fix``."""
    text, _, named = str(error).partition("; fix: ")
    return Problem(status, text, rule=rule, fix=named or fix)


def busy(error: str, *, status: int = 503, rule: str) -> Problem:
    """Return the problem of a server that is at one of its limits."""
    return Problem(
        status,
        error,
        rule=rule,
        fix="try again after the time that Retry-After names",
        headers={"Retry-After": "1"},
    )


def too_slow(seconds: float) -> Problem:
    """Return the problem of an answer that took too long."""
    return Problem(
        504,
        f"no answer within {seconds:g} s",
        rule=f"an answer may take {seconds:g} s",
        fix="try again later, or ask for less: a smaller image, a smaller k or radius",
    )
