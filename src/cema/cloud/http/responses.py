"""What the OpenAPI document says of an endpoint's responses beside their models: errors, headers, binary bodies."""

from __future__ import annotations

from typing import Any

from cema.cloud.http.errors import ERRORS
from cema.cloud.http.schemas import ErrorBody

__all__ = ["EVERY_ENDPOINT", "Responses", "errors", "headers", "inlined"]

Responses = dict[int | str, dict[str, Any]]
"""The parameter `responses` of a route: a description by status."""

_HEADERS = {
    "CEMA-Base": "The base model that devices are to have: to a sender that named its own, once there was "
    "more than one.",
    "Cache-Control": "Whether the response may be kept.",
    "Content-Range": "Which bytes of how many.",
    "Content-Security-Policy": "Nothing in it may run, or load anything.",
    "ETag": "The entity tag, for If-None-Match.",
    "Retry-After": "Seconds to wait before the next try.",
    "Set-Cookie": "The session's cookie: HttpOnly, SameSite=Strict.",
    "WWW-Authenticate": "Always `Bearer`.",
    "X-Content-Type-Options": "Always `nosniff`.",
}
_OPTIONAL = {"CEMA-Base"}
_MORE_HEADERS = {401: ("WWW-Authenticate",), 429: ("Retry-After",), 503: ("Retry-After",)}


def headers(*names: str) -> dict[str, Any]:
    """Describe the headers of a response.

    Examples
    --------
    >>> headers("Retry-After")
    {'Retry-After': {'description': 'Seconds to wait before the next try.', 'schema': {'type': 'string'}}}
    """
    return {
        name: {"description": _HEADERS[name], "schema": {"type": "string"}}
        | ({"required": False} if name in _OPTIONAL else {})
        for name in names
    }


def errors(*codes: str) -> Responses:
    """Describe the errors that an endpoint can respond with.

    Parameters
    ----------
    *codes
        Codes of `ERRORS`.

    Returns
    -------
    dict
        For each status: what each code means, the error's schema with these codes, and the headers.
    """
    found: dict[int, list[str]] = {}
    for code in codes:
        found.setdefault(ERRORS[code][0], []).append(code)
    return {
        status: {
            "model": ErrorBody,
            "description": " ".join(f"`{code}`: {ERRORS[code][1]}" for code in here),
            "headers": headers("Cache-Control", *_MORE_HEADERS.get(status, ())),
            "content": {"application/json": {"schema": _with_codes(here)}},
        }
        for status, here in sorted(found.items())
    }


def _with_codes(codes: list[str]) -> dict[str, Any]:
    """Narrow the error's schema, beside whose reference this is put, to these codes."""
    return {"properties": {"error": {"properties": {"code": {"enum": codes}}}}}


EVERY_ENDPOINT: Responses = {
    **errors("internal"),
    "default": {"model": ErrorBody, "description": "`http_error`: whatever else the server refuses."},
}
"""What every endpoint can respond with."""


def inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON schema with its definitions where they are used: a body that is described by hand has no others."""
    definitions = schema.get("$defs", {})

    def put(value: Any) -> Any:
        if isinstance(value, list):
            return [put(each) for each in value]
        if not isinstance(value, dict):
            return value
        name = str(value.get("$ref", "")).removeprefix("#/$defs/")
        own = {key: put(each) for key, each in value.items() if key not in {"$defs", "$ref"}}
        return put(definitions[name]) | own if name else own

    found: dict[str, Any] = put(schema)
    return found
