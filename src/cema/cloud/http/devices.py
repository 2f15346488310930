"""For operators, the devices of a cohort; for administrators, what is done with them.

Nothing here makes an admin, or acts on one: whoever has stolen an admin's token could otherwise stay when it is
revoked, and lock the others out. The command line does both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec
from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

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
from cema.cloud.http.device_schemas import (
    AddDevices,
    AddedDevices,
    DeviceDetail,
    DeviceDone,
    Devices,
    act_schema,
    add_schema,
)
from cema.cloud.http.errors import ApiError
from cema.cloud.http.responses import errors, headers
from cema.cloud.http.samples_shown import shown
from cema.cloud.http.service import Service, TheService
from cema.cloud.store.audits import AuditStore
from cema.cloud.store.control import ActRefused
from cema.cloud.store.data import newest_samples
from cema.cloud.store.device_problems import trouble_order
from cema.cloud.store.devices import Device, new_token
from cema.cloud.store.devices_told import device_told, devices_told
from cema.cloud.store.fleet import (
    DeviceAct,
    DeviceTaken,
    Done,
    FleetRegister,
    Move,
    NewDevice,
    UnknownDevice,
    fleet_of,
)
from cema.cloud.store.history import history_of
from cema.errors import StoreFull, StoreUnavailable

__all__ = ["router"]

T = TypeVar("T")

router = APIRouter(prefix="/v1/cohorts/{cohort}/devices", tags=["devices"])

LARGEST_ACT = 4096
# Of one device: its newest samples, and the versions that it has fetched.
UPLOADS_SHOWN, ADOPTED_SHOWN = 20, 50
LARGEST_LIST = 256 * 1024
_NOT_KEPT = {"headers": headers("Cache-Control")}
_CHANGE_ERRORS = (
    *ADMINISTRATOR_ERRORS,
    "timeout",
    "stopping",
    "disconnected",
    "too_large",
    "invalid_request",
    "store_full",
    "store_unavailable",
)
_add_decoder = msgspec.json.Decoder(AddDevices)
_act_decoder = msgspec.json.Decoder(DeviceAct)

DeviceName = Annotated[str, Path(description="The device's name.")]


def _body(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Describe a body that is read by hand, within a limit."""
    content = {"application/json": {"schema": schema}}
    return {
        **BY_TOKEN_OR_SESSION,
        "requestBody": {"required": True, "description": description, "content": content},
    }


class _Page(NamedTuple):
    """A part of a list of devices."""

    order: Literal["name", "trouble"]
    limit: int | None
    offset: int
    search: str


def _page(
    order: Annotated[
        Literal["name", "trouble"], Query(description="By name, or those first that need somebody most.")
    ] = "name",
    limit: Annotated[int | None, Query(ge=1, le=100_000, description="So many, at most.")] = None,
    offset: Annotated[int, Query(ge=0, le=2**53, description="So many of the first are left out.")] = 0,
    search: Annotated[str, Query(max_length=64, description="A part of the name.")] = "",
) -> _Page:
    return _Page(order, limit, offset, search)


@router.get(
    "",
    summary="List the devices of a cohort",
    response_model=Devices,
    response_description="Devices, operators and admins of this cohort alone, revoked ones too.",
    responses={200: _NOT_KEPT, **errors("invalid_request", *OPERATOR_ERRORS)},
    dependencies=[Depends(operator)],
)
def list_devices(cohort: CohortName, service: TheService, page: Annotated[_Page, Depends(_page)]) -> Response:
    """When each was heard of, what it has and sent, and what operators have said of it."""
    search = page.search.lower()
    known = [
        device
        for device in service.engine.devices.list()
        if device.cohort == cohort and search in device.name.lower()
    ]
    end = None if page.limit is None else page.offset + page.limit
    if page.order == "name":
        told = devices_told(service.store, known[page.offset : end], [cohort])
    else:
        told = devices_told(service.store, known, [cohort])
        told.sort(key=lambda one: trouble_order(one["level"], one["problems"], one["name"]))
        told = told[page.offset : end]
    return json_answer({"devices": told, "total": len(known)})


