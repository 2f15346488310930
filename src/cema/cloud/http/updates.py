"""Updates go out."""

from __future__ import annotations

import time
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.responses import Response

from cema._util.checks import is_sha256
from cema.cloud.http.access import MEMBER_ERRORS, CohortName, Credentials, member
from cema.cloud.http.caching import FOREVER, NO_CACHE, matches
from cema.cloud.http.errors import ApiError
from cema.cloud.http.metrics import WAITED
from cema.cloud.http.responses import errors, headers
from cema.cloud.http.schemas import Envelope
from cema.cloud.http.service import TheService
from cema.cloud.http.waiting import LONGEST_WAIT
from cema.cloud.store.base import PublishedUpdate
from cema.cloud.store.devices import Device
from cema.cloud.store.traces import Fetch

__all__ = ["router"]

router = APIRouter(prefix="/v1/cohorts/{cohort}", tags=["updates"])

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
_TAGGED = headers("ETag", "Cache-Control")
_NOT_MODIFIED: dict[str, Any] = {"description": "The sender has it already.", "headers": _TAGGED}


class _Newest(NamedTuple):
    """Who asks, and what there is."""

    sender: Device
    update: PublishedUpdate | None


def _newest(cohort: CohortName, credentials: Credentials, service: TheService) -> _Newest:
    """Check the sender and read the store in one trip to the thread pool: every device asks all the time."""
    return _Newest(member(cohort, credentials, service), service.store.latest_update(cohort))


# The model describes the envelope; its bytes go out as they were signed.
@router.get(
    "/updates/latest",
    summary="Ask for the newest update",
    response_model=Envelope,
    response_description="The newest envelope.",
    responses={
        200: {"headers": _TAGGED},
        204: {"description": "Nothing was published yet.", "headers": headers("Cache-Control")},
        304: _NOT_MODIFIED,
        **errors("invalid_request", *MEMBER_ERRORS),
    },
)
async def latest_update(
    request: Request,
    cohort: CohortName,
    newest: Annotated[_Newest, Depends(_newest)],
    service: TheService,
    *,
    if_none_match: IfNoneMatch = None,
    wait: Wait = 0.0,
) -> Response:
    """The entity tag changes whenever the envelope does, also when a new version has the same payload.

    With `wait`, an answer that there is nothing new comes that much later, or a new version when it is published.
    """
    sender, update = newest
    if wait > 0 and (update is None or matches(if_none_match, _etag(update))):
        known, begin = update.version if update else 0, time.perf_counter()
        update = await service.announcements.newer(cohort, known, wait, who=sender.name) or update
        request.scope[WAITED] = time.perf_counter() - begin
    if update is None:
        return Response(status_code=204, headers=NO_CACHE)
    tagged = {**NO_CACHE, "ETag": _etag(update)}
    if matches(if_none_match, _etag(update)):
        return Response(status_code=304, headers=tagged)
    if sender.role == "device":
        service.fetches.note(Fetch(cohort, update.version, sender.name, time.time()))
    return Response(update.envelope, media_type="application/json", headers=tagged)


def _etag(update: PublishedUpdate) -> str:
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
    return Response(data, media_type="application/octet-stream", headers=tagged)
