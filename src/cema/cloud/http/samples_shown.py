"""For operators: the samples that came last, and their images unless the cohort is private."""

from __future__ import annotations

import io
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from cema._util.checks import is_sha256
from cema.cloud.http.access import OPERATOR_ERRORS, CohortName, operator
from cema.cloud.http.answers import json_answer
from cema.cloud.http.bundle_facts import BundleFacts
from cema.cloud.http.caching import NO_STORE
from cema.cloud.http.errors import ApiError
from cema.cloud.http.responses import errors, headers
from cema.cloud.http.samples_schemas import ShownSamples
from cema.cloud.http.service import Service, TheService
from cema.cloud.store.data import NewestSample, data_of, newest_samples
from cema.errors import ImageError
from cema.formats.image import decode_image
from cema.formats.image_header import image_kind

__all__ = ["router", "shown"]

router = APIRouter(prefix="/v1/cohorts/{cohort}/samples", tags=["data"])

_NOT_KEPT = {"headers": headers("Cache-Control")}
# An image may come from anybody who has a device's token: a browser is to take it for pixels and nothing else.
_HARMLESS = {
    **NO_STORE,
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_KINDS = {"JPEG": "image/jpeg", "PNG": "image/png"}
_BYTES: dict[str, Any] = {
    kind: {"schema": {"type": "string", "format": "binary"}} for kind in _KINDS.values()
}


@router.get(
    "",
    summary="List the samples that came last",
    response_model=ShownSamples,
    response_description="The newest first.",
    responses={200: _NOT_KEPT, **errors("invalid_request", *OPERATOR_ERRORS)},
    dependencies=[Depends(operator)],
)
def list_samples(
    cohort: CohortName,
    service: TheService,
    limit: Annotated[int, Query(ge=1, le=1000, description="So many of the newest, at most.")] = 60,
    device: Annotated[
        str | None, Query(max_length=64, description="Who sent them: among the newest 20,000 of the cohort.")
    ] = None,
) -> Response:
    """What the device, the foundation model and people take each for."""
    found = newest_samples(service.store, cohort, limit=limit, device=device)
    facts = service.bundle_facts(cohort)
    told = {"private": service.private(cohort), "samples": [shown(each, facts) for each in found]}
    return json_answer(told)


def shown(newest: NewestSample, facts: BundleFacts) -> dict[str, Any]:
    """Return what is told of a sample, JSON-able."""
    sample = newest.sample
    return {
        "id": sample.id,
        "device": sample.device,
        "label": sample.label,
        "label_name": facts.name_of(sample.label),
        "teacher": sample.teacher,
        "teacher_name": facts.name_of(sample.teacher),
        "truth": sample.truth,
        "truth_name": facts.name_of(sample.truth),
        "entropy": sample.entropy,
        "version": sample.version,
        "captured_at": sample.captured_at,
        "received_at": sample.received_at,
        "bytes": sample.bytes,
        "waiting": sample.waiting,
        "drawn": newest.drawn,
    }


@router.get(
    "/{id}/image",
    summary="Show the image of a sample",
    response_class=Response,
    response_description="JPEG or PNG, as it was sent; one that was sent raw as PNG.",
    responses={
        200: {
            "headers": headers("Cache-Control", "X-Content-Type-Options", "Content-Security-Policy"),
            "content": _BYTES,
        },
        **errors(*OPERATOR_ERRORS, "private", "unknown_sample"),
    },
    dependencies=[Depends(operator)],
)
async def sample_image(cohort: CohortName, id: str, service: TheService) -> Response:
    """One image, by its SHA-256; of a private cohort none."""
    # Whoever waits for another image holds no thread: uploads need them too.
    async with service.showing:
        return await run_in_threadpool(_image, cohort, id, service)


def _image(cohort: str, id: str, service: Service) -> Response:
    if service.private(cohort):
        raise ApiError(
            "private",
            f"the images of cohort {cohort!r} are shown to nobody",
            "look at the numbers; whoever runs the cloud has set private = true for the cohort in cloud.toml",
        )
    found = data_of(service.store).data_sample(cohort, id) if is_sha256(id) else None
    image = None if found is None else service.store.images([found.seq]).get(found.seq)
    if image is None:
        raise ApiError(
            "unknown_sample", "the cohort has no sample of that id, or no longer", "see the list of samples"
        )
    kind = image_kind(image)
    if kind != "raw":
        return Response(image, media_type=_KINDS[kind], headers=_HARMLESS)
    return Response(_as_png(image), media_type="image/png", headers=_HARMLESS)


def _as_png(image: bytes) -> bytes:
    from PIL import Image  # noqa: PLC0415 - only where somebody looks at raw images

    try:
        pixels = decode_image(image)
    except ImageError as error:
        raise ApiError(
            "unknown_sample",
            f"the image cannot be decoded: {error}",
            "the worker counts it as unreadable",
        ) from error
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
