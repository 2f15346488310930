"""Which responses may be kept, and for how long: ``Cache-Control`` and entity tags."""

from __future__ import annotations

__all__ = ["FOREVER", "LONGEST_LIST", "NO_CACHE", "NO_STORE", "matches"]

NO_CACHE = {"Cache-Control": "no-cache"}
"""Keep it, and ask before each use whether it has changed."""
NO_STORE = {"Cache-Control": "no-store"}
"""Do not keep it."""
FOREVER = {"Cache-Control": "public, max-age=31536000, immutable"}
"""Keep it: what is at this address never changes."""

# A device sends one tag of some 80 characters. A longer list is no list of ours, and is not read.
LONGEST_LIST = 4096


def matches(if_none_match: str | None, etag: str) -> bool:
    """Tell whether an ``If-None-Match`` header names an entity tag (weak comparison, RFC 9110 13.1.2).

    Parameters
    ----------
    if_none_match
        The header's value, or None when the request has none. One of more than `LONGEST_LIST` characters matches
        nothing: the whole response is sent.
    etag
        The present entity tag, in its quotation marks; it holds no comma.

    Examples
    --------
    >>> matches('"old", W/"new"', '"new"'), matches("*", '"new"'), matches(None, '"new"')
    (True, True, False)
    """
    if if_none_match is None or len(if_none_match) > LONGEST_LIST:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return tags == ["*"] or etag in tags