@router.get(
    "/{name}",
    summary="Show a device",
    response_model=DeviceDetail,
    response_description="What is known of it, its newest samples, and the versions that it has fetched.",
    responses={200: _NOT_KEPT, **errors(*OPERATOR_ERRORS, "unknown_device")},
    dependencies=[Depends(operator)],
)
def show_device(cohort: CohortName, name: DeviceName, service: TheService) -> Response:
    """One device, or one operator of the cohort alone."""
    known = _find(service.engine.devices.list(), cohort, name)
    (told,) = devices_told(service.store, [known], [cohort])
    facts = service.bundle_facts(cohort)
    newest = newest_samples(service.store, cohort, limit=UPLOADS_SHOWN, device=name)
    keeps = history_of(service.store)
    adopted = keeps.fetched(cohort, name, limit=ADOPTED_SHOWN) if keeps else []
    more = {
        "uploads": [shown(each, facts) for each in newest],
        "adopted": [{"version": version, "fetched_at": at} for version, at in adopted],
    }
    return json_answer(told | more)


@router.post(
    "",
    status_code=201,
    summary="Add devices",
    response_model=AddedDevices,
    response_description="All were added. Their tokens are not shown again.",
    responses={201: _NOT_KEPT, **errors(*_CHANGE_ERRORS, "device_taken")},
    openapi_extra=_body("Devices and operators of the cohort, all of which are added or none.", add_schema()),
)
async def add_devices(cohort: CohortName, request: Request) -> Response:
    """A request whose answer was lost cannot be sent again: renew the tokens of its devices."""
    service: Service = request.app.state.service
    who = await service.at_once(administrator, cohort, signed_in(request), service)
    asked = _decode(
        _add_decoder, await read_body(request, LARGEST_LIST), '{"devices": [{"name": "camera-1"}]}'
    )
    new = [
        NewDevice(device.name, cohort, device.role, new_token(), device.expires_at)
        for device in asked.devices
    ]
    await run_in_threadpool(_changed, service, who, lambda register: register.add_all(new))
    added = [{"name": device.name, "token": device.token} for device in new]
    return json_answer({"devices": added}, 201)


@router.post(
    "/{name}/acts",
    summary="Act on a device",
    response_model=DeviceDone,
    response_description="It is done, and holds from the device's next request on.",
    responses={
        200: _NOT_KEPT,
        **errors(*_CHANGE_ERRORS, "unknown_device", "act_refused"),
    },
    openapi_extra=_body("An act.", act_schema()),
)
async def act_on_device(cohort: CohortName, name: DeviceName, request: Request) -> Response:
    """Renew its token, move, expire, quarantine, release, limit, revoke or remove it; see docs/operating.md."""
    service: Service = request.app.state.service
    who = await service.at_once(administrator, cohort, signed_in(request), service)
    act = _decode(_act_decoder, await read_body(request, LARGEST_ACT), '{"type": "renew", "overlap": 604800}')
    if isinstance(act, Move):
        administrator(act.to, signed_in(request), service)

    def do(register: FleetRegister) -> Done:
        known = _find(register.list(), cohort, name)
        if known.role == "admin":
            raise ActRefused(f"{name!r} is an admin: acts on admins are for the command line")
        return register.act(name, act)

    done = await run_in_threadpool(_changed, service, who, do)
    device = None if done.device is None else device_told(done.device)
    return json_answer({"device": device, "token": done.token})


def _find(known: Iterable[Device], cohort: str, name: str) -> Device:
    found = next((device for device in known if device.name == name and device.cohort == cohort), None)
    if found is None:
        message = f"cohort {cohort!r} has no device {name[:64]!r}"
        raise ApiError("unknown_device", message, "see the list of devices")
    return found


def _decode(decoder: msgspec.json.Decoder[T], body: bytes, example: str) -> T:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(
            "invalid_request",
            f"expected JSON that fits this endpoint, got {len(body)} bytes: {error}",
            f"send JSON such as {example}",
        ) from None


def _changed(service: Service, who: Device, change: Callable[[FleetRegister], T]) -> T:
    """Change the register in the name of a token, and put its refusals into the API's words."""
    store, cohorts = service.store, service.cohorts
    register = (
        store.audited_devices(cohorts, actor=f"token:{who.name}")
        if isinstance(store, AuditStore)
        else store.devices(cohorts)
    )
    try:
        return change(fleet_of(register))
    except UnknownDevice as error:
        raise ApiError("unknown_device", str(error), "see the list of devices") from error
    except DeviceTaken as error:
        raise ApiError("device_taken", str(error), "see the list of devices; nothing was added") from error
    except ActRefused as error:
        raise ApiError("act_refused", str(error), "see the list of devices") from error
    except StoreFull as error:
        raise service.later("store_full", str(error), "send it again") from error
    except StoreUnavailable as error:
        raise service.later("store_unavailable", str(error), "send it again") from error
