"""The documents that say which keys devices trust."""

from __future__ import annotations

import hashlib

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from cema.cloud.http.access import MEMBER_ERRORS, CohortName, member
from cema.cloud.http.caching import NO_CACHE, matches
from cema.cloud.http.responses import errors, headers
from cema.cloud.http.schemas import KeysDocuments
from cema.cloud.http.service import TheService
from cema.cloud.http.updates import IfNoneMatch
from cema.cloud.store.keys import KeysStore
from cema.formats.keyring import encode_documents

__all__ = ["router"]

router = APIRouter(prefix="/v1/cohorts/{cohort}", tags=["updates"])

_TAGGED = headers("ETag", "Cache-Control")


@router.get(
    "/keys",
    summary="Ask which keys to trust",
    response_model=KeysDocuments,
    response_description="All keys documents of the cohort, by rising serial number.",
    responses={
        200: {"headers": _TAGGED},
        204: {
            "description": "There is none: devices trust the keys of their bundles.",
            "headers": headers("Cache-Control"),
        },
        304: {"description": "The sender has them already.", "headers": _TAGGED},
        **errors(*MEMBER_ERRORS),
    },
    dependencies=[Depends(member)],
)
def keys_documents(cohort: CohortName, service: TheService, if_none_match: IfNoneMatch = None) -> Response:
    """Each is signed by a key that devices trusted before it; the bytes go out as they were signed."""
    store = service.store
    documents = store.keys_documents(cohort) if isinstance(store, KeysStore) else []
    if not documents:
        return Response(status_code=204, headers=NO_CACHE)
    body = encode_documents(documents)
    tagged = {**NO_CACHE, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}
    if matches(if_none_match, tagged["ETag"]):
        return Response(status_code=304, headers=tagged)
    return Response(body, media_type="application/json", headers=tagged)
