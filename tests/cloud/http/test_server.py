from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx2
import pytest
from cloud_process import PATIENCE, Server, eventually, gone
from cloud_support import samples_of
from cloud_tiny_models import quadrants

from cema.cloud.config import CloudConfig
from cema.cloud.worker.rounds import open_cohort
from cema.cloud.worker.supervisor import LocalEngine
from cema.errors import StoreUnavailable
from cema.formats.bundle import Bundle
from cema.formats.keys import generate_key
from cema.formats.sample import CONTENT_TYPE, Sample
from cema.formats.update import verify_payload, verify_update


@pytest.fixture
def folder(factory: Path, tmp_path: Path) -> Path:
    shutil.copytree(factory, tmp_path / "f")
    return tmp_path / "f"


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[[], Server]]:
    config = folder / "cloud.toml"
    with closing(CloudConfig.load(config).open_store()) as store:
        token = store.devices(["north"]).add("cam", cohort="north")
    servers: list[Server] = []

    def run() -> Server:
        servers.append(Server(config, token))
        return servers[-1]

    yield run
    for server in servers:
        server.close()


def test_from_samples_to_a_verified_update_and_a_clean_stop(
    start: Callable[[], Server], folder: Path
) -> None:
    server = start()
    images, _ = quadrants(96, 1, drift=True)
    samples = samples_of(images)
    for i in range(0, 96, 32):
        assert server.send(samples[i : i + 32]) == ["stored"] * 32
    eventually(lambda: server.get("updates/latest").status_code == 200)
    bundle = Bundle.load(folder / "bundle")
    manifest = verify_update(
        server.get("updates/latest").content,
        public_keys=bundle.public_keys,
        cohort="north",
        base=bundle.manifest.base,
        running_version=0,
        now=time.time(),
    )
    payload = verify_payload(manifest, server.get(f"artifacts/{manifest.payload}").content)
    assert payload.norm_state.keys() == bundle.norm_state().keys()
    status = server.get("status").json()
    assert status["worker"]["ready"]
    assert status["healthy"]
    worker = server.worker()
    assert worker is not None
    # A second server never shares the data folder.
    result = run_to_end(folder / "cloud.toml")
    assert result.returncode == 1
    assert "another cloud is using the data folder" in result.stderr
    assert server.end(signal.SIGTERM) == 0
    assert gone(worker)


