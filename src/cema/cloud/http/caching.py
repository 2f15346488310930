"""Which responses may be kept, and for how long: ``Cache-Control`` and entity tags."""

from __future__ import annotations

import re

__all__ = ["FOREVER", "NO_CACHE", "NO_STORE", "matches"]

NO_CACHE = {"Cache-Control": "no-cache"}
"""Keep it, and ask before each use whether it has changed."""
NO_STORE = {"Cache-Control": "no-store"}
"""Do not keep it."""
FOREVER = {"Cache-Control": "public, max-age=31536000, immutable"}
"""Keep it: what is at this address never changes."""

_TAG = re.compile(r'\s*(?:W/)?("[^"]*")\s*(?:,|$)')


def matches(if_none_match: str | None, etag: str) -> bool:
    """Tell whether an ``If-None-Match`` header names an entity tag (weak comparison, RFC 9110 13.1.2).

    Parameters
    ----------
    if_none_match
        The header's value, or None when the request has none.
    etag
        The present entity tag, in its quotation marks.

    Examples
    --------
    >>> matches('"old", W/"new"', '"new"'), matches("*", '"new"'), matches(None, '"new"')
    (True, True, False)
    """
    if if_none_match is None:
        return False
    return if_none_match.strip() == "*" or etag in _TAG.findall(if_none_match)
