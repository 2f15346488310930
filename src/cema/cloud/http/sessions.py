"""Signing in at the page: a token once, then a cookie that no script can read."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from fastapi.security import HTTPAuthorizationCredentials
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from cema.cloud.http.access import (
    PAGE_HEADER,
    PERSON_ERRORS,
    cohorts_of,
    person,
    session_cookie,
    signed_in,
)
from cema.cloud.http.answers import json_answer
from cema.cloud.http.body import read_body
from cema.cloud.http.caching import NO_STORE
from cema.cloud.http.errors import ApiError
from cema.cloud.http.responses import errors, headers
from cema.cloud.http.service import Service, TheService
from cema.cloud.store.devices import Device
from cema.cloud.store.sessions import SESSION_SECONDS, sessions_of
from cema.errors import StoreFull, StoreUnavailable

__all__ = ["router"]

router = APIRouter(tags=["page"])

# A token has 43 characters.
LARGEST_BODY = 4096


class _SignIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    token: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]


class Session(BaseModel):
    """Who is signed in."""

    name: str
    role: Literal["operator", "admin"]
    cohorts: list[str] = Field(description="Those that it may see.")


_decoder = msgspec.json.Decoder(_SignIn)
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The token of an operator or an admin, JSON.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"token": {"type": "string", "minLength": 1, "maxLength": 1024}},
                    "required": ["token"],
                    "additionalProperties": False,
                }
            }
        },
    }
}


@router.post(
    "/v1/session",
    summary="Sign in",
    response_model=Session,
    response_description="The cookie of a session was set.",
    responses={
        200: {"headers": headers("Cache-Control", "Set-Cookie")},
        **errors(
            *PERSON_ERRORS,
            "not_from_page",
            "timeout",
            "stopping",
            "disconnected",
            "too_large",
            "invalid_request",
            "no_sessions",
            "store_full",
            "store_unavailable",
        ),
    },
    openapi_extra=_BODY,
)
async def sign_in(request: Request) -> Response:
    """Open a session for the holder of a token; docs/protocol.md says what its cookie is good for."""
    service: Service = request.app.state.service
    # Another site must not be able to sign somebody in as somebody else, either.
    if PAGE_HEADER not in request.headers:
        raise ApiError(
            "not_from_page", f"the request has no header {PAGE_HEADER}", f"send the header '{PAGE_HEADER}: 1'"
        )
    body = await read_body(request, LARGEST_BODY)
    try:
        token = _decoder.decode(body).token.strip()
    except (ValueError, RecursionError) as error:
        raise ApiError(
            "invalid_request", f"expected a token, got {len(body)} bytes: {error}", 'send {"token": "…"}'
        ) from None
    who, secret = await run_in_threadpool(_open, service, token)
    answer = json_answer(_session(service, who).model_dump())
    answer.set_cookie(
        session_cookie(request),
        secret,
        max_age=int(SESSION_SECONDS),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


def _open(service: Service, token: str) -> tuple[Device, str]:
    who = person(HTTPAuthorizationCredentials(scheme="bearer", credentials=token), service)
    sessions = sessions_of(service.store)
    try:
        secret = sessions.open_session(token, now=time.time()) if sessions else None
    except StoreFull as error:
        raise service.later("store_full", str(error), "sign in again") from error
    except StoreUnavailable as error:
        raise service.later("store_unavailable", str(error), "sign in again") from error
    if secret is None:
        raise ApiError(
            "no_sessions",
            "this store keeps no sessions, or has no room for any",
            "use the store that CEMA comes with (sqlite), and give it room (limits.store_bytes)",
        )
    return who, secret


@router.get(
    "/v1/session",
    summary="Ask who is signed in",
    response_description="The holder of the session or token.",
    responses={200: {"headers": headers("Cache-Control")}, **errors(*PERSON_ERRORS)},
)
def session(service: TheService, response: Response, who: Annotated[Device, Depends(person)]) -> Session:
    """Also by a token alone."""
    response.headers.update(NO_STORE)
    return _session(service, who)


@router.delete(
    "/v1/session",
    status_code=204,
    summary="Sign out",
    response_description="The session has ended, if there was one.",
    responses={204: {"headers": headers("Cache-Control", "Set-Cookie")}, **errors("not_from_page")},
)
def sign_out(request: Request, service: TheService) -> Response:
    """End the session of the cookie."""
    signed_in(request)
    name = session_cookie(request)
    sessions, secret = sessions_of(service.store), request.cookies.get(name)
    if sessions and secret:
        sessions.end_session(secret)
    answer = Response(status_code=204, headers=NO_STORE)
    answer.delete_cookie(name, httponly=True, samesite="strict")
    return answer


def _session(service: Service, who: Device) -> Session:
    return Session(
        name=who.name, role="admin" if who.role == "admin" else "operator", cohorts=cohorts_of(who, service)
    )
