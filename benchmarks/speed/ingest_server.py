"""The servers of measure_ingest.py: the cloud's HTTP process without a worker, or a bare one in the same stack.

    python benchmarks/speed/ingest_server.py product FOLDER
    python benchmarks/speed/ingest_server.py bare

Prints one JSON line with its port and, of the product, the tokens of its devices; ends when its input does.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from cema.cloud.config import CloudConfig, CohortConfig, LimitsConfig
from cema.cloud.http.app import create_app
from cema.cloud.http.connections import Connections, guarded_protocol
from cema.cloud.store.base import PublishedUpdate

__all__ = ["COHORT", "DEVICES", "ETAG", "SAMPLES"]

COHORT = "north"
DEVICES = 64
SAMPLES = 32
PAYLOAD = bytes(range(256)) * 310  # an update of a photograph model has some 80 KB
DIGEST = hashlib.sha256(PAYLOAD).hexdigest()
ETAG = f'"{DIGEST}-1"'
# As serve() sets them; nothing of a request differs but what answers it.
SETTINGS: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False, "backlog": 512}


class Engine:
    """What `cema cloud serve` runs, but for the worker process."""

    def __init__(self, folder: Path) -> None:
        # No worker takes samples away, and the rate of one device is no limit of the server.
        limits = LimitsConfig(backlog_samples=10**8, device_samples=0.0)
        cohort = CohortConfig(name=COHORT, bundle="none", model="none", foundation="none")
        self.config = CloudConfig(
            data=str(folder), signing_key=str(folder / "none"), cohort=(cohort,), limits=limits
        )
        self.store = self.config.open_store()
        self.store.open_cohort(COHORT, base="0" * 64)
        self.devices = self.store.devices([COHORT])

    def start(self) -> None:
        """Publish the update that devices ask for."""
        update = PublishedUpdate(1, DIGEST, b"x" * 600, PAYLOAD, 1.0, 1e12)
        epoch = self.store.claim(COHORT).epoch
        self.store.commit_step(COHORT, 0, b"", update, epoch=epoch, now=1.0)

    def stop(self) -> None:
        """Close the store."""
        self.store.close()

    def healthy(self) -> bool:
        """Nothing runs that could fail."""
        return True


def bare_app() -> FastAPI:
    """Make an application that reads the same bodies and answers the same, without any work."""
    app = FastAPI(openapi_url=None)
    verdict = {"id": "0" * 64, "verdict": "stored", "reason": None}

    @app.post("/v1/cohorts/{cohort}/samples")
    async def samples(cohort: str, request: Request) -> Response:
        await request.body()
        return JSONResponse({"verdicts": [verdict] * SAMPLES}, headers={"Cache-Control": "no-store"})

    @app.get("/v1/cohorts/{cohort}/updates/latest")
    async def latest(cohort: str) -> Response:
        return Response(status_code=304, headers={"Cache-Control": "no-cache", "ETag": ETAG})

    return app


class _Server(uvicorn.Server):
    """Says where it listens, and ends with its input."""

    tokens: tuple[str, ...] = ()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        port = self.servers[0].sockets[0].getsockname()[1]
        print(json.dumps({"port": port, "tokens": self.tokens}), flush=True)
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        sys.stdin.read()
        self.should_exit = True


def main() -> None:
    """Serve one side."""
    if sys.argv[1] == "bare":
        _Server(uvicorn.Config(bare_app(), port=0, **SETTINGS)).run()
        return
    engine = Engine(Path(sys.argv[2]))
    protocol = guarded_protocol(Connections(1000))
    server = _Server(uvicorn.Config(create_app(engine), port=0, http=protocol, lifespan="on", **SETTINGS))
    server.tokens = tuple(engine.devices.add(f"cam-{i}", cohort=COHORT) for i in range(DEVICES))
    server.run()


if __name__ == "__main__":
    main()
