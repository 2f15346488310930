"""Where the cohorts stand, once or as it changes: for the page and for programs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response, StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import BaseModel, ConfigDict, Field

from cema.cloud.http.access import PERSON_ERRORS, cohorts_of, person, signed_in
from cema.cloud.http.caching import NO_STORE
from cema.cloud.http.errors import ApiError
from cema.cloud.http.live import Listener, TooManyListen
from cema.cloud.http.metrics import WAITED
from cema.cloud.http.responses import errors, headers
from cema.cloud.http.schemas import Agreement, Seconds
from cema.cloud.http.service import Service, TheService
from cema.cloud.store.devices import Device

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

__all__ = ["router"]

router = APIRouter(tags=["page"])

# What is sent where nothing happens, so that proxies keep the connection; and so often it is looked whether whoever
# listens still may.
QUIET_SECONDS = 10.0
_EVENTS = "text/event-stream; charset=utf-8"
_NOT_KEPT = {"headers": headers("Cache-Control")}


class DevicesOfCohort(BaseModel):
    """How many devices a cohort has."""

    registered: int = Field(description="Without revoked ones.")
    seen: int = Field(description="Heard of in the last ten minutes.")
    silent: int = Field(description="Heard of, and not in the last ten minutes.")
    quarantined: int
    revoked: int


class Day(BaseModel):
    """What a cohort's devices sent and received in the last 24 hours."""

    samples: int
    bytes_up: int
    bytes_down: int
    cost: float | None = Field(description="By the price in the configuration, where there is one.")
    currency: str | None


class CohortOverview(BaseModel):
    """Where a cohort stands, for people. Members may be added."""

    model_config = ConfigDict(extra="allow")

    cohort: str
    level: Literal["ok", "warn", "bad"]
    sentence: str
    problems: list[str]
    agreement: dict[str, Agreement]
    random_agreement: dict[str, Agreement]
    version: int
    version_at: Seconds | None
    publishing: Literal["on", "paused", "pinned", "stopped"] | None
    ready: bool
    backlog: int
    samples: int
    last_step_at: Seconds | None
    devices: DevicesOfCohort
    day: Day
    labelled: dict[str, Agreement] = Field(description="Accuracy where somebody knew the classes, by name.")
    changed: str = Field(description="Another one once anything is another; also once a minute.")


class Overview(BaseModel):
    """Where every cohort stands that one may see."""

    at: Seconds
    version: str = Field(description="Version of the software.")
    cohorts: list[CohortOverview]


@router.get(
    "/v1/overview",
    summary="Read where all cohorts stand",
    response_description="A sentence and a few numbers of each.",
    responses={200: _NOT_KEPT, **errors(*PERSON_ERRORS)},
)
def overview(service: TheService, response: Response, who: Annotated[Device, Depends(person)]) -> Overview:
    """Of the cohorts that the token is good for."""
    response.headers.update(NO_STORE)
    return Overview.model_validate(service.live.read(cohorts_of(who, service)))


@router.get(
    "/v1/events",
    summary="Be told where cohorts stand as it changes",
    response_class=Response,
    response_description="Server-sent events; docs/protocol.md says which.",
    responses={
        200: {**_NOT_KEPT, "content": {_EVENTS: {"schema": {"type": "string"}}}},
        **errors(*PERSON_ERRORS, "busy"),
    },
)
async def follow(request: Request, service: TheService, who: Annotated[Device, Depends(person)]) -> Response:
    """An event `overview` with what has changed, at most one a second; and `end` before the server ends it."""
    try:
        service.live.check(who.name)
    except TooManyListen:
        raise service.later(
            "busy",
            "too many pages are told what happens at this moment",
            "close one, or ask for the overview",
        ) from None
    # Nothing is waited for between the two: of many at one moment no more than may get a place.
    return _Told(request, service, service.live.join(who.name, cohorts_of(who, service)))


class _Told(StreamingResponse):
    """Tells a listener what happens, and gives up its place at the end, also where the answer never began."""

    def __init__(self, request: Request, service: Service, listener: Listener) -> None:
        headers = {**NO_STORE, "X-Accel-Buffering": "no"}
        super().__init__(_events(request, service, listener), media_type=_EVENTS, headers=headers)
        self._live, self._listener = service.live, listener

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._live.leave(self._listener)
            scope[WAITED] = time.perf_counter() - began  # it is no slow request


async def _events(request: Request, service: Service, listener: Listener) -> AsyncIterator[bytes]:
    looked = asyncio.get_running_loop().time()
    while True:
        told = await listener.next(QUIET_SECONDS)
        now = asyncio.get_running_loop().time()
        if now - looked >= QUIET_SECONDS:
            looked = now
            if not await service.at_once(_still_may, request, service, listener.cohorts):
                yield _event("end", {"reason": "session"})
                return
        if listener.ended:
            yield _event("end", {"reason": "stopping"})
            return
        yield KEEPALIVE_COMMENT if told is None else _event("overview", told)


def _still_may(request: Request, service: Service, cohorts: frozenset[str]) -> bool:
    """Tell whether whoever listens may still, and to these cohorts: an operator may be moved to another one."""
    try:
        return cohorts == frozenset(cohorts_of(person(signed_in(request), service), service))
    except ApiError:
        return False


def _event(name: str, data: dict[str, Any]) -> bytes:
    return format_sse_event(event=name, data_str=msgspec.json.encode(data).decode())
