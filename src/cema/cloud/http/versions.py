"""For operators: one version with what it changed and who has it, and what inputs looked like over all versions."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path
from fastapi.responses import Response

from cema.cloud.http.access import OPERATOR_ERRORS, CohortName, operator
from cema.cloud.http.answers import json_answer
from cema.cloud.http.bundle_facts import BundleFacts
from cema.cloud.http.errors import ApiError
from cema.cloud.http.responses import errors, headers
from cema.cloud.http.service import Service, TheService
from cema.cloud.http.versions_schemas import Domains, VersionDetail
from cema.cloud.store.activity import activity_of
from cema.cloud.store.base import PublishedUpdate
from cema.cloud.store.control import control_of
from cema.cloud.store.history import history_of
from cema.cloud.store.offers import offers_of
from cema.cloud.store.reports import reports_of
from cema.cloud.store.told import version_told
from cema.cloud.version_changes import like, moved, project
from cema.errors import FormatError
from cema.formats.payload import Payload, decode_payload
from cema.formats.update import base_of
from cema.ondevice.drift import statistics_names

__all__ = ["router"]

router = APIRouter(prefix="/v1/cohorts/{cohort}", tags=["acts"])

_NOT_KEPT = {"headers": headers("Cache-Control")}


@router.get(
    "/versions/{version}",
    summary="Show a version",
    response_model=VersionDetail,
    response_description="How it came about, what it changed, and who has it.",
    responses={200: _NOT_KEPT, **errors("invalid_request", *OPERATOR_ERRORS, "unknown_version")},
    dependencies=[Depends(operator)],
)
def show_version(
    cohort: CohortName,
    version: Annotated[int, Path(ge=1, lt=2**53, description="Its number.")],
    service: TheService,
) -> Response:
    """One of those that are kept, with more than the list has."""
    told = version_told(service.store, cohort, version)
    if told is None:
        raise ApiError(
            "unknown_version",
            f"cohort {cohort!r} keeps no version {version}",
            "see the list of versions: older ones are not kept",
        )
    facts = service.bundle_facts(cohort)
    return json_answer(
        {**told, **_changes(service, cohort, version, facts), "adoption": _adoption(service, cohort, version)}
    )


def _changes(service: Service, cohort: str, version: int, facts: BundleFacts) -> dict[str, Any]:
    """Return how far a version moved from the source model, and from the version before."""
    names = facts.class_names
    found: dict[str, Any] = {
        "class_names": None if names is None else list(names),
        "moved": None,
        "moved_since": None,
    }
    offers = offers_of(service.store)
    update = None if offers is None else offers.update(cohort, version)
    payload = _payload(update)
    if offers is None or update is None or payload is None:
        return found
    if base_of(update.envelope) == facts.base:
        found["moved"] = moved(payload, facts.unfolded if payload.unfolded else facts.folded)
    before = [
        known.version for known in control_of(service.store).versions(cohort) if known.version < version
    ]
    earlier = offers.update(cohort, max(before)) if before else None
    if earlier is not None and base_of(earlier.envelope) == base_of(update.envelope):
        found["moved_since"] = moved(payload, like(payload, _payload(earlier)))
    return found


def _payload(update: PublishedUpdate | None) -> Payload | None:
    try:
        return None if update is None else decode_payload(update.payload)
    except FormatError:
        return None


def _adoption(service: Service, cohort: str, version: int) -> dict[str, int]:
    """Count the devices that are offered a version now, had it when they last asked, and run it as they last said."""
    store = service.store
    now = time.time()
    devices = [
        device.name
        for device in service.engine.devices.list()
        if device.cohort == cohort
        and device.role == "device"
        and device.revoked_at is None
        and (device.expires_at is None or device.expires_at > now)
    ]
    offers = offers_of(store)
    known = None if offers is None else offers.offers([cohort]).get(cohort)
    newest = store.latest_update(cohort) if known is None else None
    for_all = known.version if known is not None else (newest.version if newest else 0)
    named = {} if known is None else known.named
    activity, reports = activity_of(store), reports_of(store)
    runs = 0
    for name in devices:
        # What a device said of another cohort counts for nothing.
        if name in reports and reports[name].cohort == cohort:
            runs += reports[name].report.serving.version == version
        elif name in activity and activity[name].cohort == cohort:
            runs += activity[name].ran == version
    return {
        "offered": sum(named.get(name, for_all) == version for name in devices),
        "has": sum(
            activity[name].has == version
            for name in devices
            if name in activity and activity[name].cohort == cohort
        ),
        "runs": runs,
    }


@router.get(
    "/domains",
    summary="Show what inputs looked like over all versions",
    response_model=Domains,
    response_description="One point for each version that was learned, oldest first.",
    responses={200: _NOT_KEPT, **errors(*OPERATOR_ERRORS)},
    dependencies=[Depends(operator)],
)
def domains(cohort: CohortName, service: TheService) -> Response:
    """Two that lie close together were made for inputs that look alike."""
    keeps = history_of(service.store)
    known = keeps.published(cohort, 0.0, 1e12) if keeps else []
    told = [(each, each.domain) for each in known if each.domain is not None]
    # Of another base model the inputs may have other statistics.
    size = len(told[-1][1]) if told else 0
    told = [(each, domain) for each, domain in told if len(domain) == size]
    found = project([domain for _, domain in told])
    bundle = service.bundle_facts(cohort).bundle
    channels = 3 if bundle is None else bundle.manifest.preprocessing.channels
    points = [
        {"version": each.version, "at": each.at, "x": x, "y": y}
        for (each, _), (x, y) in zip(told, found.points.tolist(), strict=True)
    ]
    return json_answer(
        {
            "points": points,
            "source": None,
            "explained": list(found.explained),
            "statistics": list(statistics_names(channels, size)),
        }
    )
