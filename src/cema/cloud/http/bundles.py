"""Another base model: the notice that tells devices of it, and the files of its bundle."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Depends, Header, Path
from fastapi.responses import Response, StreamingResponse

from cema.cloud.bundle_folder import BundleFolder
from cema.cloud.http.access import MEMBER_ERRORS, OPERATOR_ERRORS, CohortName, member, operator
from cema.cloud.http.caching import FOREVER, NO_CACHE, NO_STORE, matches
from cema.cloud.http.errors import ApiError
from cema.cloud.http.responses import errors, headers
from cema.cloud.http.schemas import BaseModels, Envelope
from cema.cloud.http.service import Service, TheService
from cema.cloud.http.updates import IfNoneMatch
from cema.cloud.store.bases import BaseStore
from cema.cloud.store.told_bases import bases_told
from cema.formats.bundle_notice import NoticeFile, read_notice

__all__ = ["router"]

router = APIRouter(prefix="/v1/cohorts/{cohort}", tags=["updates"])

_TAGGED = headers("ETag", "Cache-Control")
_BYTES: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_RANGE = re.compile(r"\s*bytes\s*=\s*(\d{1,18})\s*-\s*(\d{1,18})?\s*", re.ASCII)
_PIECE = 1 << 18

Digest = Annotated[
    str,
    Path(
        description="SHA-256 of the file, from the notice.",
        json_schema_extra={"pattern": "^[0-9a-f]{64}$"},
    ),
]
RangeHeader = Annotated[
    str | None,
    Header(alias="Range", description="`bytes=FIRST-LAST` or `bytes=FIRST-`; another is ignored."),
]


@router.get(
    "/bundle",
    summary="Ask for the bundle that devices are to have",
    response_model=Envelope,
    response_description="The newest bundle notice.",
    responses={
        200: {"headers": _TAGGED},
        204: {
            "description": "There is none: devices keep the bundle that they were provisioned with.",
            "headers": headers("Cache-Control"),
        },
        304: {"description": "The sender has it already.", "headers": _TAGGED},
        **errors(*MEMBER_ERRORS),
    },
    dependencies=[Depends(member)],
)
def bundle_notice(cohort: CohortName, service: TheService, if_none_match: IfNoneMatch = None) -> Response:
    """It is signed as updates are (docs/protocol.md, section 6.2); the bytes go out as they were signed."""
    found = service.store.bundle_notice(cohort) if isinstance(service.store, BaseStore) else None
    if found is None:
        return Response(status_code=204, headers=NO_CACHE)
    serial, envelope = found
    tagged = {**NO_CACHE, "ETag": f'"notice-{serial}"'}
    if matches(if_none_match, tagged["ETag"]):
        return Response(status_code=304, headers=tagged)
    return Response(envelope, media_type="application/json", headers=tagged)


@router.get(
    "/bases",
    summary="List base models and who has which",
    tags=["operations"],
    response_description="The base models of the cohort, oldest first.",
    responses={200: {"headers": headers("Cache-Control")}, **errors(*OPERATOR_ERRORS)},
    dependencies=[Depends(operator)],
)
def bases(cohort: CohortName, service: TheService, response: Response) -> BaseModels:
    """How far devices are on their way to the bundle that they are to have."""
    response.headers.update(NO_STORE)
    return BaseModels.model_validate(bases_told(service.store, cohort))


@router.get(
    "/bundles/{digest}",
    summary="Fetch a file of the bundle",
    response_class=Response,
    response_description="The file.",
    responses={
        200: {"headers": _TAGGED, "content": _BYTES},
        206: {"description": "A part of it.", "headers": headers("ETag", "Content-Range"), "content": _BYTES},
        304: {"description": "The sender has it already.", "headers": _TAGGED},
        **errors(*MEMBER_ERRORS, "unknown_bundle"),
    },
    dependencies=[Depends(member)],
)
def bundle_file(
    cohort: CohortName,
    digest: Digest,
    service: TheService,
    if_none_match: IfNoneMatch = None,
    range_: RangeHeader = None,
) -> Response:
    """The bytes whose SHA-256 is `digest`, of a file that the newest notice lists; all of them, or one range."""
    file, path = _find(cohort, digest, service)
    tagged = {**FOREVER, "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
    if matches(if_none_match, tagged["ETag"]):
        return Response(status_code=304, headers=tagged)
    part = _part(range_, file.bytes)
    service.history.add(cohort, {"bytes.down": (1, part.size if part else file.bytes)})
    if part is None:
        return _stream(path, _Part(0, file.bytes), 200, tagged)
    tagged["Content-Range"] = f"bytes {part.first}-{part.first + part.size - 1}/{file.bytes}"
    return _stream(path, part, 206, tagged)


class _Part(NamedTuple):
    first: int
    size: int


def _find(cohort: str, digest: str, service: Service) -> tuple[NoticeFile, FilePath]:
    found = service.store.bundle_notice(cohort) if isinstance(service.store, BaseStore) else None
    files = read_notice(found[1]).files if found is not None else ()
    file = next((file for file in files if file.sha256 == digest), None)
    path = BundleFolder(FilePath(service.engine.config.data)).file(digest)
    if file is None or not path.is_file():
        raise ApiError(
            "unknown_bundle",
            f"the bundle of cohort {cohort!r} has no file {digest[:64]!r}",
            "ask for the bundle's notice again: only the files of the newest are kept",
        )
    return file, path


def _part(header: str | None, size: int) -> _Part | None:
    """Return the range that is asked for; None for all of the file, also where the range cannot be had."""
    found = _RANGE.fullmatch(header or "")
    if found is None:
        return None
    first, last = int(found[1]), min(int(found[2] or size - 1), size - 1)
    return _Part(first, last - first + 1) if first <= last else None


def _stream(path: FilePath, part: _Part, status: int, tagged: dict[str, str]) -> Response:
    stream = path.open("rb")  # opened now: it may be removed while it is sent

    def pieces() -> Iterator[bytes]:
        with stream:
            stream.seek(part.first)
            left = part.size
            while left and (piece := stream.read(min(left, _PIECE))):
                left -= len(piece)
                yield piece

    sized = {**tagged, "Content-Length": str(part.size)}
    return StreamingResponse(pieces(), status, media_type="application/octet-stream", headers=sized)
