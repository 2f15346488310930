"""Who may do what: the dependencies that let a request through to its endpoint.

They are checked in the order that ``docs/protocol.md`` promises: token, revoked, expired, cohort, membership, role.
Each check calls the one before it, where FastAPI could chain them: reading the store may need the thread pool, and a
chain would go there once for every link.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Depends, Path, Request
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer

from cema.cloud.config import NAME
from cema.cloud.http.errors import ApiError
from cema.cloud.http.records import note_sender
from cema.cloud.http.service import Service, TheService
from cema.cloud.store.devices import Device
from cema.cloud.store.sessions import sessions_of

__all__ = [
    "ADMINISTRATOR_ERRORS",
    "BY_TOKEN",
    "BY_TOKEN_OR_SESSION",
    "MEMBER_ERRORS",
    "OPERATOR_ERRORS",
    "PAGE_HEADER",
    "PERSON_ERRORS",
    "SCRAPER_ERRORS",
    "UPLOADER_ERRORS",
    "CohortName",
    "Credentials",
    "administrator",
    "authenticate",
    "bearer",
    "cohorts_of",
    "member",
    "operator",
    "person",
    "scraper",
    "session_cookie",
    "signed_in",
    "uploader",
]

# The errors of each check, for the description of the endpoints behind it.
_TOKEN_ERRORS = ("unauthorized", "revoked", "expired")
MEMBER_ERRORS = (*_TOKEN_ERRORS, "unknown_cohort", "wrong_cohort")
UPLOADER_ERRORS = (*MEMBER_ERRORS, "not_a_device")
OPERATOR_ERRORS = (*MEMBER_ERRORS, "not_an_operator")
ADMINISTRATOR_ERRORS = (*MEMBER_ERRORS, "not_from_page", "not_an_administrator")
SCRAPER_ERRORS = (*_TOKEN_ERRORS, "not_an_operator")
PERSON_ERRORS = SCRAPER_ERRORS

# The pattern is for readers of the document: another name is an unknown cohort (404), not an invalid request.
CohortName = Annotated[
    str, Path(description="The cohort's name.", json_schema_extra={"pattern": f"^{NAME.pattern}$"})
]
"""The path parameter ``cohort``."""

_SESSION_COOKIE = "cema_session"
_PORT = re.compile(r":([0-9]{1,5})\Z")
PAGE_HEADER = "CEMA-Page"
"""A header that a page of another site cannot send: what is asked by a session's cookie must have it to change things.
The cookie itself is ``SameSite=Strict``; this holds also where a browser does not know that, or the other page is on
another port of the same host."""

_BEARER = HTTPBearer(
    scheme_name="token",
    description="The token that adding a device or an operator has printed.",
    auto_error=False,
)
_COOKIE = APIKeyCookie(
    name=_SESSION_COOKIE,
    scheme_name="session",
    description="The cookie that signing in has set; _PORT follows its name where the address has a port. "
    f"What is not GET must carry the header {PAGE_HEADER} then.",
    auto_error=False,
)
_SCHEME = "bearer"
_SESSION = "session"
_READING = frozenset({"GET", "HEAD"})
BY_TOKEN: dict[str, Any] = {"security": [{"token": []}]}
"""For the description of an endpoint that calls `bearer` itself."""
BY_TOKEN_OR_SESSION: dict[str, Any] = {"security": [{"token": []}, {"session": []}]}
"""The same for `signed_in`: what FastAPI reads off `Credentials`."""


def bearer(request: Request) -> HTTPAuthorizationCredentials | None:
    """Return what the header ``Authorization`` holds, or None when that is no bearer token: for what devices ask.

    It is called so often that resolving dependencies is costly.
    """
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != _SCHEME or not token:
        return None
    return HTTPAuthorizationCredentials(scheme=scheme, credentials=token)


def session_cookie(request: Request) -> str:
    """Return the name of the cookie with the secret of a session, see `cema.cloud.store.sessions`.

    Browsers send the cookies of a host to all of its ports: the name has the port of the address that was asked, so
    that signing in to one cloud does not sign out of another one beside it. A proxy passes the header on, or sends one
    that is always the same.
    """
    port = _PORT.search(request.headers.get("host", ""))
    return f"{_SESSION_COOKIE}_{port[1]}" if port else _SESSION_COOKIE


def signed_in(request: Request) -> HTTPAuthorizationCredentials | None:
    """Return what `bearer` does, else the cookie of a session: for what operators ask.

    Raises
    ------
    ApiError
        403 for what changes things by a session's cookie alone.
    """
    token = bearer(request)
    secret = request.cookies.get(session_cookie(request))
    if token is not None or not secret:
        return token
    if request.method not in _READING and PAGE_HEADER not in request.headers:
        raise ApiError(
            "not_from_page",
            f"the request is signed in by a cookie and has no header {PAGE_HEADER}",
            f"send the header '{PAGE_HEADER}: 1', or a token in 'Authorization: Bearer TOKEN'",
        )
    return HTTPAuthorizationCredentials(scheme=_SESSION, credentials=secret)


async def _credentials(
    request: Request,
    token: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
    session: Annotated[str | None, Depends(_COOKIE)],
) -> HTTPAuthorizationCredentials | None:
    """Return what `signed_in` does; the parameters are for the description of the API."""
    return signed_in(request)


Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_credentials)]
"""What the header ``Authorization`` holds, else the cookie of a session; None when there is neither."""


def authenticate(credentials: HTTPAuthorizationCredentials | None, service: Service) -> Device:
    """Return who sends a request.

    Raises
    ------
    ApiError
        401 without a token that somebody has; 403 when it has been revoked, or has expired.
    """
    secret = credentials.credentials.strip() if credentials else ""
    if credentials is not None and credentials.scheme == _SESSION:
        sessions = sessions_of(service.store)
        device = sessions.session(secret, now=time.time()) if sessions and secret else None
    else:
        device = service.engine.devices.authenticate(secret) if secret else None
    if device is None:
        raise ApiError(
            "unauthorized",
            "the request carries no token that is known here",
            "send 'Authorization: Bearer TOKEN' with the token that adding the device printed, or sign in again",
            headers={"WWW-Authenticate": "Bearer"},
        )
    note_sender(device.name)
    if device.revoked_at is not None:
        raise ApiError(
            "revoked",
            f"the token of {device.name!r} has been revoked",
            "register the device under a new name",
        )
    if device.expires_at is not None and time.time() >= device.expires_at:
        raise ApiError(
            "expired",
            f"the token of {device.name!r} has expired at {datetime.fromtimestamp(device.expires_at, UTC)}",
            f"have an operator give it more time: cema device expire {device.name} --at 90d",
        )
    return device


def member(cohort: CohortName, credentials: Credentials, service: TheService) -> Device:
    """Let through who may read about this cohort.

    Raises
    ------
    ApiError
        As `authenticate`; 404 when there is no such cohort; 403 when the token is for another one.
    """
    device = authenticate(credentials, service)
    if cohort not in service.cohorts:
        raise ApiError(
            "unknown_cohort",
            f"there is no cohort {cohort!r} here",
            "check the cohort in the device's settings",
        )
    note_sender(device.name, cohort)
    if device.cohort is not None and device.cohort != cohort:
        raise ApiError(
            "wrong_cohort",
            f"{device.name!r} belongs to cohort {device.cohort!r}, not {cohort!r}",
            f"set cloud.cohort to {device.cohort!r} in the device's configuration, and bundle to that cohort's, or "
            f"have an operator move it: cema device move {device.name} --to {cohort}",
        )
    return device


def uploader(cohort: str, credentials: HTTPAuthorizationCredentials | None, service: Service) -> Device:
    """Let through who may send samples to this cohort.

    Raises
    ------
    ApiError
        As `member`; 403 when an operator tries.
    """
    device = member(cohort, credentials, service)
    if device.role != "device":
        raise ApiError(
            "not_a_device", f"{device.name!r} is an {device.role} and may not upload", "use a device's token"
        )
    return device


def operator(cohort: CohortName, credentials: Credentials, service: TheService) -> Device:
    """Let through who may read what is no business of devices.

    Raises
    ------
    ApiError
        As `member`; 403 for a device.
    """
    device = member(cohort, credentials, service)
    return _no_device(device)


def administrator(cohort: str, credentials: HTTPAuthorizationCredentials | None, service: Service) -> Device:
    """Let through who may act on a cohort's versions and devices.

    Raises
    ------
    ApiError
        As `member`; 403 for devices and operators.
    """
    device = member(cohort, credentials, service)
    if device.role != "admin":
        raise ApiError(
            "not_an_administrator",
            f"{device.name!r} has the role {device.role} and may not act on versions or devices",
            "use the token of an admin: cema device add NAME --role admin",
        )
    return device


def scraper(credentials: Credentials, service: TheService) -> Device:
    """Let through who may read what covers every cohort.

    Raises
    ------
    ApiError
        As `authenticate`; 403 unless it is an operator or admin of all cohorts.
    """
    device = authenticate(credentials, service)
    if device.role == "device" or device.cohort is not None:
        raise ApiError(
            "not_an_operator",
            f"{device.name!r} may not read the metrics, which cover every cohort",
            "use the token of an operator or an admin that was added without a cohort",
        )
    return device


def person(credentials: Credentials, service: TheService) -> Device:
    """Let through operators and admins, of one cohort or all.

    Raises
    ------
    ApiError
        As `authenticate`; 403 for a device.
    """
    return _no_device(authenticate(credentials, service))


def _no_device(sender: Device) -> Device:
    if sender.role == "device":
        raise ApiError(
            "not_an_operator",
            f"{sender.name!r} is a device: it may not read this",
            "use the token of an operator or an admin",
        )
    return sender


def cohorts_of(who: Device, service: Service) -> list[str]:
    """Return the cohorts that somebody may see, by name."""
    return sorted(service.cohorts if who.cohort is None else service.cohorts & {who.cohort})
