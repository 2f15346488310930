"""Updates go out."""

from __future__ import annotations

import math
import time
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from cema._util.checks import is_sha256
from cema.cloud.http.access import BY_TOKEN, MEMBER_ERRORS, CohortName, bearer, member
from cema.cloud.http.bases import Line
from cema.cloud.http.caching import FOREVER, NO_CACHE, matches
from cema.cloud.http.direct import DirectRoute
from cema.cloud.http.errors import ApiError
from cema.cloud.http.metrics import WAITED
from cema.cloud.http.responses import errors, headers
from cema.cloud.http.schemas import Envelope
from cema.cloud.http.service import Service, TheService
from cema.cloud.http.waiting import LONGEST_WAIT
from cema.cloud.store.base import PublishedUpdate, UpdateTag
from cema.cloud.store.devices import Device
from cema.cloud.store.traces import Fetch

__all__ = ["IfNoneMatch", "router"]

router = APIRouter(prefix="/v1/cohorts/{cohort}", tags=["updates"])
# Every device asks for the newest update all the time.
polls = APIRouter(route_class=DirectRoute)

# The pattern is for readers of the document: another digest is an unknown artifact (404), not an invalid request.
Digest = Annotated[
    str,
    Path(
        description="SHA-256 of the payload, from the manifest.",
        json_schema_extra={"pattern": "^[0-9a-f]{64}$"},
    ),
]
IfNoneMatch = Annotated[
    str | None, Header(description="Entity tags that the sender has: one, a list, or `*`.")
]
Wait = Annotated[
    float,
    Query(
        ge=0,
        allow_inf_nan=False,
        description="Seconds that the answer may take while there is nothing new; more than "
        f"{LONGEST_WAIT:g} count as {LONGEST_WAIT:g}, and a busy server answers at once.",
    ),
]
Base = Annotated[
    str | None,
    Query(
        description="The base of the sender's bundle: it gets updates for that alone.",
        json_schema_extra={"pattern": "^[0-9a-f]{64}$"},
    ),
]
_TAGGED = headers("ETag", "Cache-Control")
_TOLD = headers("ETag", "Cache-Control", "CEMA-Base")
_NOT_MODIFIED: dict[str, Any] = {"description": "The sender has it already.", "headers": _TAGGED}


class _Newest(NamedTuple):
    """Who asks, and what tells the newest update from others."""

    sender: Device
    tag: UpdateTag | None
    line: Line


# The model describes the envelope; its bytes go out as they were signed.
@polls.get(
    "/updates/latest",
    summary="Ask for the newest update",
    response_model=Envelope,
    response_description="The newest envelope.",
    responses={
        200: {"headers": _TOLD},
        204: {
            "description": "Nothing was published yet.",
            "headers": headers("Cache-Control", "CEMA-Base"),
        },
        304: {**_NOT_MODIFIED, "headers": _TOLD},
        **errors("invalid_request", *MEMBER_ERRORS),
    },
    openapi_extra=BY_TOKEN,
)
async def latest_update(
    cohort: CohortName,
    request: Request,
    if_none_match: IfNoneMatch = None,
    wait: Wait = 0.0,
    base: Base = None,
) -> Response:
    """The entity tag changes whenever the envelope does, also when a new version has the same payload.

    With `wait`, an answer that there is nothing new comes that much later, or a new version when it is published.
    """
    # The token and the tag are read, and nothing else unless the tag is another.
    service: Service = request.app.state.service
    sender, tag, line = await service.at_once(_newest, cohort, request, service)
    known, seconds = request.headers.get("if-none-match"), _wait(request)
    if sender.role == "device":
        service.polls.note(cohort, sender.name, known)
        service.device_bases.note(cohort, sender.name, request.query_params.get("base"))
    service.tokens.seen(sender)
    update: PublishedUpdate | None = None
    if tag is None or matches(known, _etag(tag)):
        begin = time.perf_counter()
        version = line.after if tag is None else tag.version
        if seconds > 0 and line.waits:
            update = await service.announcements.newer(cohort, version, seconds, who=sender.name)
            request.scope[WAITED] = time.perf_counter() - begin
            if not await service.at_once(service.bases.still, cohort, line):
                update = None  # for another base model
        if update is None:
            return _nothing_new(tag, line)
    # It may be a newer one by now.
    update = update or await run_in_threadpool(service.bases.latest, cohort, line, sender.name)
    if update is None or matches(known, _etag(update)):
        return _nothing_new(update, line)
    if sender.role == "device":
        service.fetches.note(Fetch(cohort, update.version, sender.name, time.time()))
    service.history.add(cohort, {"bytes.down": (1, len(update.envelope))})
    tagged = {**NO_CACHE, **line.headers, "ETag": _etag(update)}
    return Response(update.envelope, media_type="application/json", headers=tagged)


router.include_router(polls)


def _newest(cohort: str, request: Request, service: Service) -> _Newest:
    """Check the sender and read the tag of what it is to get."""
    sender = member(cohort, bearer(request), service)
    line = service.bases.line(cohort, request.query_params.get("base"))
    return _Newest(sender, service.bases.tag(cohort, line, sender.name), line)


def _nothing_new(tag: UpdateTag | PublishedUpdate | None, line: Line) -> Response:
    told = {**NO_CACHE, **line.headers}
    if tag is None:
        return Response(status_code=204, headers=told)
    return Response(status_code=304, headers={**told, "ETag": _etag(tag)})


def _wait(request: Request) -> float:
    """Return how long an answer may take, in seconds."""
    text = request.query_params.get("wait", "0")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ApiError(
            "invalid_request",
            f"wait: expected a number of seconds of at least 0, got {text[:40]!r}",
            "leave it out, or send a number such as 20",
        )
    return seconds


def _etag(update: UpdateTag | PublishedUpdate) -> str:
    return f'"{update.digest}-{update.version}"'


@router.get(
    "/artifacts/{digest}",
    summary="Fetch an update's payload",
    response_class=Response,
    response_description="The payload (docs/protocol.md, section 5.2), all of it: ranges are not served.",
    responses={
        200: {
            "headers": _TAGGED,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        },
        304: _NOT_MODIFIED,
        **errors(*MEMBER_ERRORS, "unknown_artifact"),
    },
    dependencies=[Depends(member)],
)
def artifact(
    cohort: CohortName, digest: Digest, service: TheService, if_none_match: IfNoneMatch = None
) -> Response:
    """The bytes whose SHA-256 is `digest`; they never change. Only those of the newest updates are kept."""
    data = service.store.artifact(cohort, digest) if is_sha256(digest) else None
    if data is None:
        raise ApiError(
            "unknown_artifact",
            f"cohort {cohort!r} has no artifact {digest[:64]!r}",
            "fetch updates/latest again: only the newest updates are kept",
        )
    tagged = {**FOREVER, "ETag": f'"{digest}"'}
    if matches(if_none_match, tagged["ETag"]):
        return Response(status_code=304, headers=tagged)
    service.history.add(cohort, {"bytes.down": (1, len(data))})
    return Response(data, media_type="application/octet-stream", headers=tagged)
