"""The Caddyfile of deploy/, with a real Caddy in front of a real cloud, and a real device that goes through it."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cloud_process import PATIENCE, Server, eventually
from cloud_support import samples_of
from cloud_tiny_models import quadrants
from programs import free_port, listens, running
from tools import tool

from cema.cloud.config import CloudConfig, LimitsConfig
from cema.cloud.http.waiting import LONGEST_WAIT
from cema.edge.agent import EdgeAgent
from cema.edge.config import CloudLink, EdgeConfig, UpdateConfig, UploadConfig
from cema.formats.sample import CONTENT_TYPE
from cema.ondevice.selection.config import SelectionConfig

CADDYFILE = Path(__file__).parents[2] / "deploy" / "caddy" / "Caddyfile"
SETTINGS = "skip_install_trust\n"


class Proxy:
    """A Caddy with the text of the Caddyfile: only addresses are others, and it does not listen for acts on itself."""

    def __init__(self, folder: Path, backend: str) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"https://localhost:{self.port}"
        text = CADDYFILE.read_text()
        for old, new in {
            "\ncema.example {": f"\n{self.url} {{",
            "127.0.0.1:8080": backend,
            SETTINGS: f"{SETTINGS}\tadmin off\n\tdefault_bind 127.0.0.1\n\tauto_https disable_redirects\n",
        }.items():
            assert old in text
            text = text.replace(old, new)
        self.file = folder / "Caddyfile"
        self.file.write_text(text)
        self.environment = {
            name: str(folder / "home") for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")
        }
        self.root = folder / "home" / "caddy" / "pki" / "authorities" / "local" / "root.crt"

    def trusted(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.root))

    def ready(self) -> bool:
        """Tell whether it has made its certificates: it listens before."""
        if not (self.root.is_file() and listens(self.port)):
            return False
        try:
            with (
                socket.create_connection(("127.0.0.1", self.port), timeout=10) as plain,
                self.trusted().wrap_socket(plain, server_hostname="localhost"),
            ):
                return True
        except (ssl.SSLError, ConnectionError):
            return False


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Any]:
    """Start Caddy in front of an address."""
    entered = []
    program = tool("caddy")

    def start(backend: str) -> Proxy:
        proxy = Proxy(tmp_path, backend)
        command = [program, "run", "--config", str(proxy.file), "--adapter", "caddyfile"]
        caddy = running(command, proxy.ready, tmp_path / "caddy.log", proxy.environment)
        caddy.__enter__()
        entered.append(caddy)
        return proxy

    yield start
    for caddy in entered:
        caddy.__exit__(None, None, None)


@pytest.fixture
def server(factory: Path, tmp_path: Path) -> Iterator[Server]:
    shutil.copytree(factory, tmp_path / "f")
    config = tmp_path / "f" / "cloud.toml"
    # Every step makes a version: how good it is makes no difference here.
    config.write_text(config.read_text().replace("every_steps = 2", "every_steps = 1\ngate = 1.0"))
    with closing(CloudConfig.load(config).open_store()) as store:
        register = store.devices(["north"])
        token = register.add("camera", cohort="north")
        (tmp_path / "operator.token").write_text(register.add("ops", cohort=None, role="operator"))
    server = Server(config, token)
    (tmp_path / "camera.token").write_text(token)
    yield server
    server.close()


def test_a_device_sends_and_fetches_through_it(server: Server, serve: Any, tmp_path: Path) -> None:
    proxy = serve(server.url.removeprefix("http://"))
    config = EdgeConfig(
        bundle=str(tmp_path / "f" / "bundle"),
        state=str(tmp_path / "state"),
        cloud=CloudLink(
            url=proxy.url,
            cohort="north",
            token_file=str(tmp_path / "camera.token"),
            ca_file=str(proxy.root),
        ),
        selection=SelectionConfig(e_min=0.0, e_max=1.0),
        upload=UploadConfig(linger_seconds=0.0),
        update=UpdateConfig(poll_seconds=0.2),
    )
    images, _ = quadrants(64, 1, drift=True)
    with EdgeAgent(config) as agent:
        agent.predict(images)
        assert agent.wait_for_version(1, PATIENCE), agent.status().last_error
        status = agent.status()
        assert status.uploaded > 0
        assert status.last_error is None


def test_cema_check_asks_through_it_as_the_device_does(server: Server, serve: Any, tmp_path: Path) -> None:
    proxy, device = serve(server.url.removeprefix("http://")), tmp_path / "device"
    device.mkdir()
    lines = (
        f'bundle = "{tmp_path / "f" / "bundle"}"\nstate = "state"\n[cloud]\nurl = "{proxy.url}"\ncohort = "north"\n',
        f'token_file = "{tmp_path / "camera.token"}"\n',
        f'ca_file = "{proxy.root}"\n',
    )
    for text, ok in (("".join(lines), True), ("".join(lines[:2]), False)):
        (device / "edge.toml").write_text(text)
        done = subprocess.run(
            [sys.executable, "-m", "cema", "check", "--json"],
            cwd=device,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert ("takes the token, for the cohort north" in done.stdout) is ok, done.stdout + done.stderr
        assert ("cloud.ca_file" in done.stdout) is not ok


def test_a_device_that_does_not_trust_it_says_so(server: Server, serve: Any, tmp_path: Path) -> None:
    proxy = serve(server.url.removeprefix("http://"))
    config = EdgeConfig(
        bundle=str(tmp_path / "f" / "bundle"),
        state=str(tmp_path / "state"),
        cloud=CloudLink(url=proxy.url, cohort="north", token_file=str(tmp_path / "camera.token")),
        update=UpdateConfig(poll_seconds=0.2),
    )
    with EdgeAgent(config) as agent:
        eventually(lambda: "cloud.ca_file" in (agent.status().last_error or ""))


def test_metrics_are_not_for_the_world_and_bodies_have_the_clouds_limit(
    server: Server, serve: Any, tmp_path: Path
) -> None:
    proxy = serve(server.url.removeprefix("http://"))
    operator = {"Authorization": f"Bearer {(tmp_path / 'operator.token').read_text()}"}
    assert httpx2.get(f"{server.url}/metrics", headers=operator).status_code == 200
    with httpx2.Client(base_url=proxy.url, verify=proxy.trusted(), headers=operator, timeout=30) as http:
        assert http.get("/livez").json()["status"] == "ok"
        assert http.get("/v1/cohorts/north/status").json()["cohort"] == "north"
        for path in ("/metrics", "/metrics/", "/%6Detrics", "//metrics", "/./metrics"):
            answer = http.get(f"{proxy.url}{path}")
            assert answer.status_code == 404, path
            assert "cema_" not in answer.text, path
        token = {"Authorization": f"Bearer {(tmp_path / 'camera.token').read_text()}"}
        more = LimitsConfig().body_bytes + 1
        typed = {**token, "Content-Type": CONTENT_TYPE}
        pieces = (b"x" * 2**16 for _ in range(more // 2**16 + 1))
        for body in (b"x" * more, pieces):  # announced, and not
            sent = http.post("/v1/cohorts/north/samples", headers=typed, content=body)
            assert sent.status_code == 413
        begun = time.monotonic()
        waited = http.get("/v1/cohorts/north/updates/latest?wait=2", headers=token)
        assert waited.status_code == 204
        assert time.monotonic() - begun >= 1.9


def test_nothing_in_it_ends_an_answer_that_a_device_waits_for() -> None:
    adapted = subprocess.run(
        [tool("caddy"), "adapt", "--config", str(CADDYFILE)], capture_output=True, check=True, timeout=60
    ).stdout

    def settings(part: Any) -> Iterator[tuple[str, Any]]:
        for name, value in part.items() if isinstance(part, dict) else enumerate(part):
            yield str(name), value
            if isinstance(value, dict | list):
                yield from settings(value)

    found = list(settings(json.loads(adapted)))
    ends = {"read_timeout", "write_timeout", "response_header_timeout"}
    seconds = [value / 1e9 for name, value in found if name in ends]
    assert all(limit > LONGEST_WAIT + 5 for limit in seconds)
    (largest,) = (value for name, value in found if name == "max_size")
    assert LimitsConfig().body_bytes < largest <= 1.1 * LimitsConfig().body_bytes
    assert ("flush_interval", -1) in found


def overviews(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Yield the objects of the events `overview`, as they come."""
    for line in lines:
        if line == "event: overview":
            yield json.loads(next(lines).removeprefix("data: "))


def test_an_operator_signs_in_at_it_and_is_told_what_happens_as_it_does(
    server: Server, serve: Any, tmp_path: Path
) -> None:
    proxy = serve(server.url.removeprefix("http://"))
    with httpx2.Client(base_url=proxy.url, verify=proxy.trusted(), timeout=30) as http:
        assert http.get("/").status_code == 200
        asked = {"token": (tmp_path / "operator.token").read_text()}
        signed_in = http.post("/v1/session", json=asked, headers={"CEMA-Page": "1"})
        assert signed_in.status_code == 200
        assert "; secure" in signed_in.headers["set-cookie"].lower(), (
            "the cloud knows that TLS ends at the proxy"
        )
        with http.stream("GET", "/v1/events") as answer:
            events = overviews(answer.iter_lines())
            (cohort,) = next(events)["cohorts"]
            assert cohort["cohort"] == "north"
            server.send(samples_of(quadrants(4, 3)[0]))
            assert any(found["samples"] == 4 for event in events for found in event["cohorts"])
