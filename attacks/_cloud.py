"""The cloud's real service on loopback, without a worker: the store, the tokens and the HTTP interface."""

from __future__ import annotations

import hashlib
import itertools
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import msgspec
import numpy as np
import uvicorn

from _edge import COHORT, make_bundle
from _parts import check
from cema.cloud.config import CloudConfig, CohortConfig, LimitsConfig
from cema.cloud.http.app import create_app
from cema.cloud.http.connections import Connections, guarded_protocol
from cema.cloud.http.service import Service as Notes
from cema.cloud.store.devices import Role
from cema.formats.image import CodecConfig, encode_image
from cema.formats.keys import generate_key
from cema.formats.sample import CONTENT_TYPE, Sample, encode_samples

__all__ = ["Service", "make_samples", "sample_of", "service"]

SOUTH = "south"


class Engine:
    """What `cema cloud serve` runs, but for the worker process."""

    def __init__(self, folder: Path, limits: LimitsConfig) -> None:
        bundle = make_bundle(folder)
        generate_key(folder / "signing.key")
        cohorts = tuple(
            CohortConfig(name=name, bundle=str(bundle.path), model="none", foundation="none")
            for name in (COHORT, SOUTH)
        )
        data, key = folder / "data", folder / "signing.key"
        self.config = CloudConfig(data=str(data), signing_key=str(key), cohort=cohorts, limits=limits)
        data.mkdir()
        self.store = self.config.open_store()
        for cohort in cohorts:
            self.store.open_cohort(cohort.name, base=bundle.manifest.base)
        self.devices = self.store.devices([cohort.name for cohort in cohorts])

    def start(self) -> None:
        """Start nothing: there is no worker."""

    def stop(self) -> None:
        self.store.close()

    def healthy(self) -> bool:
        return True


class Service:
    """A served engine with the token of one honest device, and the requests that attacks make."""

    def __init__(self, engine: Engine, url: str, connections: Connections, notes: Notes) -> None:
        self.engine, self.url, self.connections = engine, url, connections
        # What it writes to the store by itself, seconds later, is reached here.
        self.notes = notes
        self.port = int(url.rpartition(":")[2])
        self._numbers = itertools.count(1)
        self.token, self.hostile = self.add("honest"), self.add("hostile")
        self.folder = Path(engine.config.data).parent
        self._samples = f"/v1/cohorts/{COHORT}/samples"

    def add(self, name: str, cohort: str | None = COHORT, role: Role = "device") -> str:
        """Register a device or an operator and return its token."""
        return self.engine.devices.add(f"{name}-{next(self._numbers)}", cohort=cohort, role=role)

    def post(self, body: bytes, *, token: str | None = None, **headers: str) -> httpx2.Response:
        """Upload a body to the cohort."""
        sent = {"Authorization": f"Bearer {token or self.token}", "Content-Type": CONTENT_TYPE}
        return httpx2.post(
            self.url + self._samples, content=body, headers=sent | headers, timeout=20, trust_env=False
        )

    def get(self, path: str, *, token: str | None = None, **headers: str) -> httpx2.Response:
        sent = {"Authorization": f"Bearer {token or self.token}"} | headers
        return httpx2.get(self.url + path, headers=sent, timeout=20, trust_env=False)

    def takes_honest_samples(self) -> None:
        """See that an honest device still gets through."""
        response = self.post(encode_samples(make_samples(3, next(self._numbers))))
        check(response.status_code == 200, f"an honest device is answered {response.status_code}")
        verdicts = [verdict["verdict"] for verdict in response.json()["verdicts"]]
        check(verdicts == ["stored"] * 3, f"an honest device's samples are {verdicts}")

    def connect(self, data: bytes = b"") -> socket.socket:
        """Open a plain connection and send something."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall(data)
        return connection

    def new_folder(self) -> Path:
        """Return a folder for a device."""
        folder = self.folder / f"device-{next(self._numbers)}"
        folder.mkdir()
        return folder


def sample_of(image: bytes) -> Sample:
    """Return a sample of encoded bytes, whatever they are."""
    digest = hashlib.sha256(image).hexdigest()
    return Sample(id=digest, image=image, entropy=0.5, label=0, version=0, captured_at=1e9)


def make_samples(count: int, seed: int = 0) -> list[Sample]:
    images = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return [sample_of(encode_image(image, CodecConfig(codec="raw"))) for image in images]


@contextmanager
def service(
    folder: Path, *, connections: Connections | None = None, limits: LimitsConfig | None = None
) -> Iterator[Service]:
    """Serve until the end of the block."""
    connections = (
        Connections(1000) if connections is None else connections
    )  # none is open yet: its length is 0
    engine = Engine(folder, limits or msgspec.structs.replace(LimitsConfig(), store_bytes=2**27))
    app = create_app(engine)  # type: ignore[arg-type]
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            port=0,
            http=guarded_protocol(connections),
            log_config=None,
            access_log=False,
            lifespan="on",
            timeout_keep_alive=1,
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            check(thread.is_alive(), "the service did not start")
            thread.join(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Service(engine, f"http://127.0.0.1:{port}", connections, app.state.service)
    finally:
        server.should_exit = True
        thread.join()
