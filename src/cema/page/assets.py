"""The files of the operators' page, as they are served: names with hashes, gzip, the index and its policy.

A file ``format.js`` of the folder ``static`` (or of ``static/vendor``) is served as ``/page/format.js?v=HASH``. Modules
import each other by bare names (``cema/format.js``, ``preact``, ``htm``, ``uplot``), which the import map in the index
turns into those addresses. So a file that has changed has another address, and every file may be kept for ever.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final, NamedTuple

__all__ = [
    "BARE_NAMES",
    "CONTENT_TYPES",
    "Asset",
    "assets",
    "content_security_policy",
    "filled",
    "import_map",
    "index",
    "inline_hash",
]

CONTENT_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
"""The content type of a file by the end of its name; files that end otherwise are not served."""

BARE_NAMES: Final = {
    "htm.js": "htm",
    "preact.js": "preact",
    "preact-hooks.js": "preact/hooks",
    "uplot.js": "uplot",
}
"""The names by which modules import the libraries."""

_PLACE: Final = re.compile(r"\{\{(\w+)\}\}")
_INDEX: Final = "index.html"
_STYLES: Final = ("uplot.css", "base.css", "parts.css", "views.css")


class Asset(NamedTuple):
    """One file as it is served.

    Attributes
    ----------
    name : str
        Without a folder.
    content_type : str
    body : bytes
    gzipped : bytes
        The same, for clients that accept gzip.
    digest : str
        The first 16 hexadecimal digits of the SHA-256 of `body`: the ``v`` of its address, and good as an ETag.
    """

    name: str
    content_type: str
    body: bytes
    gzipped: bytes
    digest: str

    @property
    def path(self) -> str:
        """The address, from the page's own: a proxy may put both below a path of its own."""
        return f"./page/{self.name}?v={self.digest}"

    @property
    def bare_name(self) -> str:
        """The name by which modules import it."""
        return BARE_NAMES.get(self.name, f"cema/{self.name}")


@cache
def assets() -> Mapping[str, Asset]:
    """Return every file but the index, by its name.

    Examples
    --------
    >>> assets()["main.js"].content_type
    'text/javascript; charset=utf-8'
    """
    static = files("cema.page") / "static"
    found = [*static.iterdir(), *(static / "vendor").iterdir()]
    served = {
        entry.name: entry for entry in found if entry.is_file() and _type(entry.name) and entry.name != _INDEX
    }
    return {name: _asset(name, _read(entry)) for name, entry in sorted(served.items())}


def _type(name: str) -> str | None:
    return CONTENT_TYPES.get(name[name.rfind(".") :])


def _read(entry: Traversable) -> bytes:
    return entry.read_bytes()


def _asset(name: str, body: bytes) -> Asset:
    # No moment in the archive: the same file gives the same bytes.
    gzipped = gzip.compress(body, mtime=0)
    return Asset(
        name, CONTENT_TYPES[name[name.rfind(".") :]], body, gzipped, hashlib.sha256(body).hexdigest()[:16]
    )


def import_map(addresses: Mapping[str, str]) -> str:
    """Return the text of an import map.

    Parameters
    ----------
    addresses : mapping of str to str
        Where the modules are, by the names of their files.
    """
    known = assets()
    imports = {known[name].bare_name: address for name, address in addresses.items()}
    return json.dumps({"imports": imports}, separators=(",", ":")).replace("<", "\\u003c")


def filled(template: str, values: Mapping[str, str]) -> bytes:
    """Return a page: the template with each ``{{name}}`` replaced by text that is HTML already."""
    # In one pass: what a value says is never taken for a place in the template.
    return _PLACE.sub(lambda place: values[place[1]], template).encode()


def inline_hash(text: str) -> str:
    """Return what a policy calls an inline script: the base64 of the SHA-256 of its text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _modules() -> dict[str, Asset]:
    """Return the modules of the page; reports have one of their own, and the theme is no module."""
    left_out = {"report.js", "theme.js"}
    return {name: asset for name, asset in assets().items() if name.endswith(".js") and name not in left_out}


@cache
def _map() -> str:
    return import_map({name: asset.path for name, asset in _modules().items()})


@cache
def index() -> Asset:
    """Return the page itself, for ``/``: serve it with `content_security_policy` and ``Cache-Control: no-cache``."""
    known = assets()
    # All modules are asked for at once, not one after another as each names the next.
    preloads = [
        f'<link rel="modulepreload" href="{html.escape(asset.path)}">' for asset in _modules().values()
    ]
    styles = [f'<link rel="stylesheet" href="{html.escape(known[name].path)}">' for name in _STYLES]
    values = {
        "icon": html.escape(known["icon.svg"].path),
        "theme": html.escape(known["theme.js"].path),
        "styles": "\n".join(styles),
        "map": _map(),
        "preloads": "\n".join(preloads),
        "main": html.escape(known["main.js"].path),
    }
    template = (files("cema.page") / "static" / _INDEX).read_text(encoding="utf-8")
    return _asset(_INDEX, filled(template, values))


@cache
def content_security_policy() -> str:
    """Return the value of the header ``Content-Security-Policy`` for the page: its own files, and nothing inline.

    The import map is the one inline script, and is named by its hash. Scripts may still set single properties of
    an element's style, which the policy does not concern.
    """
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'self' {inline_hash(_map())}",
            "style-src 'self'",
            "img-src 'self' blob: data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
