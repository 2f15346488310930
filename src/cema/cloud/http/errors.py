"""What the endpoints share: errors as JSON, bodies within a limit, tokens, entity tags."""

from __future__ import annotations

import asyncio
import re

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from cema.cloud.store.devices import Device, DeviceRegister

__all__ = ["ApiError", "authenticate", "install_errors", "matches"]

# What is still read of a body that is too large, so that its sender gets to see the answer, and for how long.
DRAIN_BYTES = 64 * 2**20
BODY_SECONDS = 300.0
TAG = re.compile(r'\s*(?:W/)?("[^"]*")\s*(?:,|$)')


class ApiError(Exception):
    """An answer other than success: status, a code for programs, what happened and what to do for people."""

    def __init__(
        self, status: int, code: str, message: str, remedy: str, *, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.remedy = remedy
        self.headers = headers

    def response(self) -> JSONResponse:
        """Return it as the JSON that every error of this API is."""
        content = {"error": {"code": self.code, "message": self.message, "remedy": self.remedy}}
        return JSONResponse(content, self.status, {"Cache-Control": "no-store", **(self.headers or {})})


def install_errors(app: FastAPI) -> None:
    """Make every error of the application an `ApiError`, those of the framework too."""

    async def api_error(_: Request, error: Exception) -> Response:
        return error.response() if isinstance(error, ApiError) else _internal()

    async def http_error(_: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        headers = dict(error.headers or {}) if isinstance(error, HTTPException) else None
        if status == 404:
            answer = ApiError(404, "not_found", "there is nothing at this address", "check the URL")
        elif status == 405:
            answer = ApiError(
                405, "method_not_allowed", "this address does not take that method", "see the Allow header",
                headers=headers,
            )  # fmt: skip
        else:
            answer = ApiError(
                status, "http_error", str(getattr(error, "detail", error)), "correct the request"
            )
        return answer.response()

    async def invalid(_: Request, error: Exception) -> Response:
        return ApiError(400, "invalid_request", str(error), "correct the request").response()

    async def internal(_: Request, error: Exception) -> Response:
        return _internal()

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, internal)


def _internal() -> Response:
    return ApiError(
        500,
        "internal",
        "the server failed on this request",
        "send it again later; the server's log says more",
    ).response()


async def read_body(request: Request, limit: int) -> bytes:
    """Read a request's body, never holding more than `limit` bytes of it.

    Raises
    ------
    ApiError
        413 when the body is larger; 408 when it does not arrive; 400 when its sender has gone; 503 when the
        server ends first.
    """
    declared = request.headers.get("content-length", "")
    too_large = declared.isdecimal() and int(declared) > limit
    chunks: list[bytes] = []
    total = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            if not (too_large and int(declared) > limit + DRAIN_BYTES):
                async for chunk in request.stream():
                    total += len(chunk)
                    if total <= limit and not too_large:
                        chunks.append(chunk)
                        continue
                    too_large = True
                    chunks.clear()
                    if total > limit + DRAIN_BYTES:
                        break
    except TimeoutError:
        raise ApiError(
            408, "timeout", f"the body did not arrive within {BODY_SECONDS:g} s", "send smaller requests"
        ) from None
    except asyncio.CancelledError:
        # The server ends, and its patience with open requests has ended before.
        raise ApiError(
            503, "stopping", "the server is being stopped", "send it again", headers={"Connection": "close"}
        ) from None
    except ClientDisconnect:
        raise ApiError(400, "disconnected", "the sender went away", "send it again") from None
    if too_large:
        raise ApiError(
            413,
            "too_large",
            f"the body may have {limit} bytes at most, {max(total, int(declared or 0))} came",
            "send fewer samples in a request",
        )
    return b"".join(chunks)


def authenticate(request: Request, devices: DeviceRegister) -> Device:
    """Return who sends a request.

    Raises
    ------
    ApiError
        401 without a token that somebody has; 403 when it has been revoked.
    """
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    device = devices.authenticate(token.strip()) if scheme.lower() == "bearer" and token.strip() else None
    if device is None:
        raise ApiError(
            401,
            "unauthorized",
            "the request carries no token that is known here",
            "send 'Authorization: Bearer TOKEN' with the token that adding the device printed",
            headers={"WWW-Authenticate": "Bearer"},
        )
    if device.revoked_at is not None:
        raise ApiError(
            403,
            "revoked",
            f"the token of {device.name!r} has been revoked",
            "register the device under a new name",
        )
    return device


def matches(if_none_match: str | None, etag: str) -> bool:
    """Tell whether an ``If-None-Match`` header names an entity tag (weak comparison, RFC 9110 13.1.2)."""
    if if_none_match is None:
        return False
    return if_none_match.strip() == "*" or etag in TAG.findall(if_none_match)