def test_kill_9_loses_nothing_doubles_nothing_and_changes_no_result(
    start: Callable[[], Server], folder: Path
) -> None:
    # Full batches only and none passed over, so that what is learned depends on the samples' order and on nothing else.
    path = folder / "cloud.toml"
    steady = "[worker]\nidle_steps = 0\nlinger_seconds = 3600.0\nmax_backlog = 1000"
    path.write_text(path.read_text().replace("[worker]", steady))
    batches = [samples_of(quadrants(4, seed, drift=True)[0]) for seed in range(80)]
    acknowledged: set[str] = set()
    server = start()
    eventually(server.worker)
    orphan = server.worker()
    enough = threading.Event()

    def upload(part: list[list[Sample]]) -> None:
        for batch in part:
            try:
                verdicts = server.send(batch)
            except httpx2.TransportError:
                return
            assert set(verdicts) == {"stored"}
            acknowledged.update(s.id for s in batch)
            if len(acknowledged) > 60:
                enough.set()

    threads = [threading.Thread(target=upload, args=(batches[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    assert enough.wait(PATIENCE)
    os.kill(server.process.pid, signal.SIGKILL)
    for thread in threads:
        thread.join()
    server.close()
    assert orphan is not None
    # The worker notices by itself that its parent is gone.
    eventually(lambda: gone(orphan))
    config = CloudConfig.load(path)
    store = config.open_store()
    stored = [s.id for s in store.fresh("north", after=0, limit=10**6)]
    store.close()
    assert acknowledged <= set(stored)
    assert len(stored) == len(set(stored))
    # Whoever got no answer sends again; in the end everything is there exactly once.
    again = start()
    verdicts = [v for batch in batches for v in again.send(batch)]
    assert verdicts.count("duplicate") == len(stored)
    # The worker dies as well, in the middle of its work; uploads and status go on.
    eventually(lambda: again.get("status").json()["cursor"])
    worker = again.worker()
    assert worker is not None
    worker.kill()
    eventually(lambda: again.get("status").json()["backlog"] == 0)
    # The worker may have been through with everything when it was killed.
    eventually(lambda: again.get("status").json()["counts"].get("worker.restarts") == 1)
    assert again.get("status").json()["samples"] == 320
    assert again.end(signal.SIGINT) == 0
    killed, uninterrupted = both_results(config)
    assert killed == uninterrupted


def both_results(config: CloudConfig) -> tuple[bytes | None, bytes | None]:
    """What is in the store, and what one worker makes of the same samples in one go."""
    store = config.open_store()
    there = store.claim("north").checkpoint
    with store.database.write() as connection:
        connection.execute("UPDATE cohorts SET cursor = 0, checkpoint = NULL")
        connection.execute("DELETE FROM updates")
    worker = open_cohort(store, config, config.cohort[0])
    while worker.run_once():
        pass
    here = store.claim("north").checkpoint
    store.close()
    return there, here


def run_to_end(config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cema", "cloud", "serve", "--config", str(config)],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def test_a_port_in_use_is_one_clear_error(folder: Path) -> None:
    config = folder / "cloud.toml"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config.write_text(config.read_text().replace("port = 0", f"port = {port}"))
        result = run_to_end(config)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"cema: cannot listen on 127.0.0.1 port {port}")
    assert "Traceback" not in result.stderr


def test_what_the_worker_cannot_work_with_ends_the_server(folder: Path) -> None:
    config = folder / "cloud.toml"
    config.write_text(config.read_text().replace("cloud_tiny_models:edge", "cloud_tiny_models:egde"))
    result = run_to_end(config)
    assert result.returncode == 1
    assert "egde" in result.stderr
    assert "cannot work with this configuration" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_wrong_setting_of_the_algorithm_is_told_before_anything_starts(folder: Path) -> None:
    config = folder / "cloud.toml"
    config.write_text(config.read_text().replace("fresh = 16", "fresj = 16"))
    result = run_to_end(config)
    assert (result.returncode, result.stdout) == (1, "")
    assert "unknown field `fresj` (at key `cohort[0].adapt`)" in result.stderr
    assert not (folder / "data").exists()


@pytest.mark.parametrize(
    "numbers", [[signal.SIGTERM], [signal.SIGTERM, signal.SIGTERM], [signal.SIGINT, signal.SIGINT]], ids=str
)
@pytest.mark.parametrize("uploading", [False, True])
def test_a_terminated_server_leaves_no_traceback(
    start: Callable[[], Server], folder: Path, numbers: list[int], uploading: bool
) -> None:
    """Twice, because a supervisor and ``--stop-on-eof`` may both send it; with an upload that never ends, too."""
    server = start()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as link:
        if uploading:
            token = server.http.headers["Authorization"]
            head = f"POST /v1/cohorts/north/samples HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n"
            link.sendall(f"{head}Content-Type: {CONTENT_TYPE}\r\nContent-Length: 1000\r\n\r\n.".encode())
            time.sleep(0.5)
        for number in numbers[:-1]:
            server.process.send_signal(number)
            time.sleep(0.05)
        assert server.end(numbers[-1]) == 0
    log = (folder / "server.log").read_text()
    assert "Traceback" not in log
    assert "Application shutdown complete" in log


def test_a_signal_while_the_interpreter_ends_changes_nothing(folder: Path) -> None:
    """A supervisor may send SIGTERM again at any moment."""
    code = (
        "import atexit, os, signal, sys; from pathlib import Path; from cema.cloud.http.server import serve\n"
        "atexit.register(lambda: [os.kill(os.getpid(), n) for n in (signal.SIGTERM, signal.SIGINT)])\n"
        "sys.exit(serve(Path(sys.argv[1])))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder / "cloud.toml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert "listening" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, log
    assert "Traceback" not in log


def test_the_supervisor_outlives_a_store_that_cannot_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "cloud.toml"
    engine = LocalEngine(CloudConfig.load(path), path)
    locked = threading.Event()

    def put_report(*_: object, **__: object) -> None:
        locked.set()
        raise StoreUnavailable("database is locked")

    starts: list[int] = []
    monkeypatch.setattr("cema.cloud.worker.supervisor.FIRST_DELAY", 0.01)
    monkeypatch.setattr(engine, "_run_worker", lambda: starts.append(1) or 1)
    engine.start()
    monkeypatch.setattr(engine.store, "put_report", put_report)
    before = len(starts)
    eventually(lambda: locked.is_set() and len(starts) >= before + 3)
    engine.stop()
    assert "could not be noted: database is locked" in caplog.text


def test_the_http_process_loads_no_torch() -> None:
    code = (
        "import sys, cema.cloud.http.server, cema.cloud.worker.supervisor; "
        "print([m for m in ('torch', 'onnx', 'onnxruntime') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_importing_the_package_starts_and_loads_nothing() -> None:
    code = "import sys, cema.cloud; print([m for m in ('torch', 'fastapi', 'sqlite3') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_keys_and_files_are_checked_before_the_port_opens(folder: Path) -> None:
    config = folder / "cloud.toml"
    text = config.read_text()
    config.write_text(text.replace('"edge.safetensors"', '"egde.safetensors"'))
    assert "model_weights: there is no file" in run_to_end(config).stderr
    generate_key(folder / "other.key")
    config.write_text(text.replace('signing_key = "signing.key"', 'signing_key = "other.key"'))
    result = run_to_end(config)
    assert "they would refuse every update" in result.stderr
    assert (result.returncode, result.stdout) == (1, "")


def test_a_stop_answers_those_who_wait_for_a_version(start: Callable[[], Server]) -> None:
    server = start()
    with (
        httpx2.Client(headers=dict(server.http.headers), timeout=PATIENCE) as client,
        ThreadPoolExecutor(1) as one,
    ):
        path = f"{server.url}/v1/cohorts/north/updates/latest"
        assert client.get(path).status_code == 204
        waiting = one.submit(client.get, f"{path}?wait=25")
        assert server.get("status").status_code == 200  # later than the request that waits
        assert server.end(signal.SIGTERM) == 0
        # Without the word to end it would be cut off, after the ten seconds that open requests have.
        assert waiting.result().status_code == 204
