"""Every error of the API: its codes, the exception that the endpoints raise, and its JSON."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from cema._util.names import shortened
from cema.cloud.http.caching import NO_STORE
from cema.cloud.http.schemas import Error, ErrorBody

__all__ = ["ERRORS", "ApiError", "install_errors"]

# Messages repeat what came from outside, but only so much of it.
LONGEST_MESSAGE = 1000

ERRORS: dict[str, tuple[int, str]] = {
    "malformed": (400, "The body is not an upload frame."),
    "disconnected": (400, "The sender went away in the middle of its body."),
    "invalid_request": (400, "The request does not fit the endpoint."),
    "unauthorized": (401, "No token, or an unknown one."),
    "revoked": (403, "The token was revoked."),
    "expired": (403, "The token has expired."),
    "wrong_cohort": (403, "The token is for another cohort."),
    "not_a_device": (403, "An operator or admin tried to upload."),
    "not_an_operator": (403, "A device asked, or a token of one cohort for what covers all."),
    "private": (403, "The images of this cohort are shown to nobody."),
    "not_an_administrator": (403, "The token may not act on versions, or delete or label samples."),
    "not_from_page": (403, "The cookie of a session came without the header CEMA-Page."),
    "unknown_cohort": (404, "There is no such cohort."),
    "unknown_device": (404, "The cohort has no such device."),
    "unknown_artifact": (404, "The cohort has no such artifact, or no longer."),
    "unknown_sample": (404, "The cohort has no such sample, or no longer."),
    "unknown_version": (404, "The cohort has no such version, or no longer."),
    "unknown_bundle": (404, "The cohort's bundle has no such file, or no longer."),
    "not_found": (404, "There is no such path."),
    "method_not_allowed": (405, "The path does not take this method."),
    "timeout": (408, "The body did not arrive in time."),
    "act_refused": (
        409,
        "The act cannot be done: no such version is kept, or the device is not in that state.",
    ),
    "device_taken": (409, "There is a device of that name already."),
    "too_large": (
        413,
        "The body has too many bytes, its images too many pixels, or its new samples would not fit an empty store.",
    ),
    "too_many_samples": (413, "The frame has too many samples."),
    "unsupported_media_type": (415, "Wrong Content-Type, or a Content-Encoding."),
    "backlog_full": (429, "Too many samples of the cohort wait for the worker."),
    "too_fast": (429, "The device sends more than it may, in a second, an hour or a day."),
    "store_full": (429, "There is no room now and nothing to evict."),
    "internal": (500, "A fault of the cloud."),
    "no_sessions": (501, "Nobody can sign in: the store keeps no sessions."),
    "busy": (503, "Too many uploads, or too many pages that listen, at this moment."),
    "store_unavailable": (503, "The store cannot be written now."),
    "stopping": (503, "The server was stopped before the body had arrived."),
    "unhealthy": (503, "The service cannot do its work."),
}
"""The status and the meaning of each code. ``http_error``, for what else the framework refuses, has any status."""


class ApiError(Exception):
    """A response other than success: a code for programs, what happened and what to do for people.

    Parameters
    ----------
    code
        One of `ERRORS`, or ``http_error``.
    message
        What was expected and what came.
    remedy
        What to do.
    status
        The HTTP status; by default the code's.
    headers
        Headers of the response beside ``Cache-Control: no-store``.
    """

    def __init__(
        self,
        code: str,
        message: str,
        remedy: str,
        *,
        status: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = ERRORS[code][0] if status is None else status
        self.code = code
        self.message = shortened(message, LONGEST_MESSAGE)
        self.remedy = remedy
        self.headers = headers

    def response(self) -> JSONResponse:
        """Return it as the JSON that every error of this API is."""
        body = ErrorBody(error=Error(code=self.code, message=self.message, remedy=self.remedy))
        return JSONResponse(body.model_dump(), self.status, {**NO_STORE, **(self.headers or {})})


def install_errors(app: FastAPI, count: Callable[[str], None]) -> None:
    """Make every error of the application an `ApiError`, those of the framework too, and count each by its code."""

    def answer(error: ApiError) -> Response:
        count(error.code)
        return error.response()

    async def api_error(_: Request, error: Exception) -> Response:
        return answer(error if isinstance(error, ApiError) else _internal())

    async def http_error(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            return answer(_internal())
        return answer(_of_framework(error, _methods(app, request)))

    async def invalid(_: Request, error: Exception) -> Response:
        return answer(ApiError("invalid_request", str(error), "correct the request"))

    async def internal(_: Request, error: Exception) -> Response:
        return answer(_internal())

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, internal)


def _methods(app: FastAPI, request: Request) -> set[str]:
    """Return the methods that a request's path takes; the framework knows those of its first route alone."""
    for path, operations in app.openapi()["paths"].items():
        if compile_path(path)[0].match(request.url.path):
            return {method.upper() for method in operations}
    return set()


def _of_framework(error: HTTPException, methods: set[str]) -> ApiError:
    if error.status_code == 404:
        return ApiError("not_found", "there is nothing at this address", "check the URL")
    if error.status_code == 405:
        return ApiError(
            "method_not_allowed",
            "this address does not take that method",
            "see the Allow header",
            headers={**(error.headers or {}), **({"Allow": ", ".join(sorted(methods))} if methods else {})},
        )
    return ApiError("http_error", str(error.detail), "correct the request", status=error.status_code)


def _internal() -> ApiError:
    return ApiError(
        "internal", "the server failed on this request", "send it again later; the server's log says more"
    )
