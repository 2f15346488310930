"""For those who run the service: status, health, metrics, and the description of the API itself."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from cema._util.version import __version__
from cema.cloud.http.access import MEMBER_ERRORS, SCRAPER_ERRORS, CohortName, member, scraper
from cema.cloud.http.caching import NO_STORE
from cema.cloud.http.metrics import CONTENT_TYPE
from cema.cloud.http.responses import errors, headers
from cema.cloud.http.schemas import CheckResult, Health, Ready, Status
from cema.cloud.http.service import TheService
from cema.cloud.store.devices import Device
from cema.cloud.store.told import more_status

__all__ = ["router"]

router = APIRouter(tags=["operations"])

_NOT_KEPT = {"headers": headers("Cache-Control")}


@router.get(
    "/v1/cohorts/{cohort}/status",
    summary="Read where a cohort stands",
    response_description="One snapshot.",
    responses={200: _NOT_KEPT, **errors(*MEMBER_ERRORS)},
)
def cohort_status(
    cohort: CohortName, service: TheService, response: Response, sender: Annotated[Device, Depends(member)]
) -> Status:
    """Samples, the newest update, counters, and what the worker last said."""
    status = service.store.status(cohort)
    status["worker"] = {"ready": False, **(status["worker"] or {})}
    status["healthy"] = service.readiness.healthy(cohort)
    status |= more_status(service.store, cohort)
    if sender.role == "device":  # the names of others are no business of a device
        status.pop("rollout", None)
        status.pop("pinned", None)
    response.headers.update(NO_STORE)
    return Status(**status)


@router.get(
    "/livez",
    summary="Ask whether the process responds",
    response_description="It does.",
    responses={200: _NOT_KEPT},
)
async def live(response: Response) -> Health:
    """For whoever starts the process again when it does not."""
    response.headers.update(NO_STORE)
    return Health(status="ok", version=__version__)


@router.get(
    "/readyz",
    summary="Ask whether all is well",
    response_description="It is.",
    responses={200: _NOT_KEPT, **errors("unhealthy")},
)
def ready(service: TheService, response: Response) -> Ready:
    """The worker runs and goes on, the store can be written, the disk has room, the clock is plausible."""
    checks = service.readiness.checks()
    bad = [f"{check.name}: {check.detail}" for check in checks if not check.ok]
    if bad:
        raise service.later(
            "unhealthy",
            "; ".join(bad),
            "see the server's log; what is stored and published is safe all the same",
        )
    response.headers.update(NO_STORE)
    found = [CheckResult(name=check.name, ok=check.ok, detail=check.detail) for check in checks]
    return Ready(status="ok", version=__version__, checks=found)


router.add_api_route(
    "/healthz",
    ready,
    summary="Ask whether all is well, under an older address",
    name="health",
    response_description="It is.",
    responses={200: _NOT_KEPT, **errors("unhealthy")},
)


@router.get(
    "/metrics",
    summary="Read the metrics",
    response_class=Response,
    response_description="Prometheus' text format.",
    responses={
        200: {**_NOT_KEPT, "content": {CONTENT_TYPE: {"schema": {"type": "string"}}}},
        **errors(*SCRAPER_ERRORS),
    },
    dependencies=[Depends(scraper)],
)
def metrics(service: TheService) -> Response:
    """Of every cohort, for an operator or admin of all cohorts."""
    body, kind = service.metrics.render()
    return Response(body, media_type=kind, headers=NO_STORE)


@router.get(
    "/openapi.json",
    summary="Read this document",
    response_class=Response,
    response_description="The API in OpenAPI 3.1.",
    responses={200: {**_NOT_KEPT, "content": {"application/json": {"schema": {"type": "object"}}}}},
)
def openapi_document(request: Request) -> Response:
    """What docs/protocol.md says in words, for programs."""
    return JSONResponse(request.app.openapi(), headers=NO_STORE)
