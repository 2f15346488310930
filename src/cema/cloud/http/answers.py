"""JSON that nobody keeps: how most endpoints answer people."""

from __future__ import annotations

import msgspec
from fastapi.responses import Response

from cema.cloud.http.caching import NO_STORE

__all__ = ["json_answer"]


def json_answer(content: object, status: int = 200) -> Response:
    """Return an answer of JSON with ``Cache-Control: no-store``.

    Parameters
    ----------
    content : object
        What msgspec encodes: structs, mappings, sequences, numbers and texts.
    status : int, default 200
        The HTTP status.
    """
    return Response(msgspec.json.encode(content), status, media_type="application/json", headers=NO_STORE)
