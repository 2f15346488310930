"""Samples come in."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from cema._util.events import report
from cema._util.names import shortened
from cema.cloud import events
from cema.cloud.config import LimitsConfig
from cema.cloud.http.access import BY_TOKEN, UPLOADER_ERRORS, CohortName, bearer, uploader
from cema.cloud.http.body import announced_bytes, read_body
from cema.cloud.http.caching import NO_STORE
from cema.cloud.http.direct import DirectRoute
from cema.cloud.http.errors import ApiError
from cema.cloud.http.responses import errors, headers
from cema.cloud.http.schemas import Verdicts
from cema.cloud.http.service import Service
from cema.cloud.store.base import BacklogFull, Store, UploadTooLarge
from cema.cloud.store.devices import Device
from cema.cloud.store.draws import draws_of
from cema.cloud.store.history import Measures
from cema.errors import FormatError, ImageError, StoreFull, StoreUnavailable
from cema.formats.draw import HEADER, MAX_BYTES, Draw, decode_draws
from cema.formats.image import decode_image
from cema.formats.image_check import Inspected
from cema.formats.sample import CONTENT_TYPE, Sample, Verdict, check_sample, decode_samples

__all__ = ["router"]

# The pixels of one request, in images of the largest size.
REQUEST_IMAGES = 4
# Images that must be decoded to be checked, at one time and in all requests: each takes limits.image_pixels x 3 bytes.
_DECODING = threading.BoundedSemaphore(4)
# An id has 64 characters; of anything else, so much is repeated in the verdict.
LONGEST_ID = 80
LONGEST_REASON = 300

log = logging.getLogger(__name__)
router = APIRouter(tags=["samples"], route_class=DirectRoute)

# Read by hand, within limits, and so described by hand.
_BODY: dict[str, Any] = {
    **BY_TOKEN,
    "parameters": [
        {
            "name": HEADER,
            "in": "header",
            "required": False,
            "description": "Which samples were drawn at random (docs/protocol.md, section 2.2).",
            "schema": {"type": "string", "maxLength": MAX_BYTES},
        }
    ],
    "requestBody": {
        "required": True,
        "description": "An upload frame (docs/protocol.md, section 1.4), without Content-Encoding.",
        "content": {CONTENT_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    },
}
_ERRORS = errors(
    *UPLOADER_ERRORS,
    "unsupported_media_type",
    "busy",
    "timeout",
    "stopping",
    "disconnected",
    "too_large",
    "malformed",
    "too_many_samples",
    "backlog_full",
    "too_fast",
    "store_full",
    "store_unavailable",
)


# The model describes the verdicts and does not check them again: this is the path that has to be fast.
@router.post(
    "/v1/cohorts/{cohort}/samples",
    summary="Upload samples",
    response_model=Verdicts,
    response_description="A verdict for each sample.",
    responses={200: {"headers": headers("Cache-Control")}, **_ERRORS},
    openapi_extra=_BODY,
)
async def upload_samples(cohort: CohortName, request: Request) -> Response:
    """A sample with the verdict `stored` or `duplicate` is on disk. Sent again, nothing is stored twice."""
    service: Service = request.app.state.service
    device = await service.at_once(uploader, cohort, bearer(request), service)
    service.tokens.seen(device)
    _check_media_type(request)
    with service.receiving(device.name, announced_bytes(request)):
        body = await read_body(request, service.limits.body_bytes)
        service.history.add(cohort, {"bytes.up": (1, len(body))})
        drawn = request.headers.get(HEADER, "")
        async with service.storing():
            verdicts = await run_in_threadpool(_ingest, service, cohort, device, body, drawn)
    service.rates.keep_soon()
    content = msgspec.json.encode({"verdicts": verdicts})
    return Response(content, media_type="application/json", headers=NO_STORE)


def _check_media_type(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if kind != CONTENT_TYPE or encoding != "identity":
        raise ApiError(
            "unsupported_media_type",
            f"expected {CONTENT_TYPE}, not encoded, got {kind or 'no Content-Type'} ({encoding})",
            f"send Content-Type: {CONTENT_TYPE} and no Content-Encoding",
        )


def _ingest(service: Service, cohort: str, device: Device, body: bytes, drawn: str) -> list[Verdict]:
    """Check and store one request's samples, as far as the device may send them now."""
    samples = _decode(body, service.limits.batch_samples)
    draws = _draws(drawn, len(samples))
    with service.rates.charged(device, len(samples), len(body)) as refusal:
        if refusal is None:
            return _store(service, cohort, device.name, samples, draws)
    service.metrics.limited(cohort, refusal.limit)
    raise service.later("too_fast", refusal.message, seconds=refusal.seconds)


