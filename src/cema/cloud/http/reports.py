"""Devices say which version serves, and how that does."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from cema.cloud.http.access import BY_TOKEN, UPLOADER_ERRORS, CohortName, bearer, uploader
from cema.cloud.http.body import read_body
from cema.cloud.http.caching import NO_STORE
from cema.cloud.http.errors import ApiError
from cema.cloud.http.responses import errors, headers, inlined
from cema.cloud.http.schemas import Report
from cema.cloud.http.service import Service
from cema.cloud.store.reports import Reported
from cema.errors import FormatError
from cema.formats.report import LARGEST_REPORT, decode_report

__all__ = ["router"]

router = APIRouter(prefix="/v1/cohorts/{cohort}", tags=["updates"])

_BODY: dict[str, Any] = {
    **BY_TOKEN,
    "requestBody": {
        "required": True,
        "description": "A report, JSON.",
        "content": {"application/json": {"schema": inlined(Report.model_json_schema())}},
    },
}


@router.post(
    "/reports",
    status_code=204,
    summary="Report which version serves",
    response_description="It came.",
    responses={
        204: {"headers": headers("Cache-Control")},
        **errors(*UPLOADER_ERRORS, "timeout", "stopping", "disconnected", "too_large", "invalid_request"),
    },
    openapi_extra=_BODY,
)
async def report(cohort: CohortName, request: Request) -> Response:
    """The last report of each device is kept; one that is lost is not asked for again."""
    service: Service = request.app.state.service
    sender = await service.at_once(uploader, cohort, bearer(request), service)
    body = await read_body(request, LARGEST_REPORT)
    try:
        found = decode_report(body)
    except FormatError as error:
        raise ApiError("invalid_request", str(error), "send a report as docs/protocol.md has it") from None
    service.reports.note(Reported(cohort, sender.name, time.time(), found))
    return Response(status_code=204, headers=NO_STORE)
