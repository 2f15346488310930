"""The HTTP application: samples come in, updates go out."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from cema._util.checks import is_sha256
from cema._version import __version__
from cema.cloud.http.errors import ApiError, authenticate, install_errors, matches, read_body
from cema.cloud.http.metrics import Metrics, RequestTimer
from cema.cloud.store.base import BacklogFull, UploadTooLarge
from cema.cloud.store.devices import Device
from cema.cloud.worker.supervisor import Engine
from cema.errors import FormatError, ImageError, StoreFull, StoreUnavailable
from cema.formats.sample import CONTENT_TYPE, Sample, Verdict, check_sample, decode_samples

__all__ = ["create_app"]

log = logging.getLogger(__name__)

# Uploads read or stored at one time: bounds memory at so many bodies.
UPLOADS_AT_ONCE = 32
NO_CACHE = {"Cache-Control": "no-cache"}
NO_STORE = {"Cache-Control": "no-store"}
FOREVER = {"Cache-Control": "public, max-age=31536000, immutable"}


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

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(engine.start)
        try:
            yield
        finally:
            await run_in_threadpool(engine.stop)

    app = FastAPI(
        title="CEMA cloud", version=__version__, lifespan=lifespan,
        openapi_url=None, docs_url=None, redoc_url=None,
    )  # fmt: skip
    install_errors(app)
    api = _Api(engine)
    app.add_middleware(RequestTimer, metrics=api.metrics)
    app.include_router(api.router())
    return app


class _Api:
    """The endpoints, around one engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.store = engine.store
        self.limits = engine.config.limits
        self.cohorts = frozenset(cohort.name for cohort in engine.config.cohort)
        self.metrics = Metrics(engine.store, sorted(self.cohorts))
        self._uploads = 0

    def router(self) -> APIRouter:
        router = APIRouter()

        @router.post("/v1/cohorts/{cohort}/samples")
        async def post_samples(cohort: str, request: Request) -> Response:
            device = await run_in_threadpool(self.uploader, cohort, request)
            return await self.upload(cohort, request, device)

        @router.get("/v1/cohorts/{cohort}/updates/latest")
        def get_latest(cohort: str, request: Request) -> Response:
            self.member(cohort, request)
            return self.latest(cohort, request)

        @router.get("/v1/cohorts/{cohort}/artifacts/{digest}")
        def get_artifact(cohort: str, digest: str, request: Request) -> Response:
            self.member(cohort, request)
            return self.artifact(cohort, digest, request)

        @router.get("/v1/cohorts/{cohort}/status")
        def get_status(cohort: str, request: Request) -> Response:
            self.member(cohort, request)
            return self.status(cohort)

        @router.get("/healthz")
        def get_health() -> Response:
            return self.health()

        @router.get("/metrics")
        def get_metrics(request: Request) -> Response:
            return self.scrape(authenticate(request, self.engine.devices))

        return router

    def member(self, cohort: str, request: Request) -> Device:
        """Let through who may read about this cohort."""
        device = authenticate(request, self.engine.devices)
        if cohort not in self.cohorts:
            raise ApiError(
                404,
                "unknown_cohort",
                f"there is no cohort {cohort!r} here",
                "check the cohort in the device's settings",
            )
        if device.cohort is not None and device.cohort != cohort:
            raise ApiError(
                403,
                "wrong_cohort",
                f"{device.name!r} belongs to cohort {device.cohort!r}, not {cohort!r}",
                "use the cohort that the device was added to, or add it to this one under a new name",
            )
        return device

    def uploader(self, cohort: str, request: Request) -> Device:
        """Let through who may send samples to this cohort."""
        device = self.member(cohort, request)
        if device.role != "device":
            raise ApiError(
                403,
                "not_a_device",
                f"{device.name!r} is an operator and may only read",
                "use a device's token",
            )
        return device

    async def upload(self, cohort: str, request: Request, device: Device) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if kind != CONTENT_TYPE or encoding != "identity":
            raise ApiError(
                415,
                "unsupported_media_type",
                f"expected {CONTENT_TYPE}, not encoded, got {kind or 'no Content-Type'} ({encoding})",
                f"send Content-Type: {CONTENT_TYPE} and no Content-Encoding",
            )
        if self._uploads >= UPLOADS_AT_ONCE:
            raise self._later(503, "busy", f"{self._uploads} uploads are being stored at this moment")
        self._uploads += 1
        try:
            body = await read_body(request, self.limits.body_bytes)
            verdicts = await run_in_threadpool(self.ingest, cohort, device.name, body)
        finally:
            self._uploads -= 1
        content = [{"id": v.id, "verdict": v.verdict, "reason": v.reason} for v in verdicts]
        return JSONResponse({"verdicts": content}, headers=NO_STORE)

    def ingest(self, cohort: str, device: str, body: bytes) -> list[Verdict]:
        """Check and store one request's samples; whatever gets an answer is on disk."""
        try:
            samples = decode_samples(body, max_samples=max(1, len(body)))
        except FormatError as error:
            raise ApiError(
                400, "malformed", str(error), "send a frame as cema.formats.sample.encode_samples makes it"
            ) from error
        if len(samples) > self.limits.batch_samples:
            raise ApiError(
                413,
                "too_many_samples",
                f"a request may hold {self.limits.batch_samples} samples, {len(samples)} came",
                "send fewer samples in a request",
            )
        good, rejected, reasons = self._check(samples)
        try:
            stored = iter(
                self.store.put(
                    cohort,
                    good,
                    device=device,
                    now=time.time(),
                    max_backlog=self.limits.backlog_samples,
                    rejected=reasons,
                )
            )
        except UploadTooLarge as error:
            raise ApiError(413, "too_large", str(error), "send fewer samples in a request") from error
        except BacklogFull as error:
            raise self._later(429, "backlog_full", str(error)) from error
        except StoreFull as error:
            raise self._later(429, "store_full", str(error)) from error
        except StoreUnavailable as error:
            # Locked for too long, closed, or the disk fails: nothing was stored, and the device has everything.
            log.error("samples could not be stored: %s", error)
            raise self._later(503, "store_unavailable", "the store cannot be written now") from error
        return [rejected[i] if i in rejected else next(stored) for i in range(len(samples))]

    @staticmethod
    def _check(samples: list[Sample]) -> tuple[list[Sample], dict[int, Verdict], Counter[str]]:
        good: list[Sample] = []
        rejected: dict[int, Verdict] = {}
        reasons: Counter[str] = Counter()
        for i, sample in enumerate(samples):
            try:
                check_sample(sample)
            except (FormatError, ImageError) as error:
                rejected[i] = Verdict(id=sample.id, verdict="rejected", reason=str(error))
                reasons["image" if isinstance(error, ImageError) else "format"] += 1
            else:
                good.append(sample)
        return good, rejected, reasons

    def latest(self, cohort: str, request: Request) -> Response:
        update = self.store.latest_update(cohort)
        if update is None:
            return Response(status_code=204, headers=NO_CACHE)
        etag = f'"{update.digest}-{update.version}"'
        headers = {**NO_CACHE, "ETag": etag}
        if matches(request.headers.get("if-none-match"), etag):
            return Response(status_code=304, headers=headers)
        return Response(update.envelope, media_type="application/json", headers=headers)

    def artifact(self, cohort: str, digest: str, request: Request) -> Response:
        data = self.store.artifact(cohort, digest) if is_sha256(digest) else None
        if data is None:
            raise ApiError(
                404,
                "unknown_artifact",
                f"cohort {cohort!r} has no artifact {digest[:64]!r}",
                "fetch updates/latest again: only the newest updates are kept",
            )
        headers = {**FOREVER, "ETag": f'"{digest}"'}
        if matches(request.headers.get("if-none-match"), headers["ETag"]):
            return Response(status_code=304, headers=headers)
        return Response(data, media_type="application/octet-stream", headers=headers)

    def status(self, cohort: str) -> Response:
        status: dict[str, Any] = self.store.status(cohort)
        status["worker"] = {"ready": False, **(status["worker"] or {})}
        status["healthy"] = self.engine.healthy()
        return JSONResponse(status, headers=NO_STORE)

    def health(self) -> Response:
        if not self.engine.healthy():
            raise ApiError(
                503,
                "unhealthy",
                "the worker is not running; uploads are stored and updates served all the same",
                "see the server's log for why the worker ended",
                headers=self._retry_after(),
            )
        return JSONResponse({"status": "ok", "version": __version__}, headers=NO_STORE)

    def scrape(self, device: Device) -> Response:
        if device.role != "operator" or device.cohort is not None:
            raise ApiError(
                403,
                "not_an_operator",
                f"{device.name!r} may not read the metrics, which cover every cohort",
                "use the token of an operator that was added without a cohort",
            )
        body, kind = self.metrics.render()
        return Response(body, media_type=kind, headers=NO_STORE)

    def _retry_after(self) -> dict[str, str]:
        return {"Retry-After": str(self.limits.retry_after_seconds)}

    def _later(self, status: int, code: str, message: str) -> ApiError:
        return ApiError(
            status, code, message, "keep the samples and send them again after Retry-After seconds",
            headers=self._retry_after(),
        )  # fmt: skip
