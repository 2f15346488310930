"""The HTTP application: samples come in, updates go out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from cema._util.version import __version__
from cema.cloud.http import (
    acts,
    bundles,
    data,
    devices,
    history,
    keys,
    operations,
    overview,
    page,
    reports,
    samples_shown,
    sessions,
    updates,
    uploads,
    versions,
)
from cema.cloud.http.errors import install_errors
from cema.cloud.http.metrics import RequestTimer
from cema.cloud.http.responses import EVERY_ENDPOINT
from cema.cloud.http.service import Service
from cema.cloud.worker.supervisor import Engine

__all__ = ["create_app"]

_DESCRIPTION = """Devices upload the samples that they have selected, and fetch updates of their model.

docs/protocol.md says what the bodies hold and what a device has to do. Every error has the same JSON form."""
_TAGS = [
    {"name": "samples", "description": "From devices to the cloud."},
    {"name": "updates", "description": "From the cloud to devices."},
    {"name": "acts", "description": "What an operator has a cohort do."},
    {"name": "devices", "description": "The devices of a cohort, and what an operator does with them."},
    {"name": "data", "description": "The samples that are kept, and the rights of those who are on them."},
    {"name": "page", "description": "For the page at `/` of those who run the service."},
    {"name": "operations", "description": "For those who run the service."},
]


def create_app(engine: Engine) -> FastAPI:
    """Make the application of one engine.

    Starting the application starts the engine; its end stops it.

    Parameters
    ----------
    engine
        The store, the devices, and whatever adapts.

    Returns
    -------
    fastapi.FastAPI
        An ASGI application. Calls to the store run in its thread pool, never on the event loop.
    """
    service = Service(engine)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(engine.start)
        try:
            yield
        finally:
            service.announcements.end()
            service.live.end()
            await run_in_threadpool(service.fetches.write)
            await run_in_threadpool(service.polls.write)
            await run_in_threadpool(service.reports.write)
            await run_in_threadpool(service.history.write)  # after the reports, which add to it
            await run_in_threadpool(service.tokens.write)
            await run_in_threadpool(service.rates.write)
            await run_in_threadpool(service.device_bases.write)
            await run_in_threadpool(engine.stop)

    # The document has an endpoint like all others, in `operations`: FastAPI's own would answer HEAD as well.
    app = FastAPI(
        title="CEMA cloud", version=__version__, description=_DESCRIPTION, openapi_tags=_TAGS,
        openapi_url=None, docs_url=None, redoc_url=None,
        # A path with a slash too many is an error, not a redirect: that would repeat the sender's Host to anybody.
        redirect_slashes=False,
        lifespan=lifespan, responses=EVERY_ENDPOINT, generate_unique_id_function=_operation_id,
    )  # fmt: skip
    app.state.service = service
    install_errors(app, service.metrics.failed)
    app.add_middleware(RequestTimer, metrics=service.metrics)
    parts = (
        *(uploads, updates, keys, bundles, reports, acts, devices, data, versions, samples_shown, history),
        *(sessions, overview, page, operations),
    )
    for part in parts:
        app.include_router(part.router)
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name
