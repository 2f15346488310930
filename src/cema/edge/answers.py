"""What an answer that is not the expected one means, in words; whoever gave it, and whatever is in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urljoin, urlsplit

import msgspec

from cema._util.names import on_one_line

__all__ = ["explain", "is_web_page", "one_line", "page_title"]

_LONGEST = 300
_REFUSED = 403
_REMEDIES = {
    401: "check cloud.token or cloud.token_file",
    403: "the token is revoked, has expired, or is for another cohort",
    404: "check cloud.url and cloud.cohort",
    407: "the proxy wants a user and a password: put them into https_proxy or http_proxy",
    511: "log in to the network",
}
# A tag, and text behind it: a payload may begin with the same two bytes, but has zeros among the next six.
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<[!?a-z][^\0]{6}", re.IGNORECASE)


class _Error(msgspec.Struct):
    code: str = ""
    message: str = ""
    remedy: str = ""


class _ErrorBody(msgspec.Struct):
    error: _Error


def one_line(text: str, longest: int = _LONGEST) -> str:
    """Return foreign text for a message or a log: one line, printable, and not too long."""
    line = on_one_line(text[: 4 * longest])
    return line if len(line) <= longest else f"{line[:longest]}..."


def is_web_page(body: bytes) -> bool:
    """Return whether a body is a web page, and so no answer of the cloud."""
    return _PAGE.match(body) is not None


def page_title(body: bytes) -> str:
    """Return what a web page calls itself, in quotes and with a space before it; empty without a title."""
    found = re.search(rb"<title[^>]*>([^<]{1,400})", body[:65536], re.IGNORECASE)
    title = one_line(found[1].decode("utf-8", "replace"), 80) if found else ""
    return f" {title!r}" if title else ""


def explain(status: int, headers: Mapping[str, str], body: bytes, url: str, path: str) -> str:
    """Put an unsuccessful answer into one line.

    Parameters
    ----------
    status : int
    headers : Mapping of str to str
        Names in lower case.
    body : bytes
        Read only to show what it says: it may be anything.
    url : str
        What was asked.
    path : str
        The part of it behind the cloud's address.
    """
    if 300 <= status < 400 and "location" in headers:
        return _redirection(url, path, headers["location"])
    words = _words(body)
    # A refusal of the cloud says which of several reasons it has, and what to do about that one.
    told = status == _REFUSED and len(words) == 2 and words[1]
    parts = [*words, "" if told else _REMEDIES.get(status, "")]
    return "; ".join(part for part in parts if part) or "no explanation"


def _words(body: bytes) -> list[str]:
    try:
        error = msgspec.json.decode(body, type=_ErrorBody).error
        return [one_line(error.message or error.code), one_line(error.remedy)]
    except (msgspec.MsgspecError, ValueError, RecursionError):  # ValueError: UTF-8 that is none
        pass
    if is_web_page(body):
        return [f"a web page{page_title(body)}"]
    return [one_line(body[:_LONGEST].decode("utf-8", "replace"), 200)]


def _redirection(url: str, path: str, location: str) -> str:
    """Say where a redirect points, and what to set; it is never followed, for the token would go along."""
    try:
        target = urljoin(url, location.strip())
        parts = urlsplit(target)
        whole = parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        whole = False
    if not whole:
        return f"the cloud redirects to {one_line(location)!r}, which is no address; check cloud.url"
    here = f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")
    if here.endswith(path):
        base = one_line(here.removesuffix(path))
        if base != url.removesuffix(path):
            return f"the cloud redirects to {base}; set cloud.url to that"
    return (
        f"the cloud redirects to {one_line(target)}; if that is the cloud, set cloud.url to that, "
        "and if it is the login page of a network, log in there"
    )
