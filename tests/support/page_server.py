"""A cloud for tests of the operators' page alone: its files, and the endpoints that it asks, over a made-up scene."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from page_scene import HOSTILE, Scene, hostile
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from cema.page.assets import Asset, assets, content_security_policy, index

TOKEN = "op-token"


class PageServer:
    """The scene behind real HTTP on loopback, in a thread; `stop` and `start` keep the port."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.requests: list[str] = []
        self.histories: list[tuple[float, float]] = []  # from when until when they were asked for
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        config = uvicorn.Config(
            self._app(),
            host="127.0.0.1",
            port=self.port,
            log_level="critical",
            lifespan="off",
            timeout_graceful_shutdown=0,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join()

    def _app(self) -> Starlette:
        cohort = "/v1/cohorts/{cohort}"
        get = {
            "/": self.page,
            "/page/{file}": self.file,
            "/v1/overview": self.overview,
            "/v1/events": self.events,
            f"{cohort}/history": self.history,
            f"{cohort}/versions": self.versions,
            f"{cohort}/versions/{{version}}": self.version,
            f"{cohort}/domains": self.domains,
            f"{cohort}/samples": self.samples,
            f"{cohort}/samples/{{id}}/image": self.image,
            f"{cohort}/devices": self.devices,
            f"{cohort}/devices/{{name}}": self.device,
            f"{cohort}/acts": self.acts,
            f"{cohort}/deletions": self.deletions,
            f"{cohort}/data": self.data,
            f"{cohort}/status": self.status,
        }
        post = {
            f"{cohort}/acts": self.act,
            f"{cohort}/deletions": self.delete,
            f"{cohort}/devices/{{name}}/acts": self.act_on_device,
        }
        routes = [Route(path, self._guarded(handler), methods=["GET"]) for path, handler in get.items()]
        routes += [Route(path, self._guarded(handler), methods=["POST"]) for path, handler in post.items()]
        routes = [Route("/v1/session", self.session, methods=["GET", "POST", "DELETE"]), *routes]
        # As behind a proxy that has the cloud below a path of its own.
        return Starlette(routes=[Mount("/fleet", routes=routes), *routes])

    def _guarded(self, handler: Any) -> Any:
        """Return a handler that wants a session for the API, and the header for what changes something."""

        async def guarded(request: Request) -> Response:
            self.requests.append(request.url.path)
            if request.url.path.startswith("/v1/") and not self.scene.signed_in:
                return self.error(401, "unauthenticated", "the session has ended", "sign in again")
            if request.method == "POST" and (bad := self._refused(request)):
                return bad
            return await handler(request)

        return guarded

    def _refused(self, request: Request) -> Response | None:
        if request.headers.get("cema-page") != "1":
            return self.error(403, "csrf", "expected the header CEMA-Page: 1, got none", "use the page")
        if self.scene.role != "admin":
            return self.error(
                403, "forbidden", "expected an admin's token, got an operator's", "sign in as admin"
            )
        return None

    def answer(self, content: Any, status: int = 200) -> Response:
        return JSONResponse(
            hostile(content) if self.scene.hostile else content, status, headers={"Cache-Control": "no-store"}
        )

    def error(self, status: int, code: str, message: str, remedy: str) -> Response:
        return self.answer({"error": {"code": code, "message": message, "remedy": remedy}}, status)

    async def page(self, request: Request) -> Response:
        return served(
            request,
            index(),
            {"Content-Security-Policy": content_security_policy(), "Cache-Control": "no-cache"},
        )

    async def file(self, request: Request) -> Response:
        found = assets().get(request.path_params["file"])
        return (
            served(request, found, {"Cache-Control": "max-age=31536000, immutable"})
            if found
            else Response(status_code=404)
        )

    async def session(self, request: Request) -> Response:
        scene = self.scene
        who = {"name": "ann", "role": scene.role, "cohorts": list(scene.cohorts)}
        if request.method == "DELETE":
            scene.signed_in = False
            return Response(status_code=204)
        if request.method == "POST":
            if (await request.json())["token"] != TOKEN:
                return self.error(
                    401,
                    "unauthenticated",
                    "expected a known token, got another",
                    "ask whoever runs the cloud",
                )
            scene.signed_in = True
        return (
            self.answer(who)
            if scene.signed_in
            else self.error(401, "unauthenticated", "no session", "sign in")
        )

    async def overview(self, request: Request) -> Response:
        return self.answer(self.scene.overview())

    async def events(self, request: Request) -> Response:
        if self.scene.full:
            return self.error(
                503, "busy", "too many pages are told what happens at this moment", "ask again later"
            )

        async def stream() -> AsyncIterator[str]:
            last, at = None, 0.0
            while not self._server.should_exit:
                if not self.scene.signed_in:
                    yield "event: end\ndata: {}\n\n"
                    return
                due = self.scene.busy and time.monotonic() - at >= self.scene.busy
                if due and not self.scene.same:
                    self.scene.changes += 1
                if self.scene.changes != last or due:
                    last, at = self.scene.changes, time.monotonic()
                    overview = self.scene.overview()
                    told = hostile(overview) if self.scene.hostile else overview
                    yield f"event: overview\ndata: {json.dumps(told)}\n\n"
                await asyncio.sleep(0.05)

        return StreamingResponse(
            stream(), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    async def history(self, request: Request) -> Response:
        query = request.query_params
        self.histories.append((float(query["since"]), float(query["until"])))
        return self.answer(
            self.scene.history(
                of(request), float(query["since"]), float(query["until"]), int(query["points"])
            )
        )

    async def versions(self, request: Request) -> Response:
        return self.answer({"cohort": of(request), "publishing": "on", "versions": self.scene.listed()})

    async def version(self, request: Request) -> Response:
        return self.answer(self.scene.version_detail(int(request.path_params["version"])))

    async def domains(self, request: Request) -> Response:
        return self.answer(self.scene.domains())

    async def samples(self, request: Request) -> Response:
        query = request.query_params
        return self.answer(self.scene.some_samples(int(query["limit"]), query.get("device")))

    async def image(self, request: Request) -> Response:
        if self.scene.private:
            return self.error(
                403, "private", "expected a cohort with images, got a private one", "see cloud.toml"
            )
        return Response(self.scene.image(request.path_params["id"]), media_type="image/png")

    async def devices(self, request: Request) -> Response:
        query = request.query_params
        return self.answer(
            self.scene.some_devices(
                query.get("order", "name"), query.get("search", ""), int(query["limit"]), int(query["offset"])
            )
        )

    async def device(self, request: Request) -> Response:
        found = self.scene.device_detail(of(request, "name"))
        return (
            self.answer(found)
            if found
            else self.error(404, "unknown_device", "no such device", "see the list of devices")
        )

    async def acts(self, request: Request) -> Response:
        self.scene.work()
        return self.answer({"acts": self.scene.acts[::-1]})

    async def act(self, request: Request) -> Response:
        act = await request.json()
        if act.get("to") == 1:
            return self.error(
                409,
                "act_refused",
                "expected a version that is kept, got version 1",
                "choose one of those that versions lists",
            )
        return self.answer(self.scene.act(of(request), act), 202)

    async def deletions(self, request: Request) -> Response:
        return self.answer({"deletions": self.scene.deletions[::-1]})

    async def delete(self, request: Request) -> Response:
        receipt = {
            "number": len(self.scene.deletions) + 1,
            "cohort": of(request),
            "at": time.time(),
            "actor": "token:ann",
            "filter": await request.json(),
            "samples": 431,
            "bytes": 5_172_000,
            "ids_sha256": "ab" * 32,
            "state": "waiting",
            "forgotten_at": None,
            "done_at": None,
            "note": None,
        }
        self.scene.deletions.append(receipt)
        return self.answer(receipt, 202)

    async def data(self, request: Request) -> Response:
        """Tell what is kept: of a device that the scene does not know, nothing."""
        device = request.query_params.get("device")
        known = device is None or self.scene.device_detail(device.replace(HOSTILE, "")) is not None
        samples, size = (431, 5_172_000) if known else (0, 0)
        return self.answer({"cohort": of(request), "samples": samples, "bytes": size, "groups": []})

    async def status(self, request: Request) -> Response:
        return self.answer({"cohort": of(request), "pinned": self.scene.pinned})

    async def act_on_device(self, request: Request) -> Response:
        name = of(request, "name")
        self.scene.device_acts.append((name, await request.json()))
        return self.answer({"device": self.scene.device_detail(name), "token": None})


def of(request: Request, part: str = "cohort") -> str:
    """Return a part of the path, without what a hostile scene has put into it."""
    return str(request.path_params[part]).replace(HOSTILE, "")


def served(request: Request, asset: Asset, headers: dict[str, str]) -> Response:
    zipped = "gzip" in request.headers.get("accept-encoding", "")
    headers = (
        headers | ({"Content-Encoding": "gzip"} if zipped else {}) | {"X-Content-Type-Options": "nosniff"}
    )
    return Response(asset.gzipped if zipped else asset.body, media_type=asset.content_type, headers=headers)
