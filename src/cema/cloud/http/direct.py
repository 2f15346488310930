"""Routes of endpoints that are called so often that resolving their parameters is a large part of their cost."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

__all__ = ["DirectRoute"]


class DirectRoute(APIRoute):
    """Calls its endpoint with the cohort of the path and the request, and nothing else.

    What else the endpoint declares, such as a header, is for the description of the interface alone: the endpoint has
    to read it off the request by hand.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        endpoint = self.endpoint

        async def answer(request: Request) -> Response:
            response: Response = await endpoint(request.path_params["cohort"], request)
            return response

        return answer
