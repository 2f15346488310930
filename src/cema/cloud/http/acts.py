"""For administrators: the versions of a cohort, and acts on them."""

from __future__ import annotations

import time
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from cema.cloud.acts_allowed import check_act
from cema.cloud.http.access import (
    ADMINISTRATOR_ERRORS,
    BY_TOKEN_OR_SESSION,
    OPERATOR_ERRORS,
    CohortName,
    administrator,
    operator,
    signed_in,
)
from cema.cloud.http.answers import json_answer
from cema.cloud.http.body import read_body
from cema.cloud.http.caching import NO_STORE
from cema.cloud.http.errors import ApiError
from cema.cloud.http.responses import errors, headers
from cema.cloud.http.schemas import (
    ActRecord,
    Acts,
    CanaryAct,
    PinAct,
    ResumeAct,
    VersionAct,
    VersionlessAct,
    Versions,
)
from cema.cloud.http.service import Service, TheService
from cema.cloud.store.control import Act, Acted, ActRefused, control_of
from cema.cloud.store.told import versions_told
from cema.errors import StoreUnavailable

__all__ = ["router"]

router = APIRouter(prefix="/v1/cohorts/{cohort}", tags=["acts"])

# An act is a few words.
LARGEST_ACT = 4096
_NOT_KEPT = {"headers": headers("Cache-Control")}
_act_decoder = msgspec.json.Decoder(Act)
_ACTS = (VersionAct, PinAct, VersionlessAct, ResumeAct, CanaryAct)
# Read by hand, within a limit, and so described by hand.
_BODY: dict[str, Any] = {
    **BY_TOKEN_OR_SESSION,
    "requestBody": {
        "required": True,
        "description": "An act, JSON.",
        "content": {
            "application/json": {"schema": {"oneOf": [model.model_json_schema() for model in _ACTS]}}
        },
    },
}


@router.get(
    "/versions",
    summary="List the versions that are kept",
    response_description="The versions, oldest first.",
    responses={200: _NOT_KEPT, **errors(*OPERATOR_ERRORS)},
    dependencies=[Depends(operator)],
)
def versions(cohort: CohortName, service: TheService, response: Response) -> Versions:
    """When and how each came about, how well it does, and which devices have fetched it."""
    response.headers.update(NO_STORE)
    control = control_of(service.store).control(cohort)
    told = versions_told(service.store, cohort)
    return Versions.model_validate({"cohort": cohort, "publishing": control.publishing, "versions": told})


@router.get(
    "/acts",
    summary="List acts",
    response_description="The newest acts, newest first.",
    responses={200: _NOT_KEPT, **errors("invalid_request", *OPERATOR_ERRORS)},
    dependencies=[Depends(operator)],
)
def acts(
    cohort: CohortName,
    service: TheService,
    response: Response,
    limit: Annotated[int, Query(ge=1, le=1000, description="So many of the newest, at most.")] = 100,
) -> Acts:
    """Who asked for what, and the version that came of it."""
    response.headers.update(NO_STORE)
    found = control_of(service.store).acts(cohort, limit=limit)
    return Acts.model_validate({"acts": msgspec.to_builtins(found)})


@router.post(
    "/acts",
    status_code=202,
    summary="Act on a cohort's versions",
    response_model=ActRecord,
    response_description="Written down. While the state is `waiting`, the worker has still to sign a version.",
    responses={
        202: _NOT_KEPT,
        **errors(
            *ADMINISTRATOR_ERRORS,
            "timeout",
            "stopping",
            "disconnected",
            "too_large",
            "invalid_request",
            "act_refused",
            "store_unavailable",
        ),
    },
    openapi_extra=_BODY,
)
async def act(cohort: CohortName, request: Request) -> Response:
    """Roll back, pin, release, pause, stop, resume, or set the share of canary devices: see docs/operating.md."""
    service: Service = request.app.state.service
    who = await service.at_once(administrator, cohort, signed_in(request), service)
    asked = _decode(await read_body(request, LARGEST_ACT))
    acted = await run_in_threadpool(_act, service, cohort, asked, f"token:{who.name}")
    return json_answer(acted, 202)


def _decode(body: bytes) -> Act:
    try:
        return _act_decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(
            "invalid_request",
            f"expected an act, got {len(body)} bytes: {error}",
            'send JSON such as {"type": "rollback", "to": 3}, {"type": "pin", "to": 3, "device": "cam-1"}, '
            '{"type": "release", "to": 3}, {"type": "pause"}, {"type": "stop"}, {"type": "resume"} or '
            '{"type": "canary", "first": 0.2}',
        ) from None


def _act(service: Service, cohort: str, act: Act, who: str) -> Acted:
    try:
        check_act(act, service.config(cohort))
        return control_of(service.store).act(cohort, act, actor=who, now=time.time())
    except ActRefused as error:
        raise ApiError("act_refused", str(error), "see the list of versions, and cloud.toml") from error
    except StoreUnavailable as error:
        raise service.later("store_unavailable", str(error), "send the act again") from error
