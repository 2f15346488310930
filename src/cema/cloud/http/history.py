"""For operators, measures over time; and for administrators, the way to add some from outside."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Request
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
from cema.cloud.http.caching import NO_STORE
from cema.cloud.http.errors import ApiError
from cema.cloud.http.history_schemas import History, MeasuresGiven
from cema.cloud.http.responses import errors, headers, inlined
from cema.cloud.http.service import Service, TheService
from cema.cloud.store.history import (
    LABELLED,
    MOST_MEASURES,
    HistoryBin,
    HistoryNote,
    Measures,
    history_of,
    width_at,
)
from cema.errors import StoreError

__all__ = ["bin_width", "router"]

router = APIRouter(prefix="/v1/cohorts/{cohort}", tags=["operations"])

DAY = 86_400
# Widths of bins that read well on an axis.
_WIDTHS = (10, 20, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, DAY)
LARGEST_MEASURES = 4096
NAME = re.compile(rf"{re.escape(LABELLED)}[a-z0-9_-]{{1,40}}")
_NOT_KEPT = {"headers": headers("Cache-Control")}


class _Given(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    measures: Annotated[dict[str, tuple[float, float]], msgspec.Meta(min_length=1, max_length=16)]


# Sums of so many stay finite, whoever sends how often.
MOST_SAMPLES = 2**53

_given_decoder = msgspec.json.Decoder(_Given)
_Moment = Annotated[
    float | None, Query(ge=0, le=1e12, allow_inf_nan=False, description="Unix time in seconds.")
]


def bin_width(span: float, points: int, age: float) -> int:
    """Return the width of the bins of an answer, in seconds.

    Parameters
    ----------
    span : float
        Seconds that it covers.
    points : int
        Bins, at most.
    age : float
        Seconds since its beginning: what is old is kept in wide bins.

    Examples
    --------
    >>> bin_width(3600, 360, 3600), bin_width(86_400, 300, 86_400), bin_width(31 * 86_400, 300, 31 * 86_400)
    (10, 300, 10800)
    >>> bin_width(600, 300, 10 * 86_400)
    900
    """
    least = max(span / points, width_at(age))
    if least > DAY:
        return DAY * math.ceil(least / DAY)
    return next(width for width in _WIDTHS if width >= least)


@router.get(
    "/history",
    summary="Read measures over time",
    response_model=History,
    response_description="By columns, oldest first.",
    responses={200: _NOT_KEPT, **errors("invalid_request", *OPERATOR_ERRORS)},
    dependencies=[Depends(operator)],
)
def history(
    cohort: CohortName,
    service: TheService,
    since: _Moment = None,
    until: _Moment = None,
    points: Annotated[int, Query(ge=1, le=2000, description="Bins, at most.")] = 300,
) -> Response:
    """Agreement, entropy, thresholds, losses and traffic; of the last day unless said otherwise."""
    now = time.time()
    until = now if until is None else until
    since = max(0.0, until - DAY) if since is None else since
    if since >= until:
        raise ApiError(
            "invalid_request",
            f"expected since to be before until, got {since:.0f} and {until:.0f}",
            "leave until out for the present",
        )
    seconds = bin_width(until - since, points, now - since)
    keeps = history_of(service.store)
    bins = keeps.history(cohort, since, until, seconds) if keeps else []
    versions = keeps.published(cohort, since, until) if keeps else []
    changes = keeps.domain_changes(cohort, since, until) if keeps else []
    told = {
        "cohort": cohort,
        "since": since,
        "until": until,
        "seconds": seconds,
        "at": [each.at for each in bins],
        "measures": _columns(bins),
        "versions": [{"version": each.version, "at": each.at, "kind": each.kind} for each in versions],
        "domains": [{"at": each.at, "distance": each.distance} for each in changes],
    }
    return json_answer(told)


def _columns(bins: Sequence[HistoryBin]) -> dict[str, dict[str, list[float | None]]]:
    """Return the sums of each measure, in the order of the bins."""
    # Admins choose names: those that most bins know are told, in a bin's number.
    known = Counter(name for each in bins for name in each.measures)
    names = sorted(name for name, _ in known.most_common(MOST_MEASURES))
    found: dict[str, dict[str, list[float | None]]] = {}
    for name in names:
        sums = [each.measures.get(name) for each in bins]
        found[name] = {
            "count": [None if one is None else one[0] for one in sums],
            "total": [None if one is None else one[1] for one in sums],
        }
    return found


_BODY: dict[str, Any] = {
    **BY_TOKEN_OR_SESSION,
    "requestBody": {
        "required": True,
        "description": "Measures, JSON.",
        "content": {"application/json": {"schema": inlined(MeasuresGiven.model_json_schema())}},
    },
}


@router.post(
    "/measures",
    status_code=204,
    summary="Add measures from outside",
    response_description="They are in the history, at this moment.",
    responses={
        204: _NOT_KEPT,
        **errors(
            *ADMINISTRATOR_ERRORS,
            "timeout",
            "stopping",
            "disconnected",
            "too_large",
            "invalid_request",
            "store_unavailable",
        ),
    },
    openapi_extra=_BODY,
)
async def add_measures(cohort: CohortName, request: Request) -> Response:
    """For whoever knows true labels: how many samples there were, and on how many of them a model was right."""
    service: Service = request.app.state.service
    await service.at_once(administrator, cohort, signed_in(request), service)
    given = _decode(await read_body(request, LARGEST_MEASURES))
    await run_in_threadpool(_add, service, cohort, given)
    return Response(status_code=204, headers=NO_STORE)


def _decode(body: bytes) -> Measures:
    try:
        given = _given_decoder.decode(body).measures
        for name, (count, total) in given.items():
            if not NAME.fullmatch(name):
                raise ValueError(f"expected names such as labelled.adapted, got {name[:60]!r}")
            if not 0 <= total <= count <= MOST_SAMPLES:
                raise ValueError(
                    f"{name}: expected a count of at most {MOST_SAMPLES} and a total from 0 to it, "
                    f"got {count:g} and {total:g}"
                )
    except (ValueError, RecursionError) as error:
        raise ApiError(
            "invalid_request",
            f"expected measures, got {len(body)} bytes: {error}",
            'send JSON such as {"measures": {"labelled.adapted": [64, 57]}}: samples, and how many were right',
        ) from None
    return given


def _add(service: Service, cohort: str, measures: Measures) -> None:
    keeps = history_of(service.store)
    try:
        if keeps is None:
            raise StoreError("this store keeps no history")
        keeps.note_history([HistoryNote(cohort, time.time(), measures)])
    except StoreError as error:
        raise service.later("store_unavailable", str(error), "send them again") from error
