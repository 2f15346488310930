"""A cloud as a process, and what a device and an operator see of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import psutil

from cema.formats.sample import CONTENT_TYPE, Sample, encode_samples

__all__ = ["PATIENCE", "Server", "cema", "eventually", "gone"]

PATIENCE = 120.0


class Server:
    """A real server process and what a device and an operator see of it."""

    def __init__(self, config: Path, token: str) -> None:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": CONTENT_TYPE}
        self.http = httpx2.Client(headers=headers, timeout=30)
        self.log = open(config.parent / "server.log", "ab")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cema", "cloud", "serve", "--config", str(config)],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (config.parent / "server.log").read_text()
        event = json.loads(line)
        assert event["event"] == "listening"
        self.url: str = event["url"]

    def send(self, samples: list[Sample]) -> list[str]:
        response = self.http.post(f"{self.url}/v1/cohorts/north/samples", content=encode_samples(samples))
        assert response.status_code == 200, response.text
        return [v["verdict"] for v in response.json()["verdicts"]]

    def get(self, path: str) -> httpx2.Response:
        return self.http.get(f"{self.url}/v1/cohorts/north/{path}")

    def worker(self) -> psutil.Process | None:
        children = psutil.Process(self.process.pid).children()
        return next((c for c in children if "cema.cloud.worker.process" in c.cmdline()), None)

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        status = self.process.wait(PATIENCE)
        self.close()
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.log.close()
        self.http.close()


def cema(config: Path, *arguments: str) -> Any:
    """Run a command in a process of its own, and return the JSON that it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "cema", "cloud", *arguments, "--config", str(config), "--json"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def eventually(happens: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def gone(process: psutil.Process) -> bool:
    """Tell whether a process has ended; an orphan may stay a zombie where nobody collects it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