def _store(
    service: Service, cohort: str, device: str, samples: list[Sample], draws: Mapping[int, Draw]
) -> list[Verdict]:
    """Check and store samples; whatever gets a verdict is on disk."""
    good, rejected, reasons = _check(samples, service.limits)
    try:
        stored = iter(
            service.store.put(
                cohort,
                good,
                device=device,
                now=time.time(),
                max_backlog=service.limits.backlog_samples,
                rejected=reasons,
                **_good_draws(service.store, draws, rejected),
            )
        )
    except UploadTooLarge as error:
        raise ApiError("too_large", str(error), "send fewer samples in a request") from error
    except BacklogFull as error:
        raise service.later("backlog_full", str(error)) from error
    except StoreFull as error:
        raise service.later("store_full", str(error)) from error
    except StoreUnavailable as error:
        # Locked for too long, closed, or the disk fails: nothing was stored, and the device has everything.
        report(log, events.SAMPLES_NOT_STORED, error=str(error))
        raise service.later("store_unavailable", "the store cannot be written now") from error
    verdicts = [rejected[i] if i in rejected else next(stored) for i in range(len(samples))]
    service.history.add(cohort, _measures(samples, verdicts, draws))
    return verdicts


def _measures(samples: list[Sample], verdicts: list[Verdict], draws: Mapping[int, Draw]) -> Measures:
    """Return what the history keeps of an upload: of all new samples, and of those that a selection has chosen."""
    new = [i for i, verdict in enumerate(verdicts) if verdict.verdict == "stored"]
    chosen = [samples[i].entropy for i in new if i not in draws or draws[i].selected]
    return {"samples": (len(new), len(new)), "entropy": (len(chosen), sum(chosen))} if new else {}


def _decode(body: bytes, most: int) -> list[Sample]:
    try:
        # No limit here, so that too many samples are told apart from a malformed frame.
        samples = decode_samples(body, max_samples=max(1, len(body)))
    except FormatError as error:
        raise ApiError(
            "malformed", str(error), "send a frame as cema.formats.sample.encode_samples makes it"
        ) from error
    if len(samples) > most:
        raise ApiError(
            "too_many_samples",
            f"a request may hold {most} samples, {len(samples)} came",
            "send fewer samples in a request",
        )
    return samples


def _draws(header: str, samples: int) -> dict[int, Draw]:
    """Return how samples were drawn at random, by position."""
    if not header:
        return {}
    try:
        return decode_draws(header, samples=samples)
    except FormatError as error:
        raise ApiError(
            "malformed",
            str(error),
            f"send {HEADER} as cema.formats.draw.encode_draws makes it, or leave it out",
        ) from error


def _good_draws(store: Store, draws: Mapping[int, Draw], rejected: Collection[int]) -> dict[str, Any]:
    """Return the draws of those samples that go to the store, by their positions there, if it keeps draws."""
    if not draws or draws_of(store) is None:
        return {}
    good = {at: draw for at, draw in draws.items() if at not in rejected}
    return {"draws": {at - sum(bad < at for bad in rejected): draw for at, draw in good.items()}}


def _check(
    samples: list[Sample], limits: LimitsConfig
) -> tuple[list[Sample], dict[int, Verdict], Counter[str]]:
    """Return the good samples, the verdicts on the others by position, and how many there are of each reason."""
    good: list[Sample] = []
    rejected: dict[int, Verdict] = {}
    reasons: Counter[str] = Counter()
    pixels = 0
    for i, sample in enumerate(samples):
        try:
            seen = check_sample(sample)
            # By the header, before anything of that size is allocated.
            pixels += check_size(seen, limits)
            if pixels > REQUEST_IMAGES * limits.image_pixels:
                raise ApiError(
                    "too_large",
                    f"the images of one request may have {REQUEST_IMAGES * limits.image_pixels} pixels together",
                    "send fewer samples in a request, or smaller images",
                )
            if not seen.plain:
                with _DECODING:
                    decode_image(sample.image)
        except (FormatError, ImageError) as error:
            rejected[i] = _rejection(sample, error)
            reasons["image" if isinstance(error, ImageError) else "format"] += 1
        else:
            good.append(sample)
    return good, rejected, reasons


def check_size(image: Inspected, limits: LimitsConfig) -> int:
    """Return how many pixels an image has; too many, or too long and thin an image, is an ImageError.

    A model's input is some 224 pixels a side, and what is longer is cut off: an image of one line and a million
    columns costs memory, and teaches nothing.
    """
    height, width = image.height, image.width
    if height * width > limits.image_pixels:
        raise ImageError(
            f"expected at most {limits.image_pixels} pixels (limits.image_pixels), got {height} x {width}; set "
            "upload.max_side on the device"
        )
    if max(height, width) > limits.image_aspect * min(height, width):
        raise ImageError(
            f"expected an image at most {limits.image_aspect:g} times as long as wide (limits.image_aspect), got "
            f"{height} x {width}; cut it before it is predicted"
        )
    return height * width


def _rejection(sample: Sample, error: Exception) -> Verdict:
    """Return the verdict on a bad sample, whose id may be of any length."""
    name = shortened(sample.id, LONGEST_ID)
    return Verdict(id=name, verdict="rejected", reason=shortened(str(error), LONGEST_REASON))
