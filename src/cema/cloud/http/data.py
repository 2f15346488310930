"""For operators and administrators: the samples of a cohort, their deletion, and their true classes."""

from __future__ import annotations

import math
import time
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from cema._util.checks import is_sha256
from cema.cloud.classes import Classes
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
from cema.cloud.http.data_schemas import (
    DataSummary,
    Deletion,
    DeletionAsked,
    Deletions,
    LabelsAnswer,
    LabelsGiven,
    SampleFacts,
)
from cema.cloud.http.errors import ApiError
from cema.cloud.http.responses import errors, headers
from cema.cloud.http.service import Service, TheService
from cema.cloud.store.data import DataFilter, Receipt, data_of
from cema.cloud.worker.replayed import replayed_seqs
from cema.errors import ConfigError, StoreFull, StoreUnavailable

__all__ = ["router"]

router = APIRouter(prefix="/v1/cohorts/{cohort}", tags=["data"])

LARGEST_FILTER = 4096
# Labels of some 50,000 samples.
LARGEST_LABELS = 4 * 2**20
_NOT_KEPT = {"headers": headers("Cache-Control")}
_BODY_ERRORS = (*ADMINISTRATOR_ERRORS, "timeout", "stopping", "disconnected", "too_large", "invalid_request")
_Class = Annotated[int, msgspec.Meta(ge=0, le=2**31)]


class _Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    device: str | None = None
    label: _Class | None = msgspec.field(name="class", default=None)
    since: float | None = msgspec.field(name="from", default=None)
    until: float | None = msgspec.field(name="to", default=None)
    everything: bool = msgspec.field(name="all", default=False)


