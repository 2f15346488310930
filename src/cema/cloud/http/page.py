"""The page of those who run the service: its files."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from cema.cloud.http.caching import FOREVER, NO_CACHE, matches
from cema.cloud.http.errors import ApiError
from cema.page.assets import Asset, assets, content_security_policy, index

__all__ = ["router"]

router = APIRouter(tags=["page"])

_SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


# Not in the description of the API: these are for browsers.
@router.get("/", include_in_schema=False)
async def page(request: Request) -> Response:
    """Return the page; it asks for all else itself."""
    more = {**NO_CACHE, "Content-Security-Policy": content_security_policy()}
    return _file(request, index(), more)


@router.get("/page/{name}", include_in_schema=False)
async def page_file(name: str, request: Request) -> Response:
    """Return a file of the page: under the digest that the page names it by it may be kept for ever."""
    asset = assets().get(name)
    if asset is None:
        raise ApiError("not_found", "the page has no such file", "load the page again")
    return _file(request, asset, FOREVER if request.query_params.get("v") == asset.digest else NO_CACHE)


def _file(request: Request, asset: Asset, more: dict[str, str]) -> Response:
    etag = f'"{asset.digest}"'
    found = {**_SAFE, **more, "ETag": etag, "Vary": "Accept-Encoding"}
    if matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=found)
    if _takes_gzip(request.headers.get("accept-encoding", "")):
        found["Content-Encoding"] = "gzip"
        return Response(asset.gzipped, headers=found, media_type=asset.content_type)
    return Response(asset.body, headers=found, media_type=asset.content_type)


def _takes_gzip(header: str) -> bool:
    """Tell whether an ``Accept-Encoding`` names gzip; whoever gives it the weight 0 gets it plain."""
    for each in header.lower().split(","):
        name, _, weight = each.strip().partition(";")
        if name.strip() == "gzip":
            return weight.replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False