class _Given(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    labels: dict[str, _Class | str]


_asked_decoder = msgspec.json.Decoder(_Asked)
_given_decoder = msgspec.json.Decoder(_Given)


def _body(model: Any, what: str) -> dict[str, Any]:
    """Describe a body that is read by hand, within a limit."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    return {
        **BY_TOKEN_OR_SESSION,
        "requestBody": {
            "required": True,
            "description": what,
            "content": {"application/json": {"schema": schema}},
        },
    }


def _which(
    device: Annotated[str | None, Query(description="Who sent them.")] = None,
    class_: Annotated[
        int | None,
        Query(alias="class", ge=0, le=2**31, description="The class that anybody takes them to be of."),
    ] = None,
    since: Annotated[
        float | None,
        Query(alias="from", allow_inf_nan=False, description="Unix time: arrived then or later."),
    ] = None,
    until: Annotated[
        float | None, Query(alias="to", allow_inf_nan=False, description="Unix time: arrived before.")
    ] = None,
) -> DataFilter:
    return DataFilter(device=device, label=class_, since=since, until=until)


@router.get(
    "/data",
    summary="Count samples",
    response_model=DataSummary,
    response_description="By device and class.",
    responses={200: _NOT_KEPT, **errors("invalid_request", *OPERATOR_ERRORS)},
    dependencies=[Depends(operator)],
)
def data_summary(
    cohort: CohortName, service: TheService, which: Annotated[DataFilter, Depends(_which)]
) -> Response:
    """How many samples there are, of whom, and what they are taken for."""
    groups = data_of(service.store).data_groups(cohort, which)
    return json_answer(
        {
            "cohort": cohort,
            "samples": sum(group.samples for group in groups),
            "bytes": sum(group.bytes for group in groups),
            "groups": groups,
        }
    )


@router.get(
    "/data/{id}",
    summary="Show a sample",
    response_model=SampleFacts,
    response_description="All that is known of it but the image.",
    responses={200: _NOT_KEPT, **errors(*OPERATOR_ERRORS, "unknown_sample")},
    dependencies=[Depends(operator)],
)
def sample_facts(cohort: CohortName, id: str, service: TheService) -> Response:
    """What is known of one sample, by the SHA-256 of its image."""
    kept = data_of(service.store)
    found = kept.data_sample(cohort, id) if is_sha256(id) else None
    if found is None:
        raise ApiError(
            "unknown_sample",
            "the cohort has no sample of that id, or no longer",
            "see the list of samples",
        )
    replayed = replayed_seqs(kept.saved_checkpoint(cohort))
    told = {"replayed": None if replayed is None else found.seq in replayed}
    return json_answer({**msgspec.to_builtins(found), **told})


@router.get(
    "/deletions",
    summary="List deletions",
    response_model=Deletions,
    response_description="The newest deletions, newest first.",
    responses={200: _NOT_KEPT, **errors("invalid_request", *OPERATOR_ERRORS)},
    dependencies=[Depends(operator)],
)
def deletions(
    cohort: CohortName,
    service: TheService,
    limit: Annotated[int, Query(ge=1, le=1000, description="So many of the newest, at most.")] = 100,
) -> Response:
    """Who asked for what, and whether everything is gone."""
    return json_answer({"deletions": data_of(service.store).receipts(cohort, limit=limit)})


@router.post(
    "/deletions",
    status_code=202,
    summary="Delete samples",
    response_model=Deletion,
    response_description="Removed from the store. Until the state is `done`, the worker has still to forget them.",
    responses={202: _NOT_KEPT, **errors(*_BODY_ERRORS, "store_unavailable")},
    openapi_extra=_body(DeletionAsked, "Which samples, JSON."),
)
async def delete_samples(cohort: CohortName, request: Request) -> Response:
    """Delete samples; docs/operating.md says what that does and does not do."""
    service: Service = request.app.state.service
    who = await service.at_once(administrator, cohort, signed_in(request), service)
    which = _asked(await read_body(request, LARGEST_FILTER))
    receipt = await run_in_threadpool(_delete, service, cohort, which, f"token:{who.name}")
    return json_answer(receipt, 202)


@router.post(
    "/labels",
    summary="Give samples their true classes",
    response_model=LabelsAnswer,
    response_description="What was taken, and what was not.",
    responses={200: _NOT_KEPT, **errors(*_BODY_ERRORS, "store_unavailable")},
    openapi_extra=_body(LabelsGiven, "True classes, JSON."),
)
async def label_samples(cohort: CohortName, request: Request) -> Response:
    """Have the worker learn true classes in the place of the foundation model's."""
    service: Service = request.app.state.service
    who = await service.at_once(administrator, cohort, signed_in(request), service)
    given = _given(await read_body(request, LARGEST_LABELS))
    return json_answer(await run_in_threadpool(_label, service, cohort, given, f"token:{who.name}"))


def _asked(body: bytes) -> DataFilter:
    try:
        asked = _asked_decoder.decode(body)
        which = DataFilter(device=asked.device, label=asked.label, since=asked.since, until=asked.until)
        if which.everything != asked.everything:
            raise ValueError("either all, or at least one of device, class, from and to")
        if not all(moment is None or math.isfinite(moment) for moment in (asked.since, asked.until)):
            raise ValueError("from and to must be finite")
    except (ValueError, RecursionError) as error:
        raise ApiError(
            "invalid_request",
            f"expected which samples to delete, got {len(body)} bytes: {error}",
            'send JSON such as {"device": "camera-7"}, {"class": 3, "to": 1767225600} or {"all": true}',
        ) from None
    return which


def _given(body: bytes) -> _Given:
    try:
        return _given_decoder.decode(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(
            "invalid_request",
            f"expected labels, got {len(body)} bytes: {error}",
            'send JSON such as {"labels": {"99482ef6...": 3}}',
        ) from None


def _delete(service: Service, cohort: str, which: DataFilter, who: str) -> Receipt:
    try:
        return data_of(service.store).delete_data(cohort, which, actor=who, now=time.time())
    except (StoreUnavailable, StoreFull) as error:
        raise service.later("store_unavailable", str(error), "ask for it again") from error


def _label(service: Service, cohort: str, given: _Given, who: str) -> dict[str, Any]:
    classes = Classes.of(next(each for each in service.engine.config.cohort if each.name == cohort))
    labels: dict[str, int] = {}
    refused: list[tuple[str, str]] = []
    for key, text in given.labels.items():
        try:
            if not is_sha256(key):
                raise ConfigError("expected an id of 64 hexadecimal digits")
            labels[key] = classes.index(str(text))
        except ConfigError as error:
            refused.append((key[:80], str(error)))
    try:
        taken = data_of(service.store).put_labels(cohort, labels, actor=who, now=time.time())
    except (StoreUnavailable, StoreFull) as error:
        raise service.later("store_unavailable", str(error), "send them again") from error
    refused += [(key, "the image was deleted, or left the store under its byte cap") for key in taken.deleted]
    refused += [(key, "no such sample was stored in this cohort") for key in taken.unknown]
    return {
        "new": taken.new,
        "changed": taken.changed,
        "same": taken.same,
        "refused": [{"id": key, "error": error} for key, error in refused],
    }
