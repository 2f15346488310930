"""Measure a cloud under a fleet of devices.

Starts a real ``cema cloud serve`` with the digits pair in a temporary folder, and many light devices in this process,
each with its own token: they send frames of digits, each with its own noise, ask for updates, and fetch and verify
them. Two processes are watched while that goes on, the server and its worker. Examples::

    python benchmarks/fleet.py
    python benchmarks/fleet.py --devices 50 --seconds 600 --rate 2 --output fleet.json

The exit status is 1 where a request that was answered 429 or 503, or not at all, had no success in `--retries` more
tries; where another answer or an update was not as the protocol says; where the worker was started again; or where
memory or open handles grew after the first quarter.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import ssl
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console

from cema._util.version import __version__
from cema.cloud.config import CloudConfig
from cema.data.digits import load_digits
from cema.demo.processes import Children
from cema.demo.provision import COHORT, provision
from cema.demo.settings import DemoSettings
from cema.formats.bundle import Bundle
from cema.models.registry import resolve
from fleet_device import Device, Tally, Traffic
from fleet_watch import MARGIN_HANDLES, MARGIN_MIB, ServerWatch, growth, process_table

START_SECONDS = 120.0
# How often memory and handles are read: so many times in the whole run.
READINGS = 80


@dataclass(frozen=True)
class Served:
    """A running cloud, and what its devices were given."""

    url: str
    bundle: Bundle
    tokens: list[str]
    operator: str

    def status(self) -> dict[str, Any]:
        """Ask the cloud where the cohort stands."""
        status: dict[str, Any] = self._get(f"/v1/cohorts/{COHORT}/status").json()
        return status

    def mean_ms(self) -> dict[str, float]:
        """Return how long the server itself took, on average, for each route: from the request to its answer's end."""
        sums: defaultdict[str, float] = defaultdict(float)
        counts: defaultdict[str, float] = defaultdict(float)
        for line in self._get("/metrics").text.splitlines():
            found = re.match(r'cema_http_request_seconds_(sum|count){.*route="(.*)",status=.*} (.*)', line)
            if found:
                (sums if found[1] == "sum" else counts)[found[2]] += float(found[3])
        return {route: round(1000 * sums[route] / counts[route], 2) for route in sorted(counts)}

    def _get(self, path: str) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {self.operator}"}
        answer = httpx2.get(f"{self.url}{path}", headers=headers, timeout=30.0, trust_env=False)
        return answer.raise_for_status()


@contextmanager
def serving(devices: int, console: Console) -> Iterator[Served]:
    """Provision a cohort of the digits pair in a temporary folder and serve it until the context ends."""
    settings = DemoSettings.make(
        model="digits-cnn",
        foundation="digits-cnn-foundation",
        images=None,
        edges=devices,
        samples=None,
        rate=None,
    )
    with tempfile.TemporaryDirectory(prefix="cema-fleet-") as name, Children(Path(name)) as children:
        folder = Path(name)
        made = provision(settings, resolve(settings.model), resolve(settings.foundation), folder, console)
        tokens = [(folder / f"edge-{i}.token").read_text().strip() for i in range(devices)]
        with closing(CloudConfig.load(made.cloud_config).open_store()) as store:
            operator = store.devices([COHORT]).add("fleet", cohort=None, role="operator")
        children.start("cloud", ["cloud", "serve", "--config", str(made.cloud_config)])
        url = str(children.wait_for("cloud", "listening", START_SECONDS)["url"])
        served = Served(url, made.bundle, tokens, operator)
        deadline = time.monotonic() + START_SECONDS
        while not served.status()["worker"]["ready"]:
            if time.monotonic() > deadline:
                raise SystemExit(f"the cloud's worker was not ready within {START_SECONDS:g} s")
            children.next_event(0.2)
        yield served


async def drive(served: Served, options: argparse.Namespace, watch: ServerWatch) -> Tally:
    """Run all devices for the asked time, and read memory and handles meanwhile."""
    tally = Tally()
    traffic = Traffic(options.rate, options.linger, options.poll, options.retries)
    images = load_digits().test_images
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # made once: nothing here is encrypted
    fleet = [
        Device(
            f"{served.url}/v1/cohorts/{COHORT}",
            token,
            served.bundle,
            traffic,
            tally,
            images=images,
            context=context,
            seed=(options.seed, i),
        )
        for i, token in enumerate(served.tokens)
    ]
    end = time.monotonic() + options.seconds
    work = [asyncio.create_task(device.run(end)) for device in fleet]
    try:
        for i in range(READINGS + 1):
            due = end - options.seconds * (1 - i / READINGS)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tally.lateness.append(max(0.0, time.monotonic() - due))
            watch.read()
        await asyncio.gather(*work)
    finally:
        for task in work:
            task.cancel()
        for device in fleet:
            await device.close()
    return tally


def problems(result: dict[str, Any]) -> list[str]:
    """Return, in words, what makes a run a failure."""
    found: list[str] = list(result["growth"])
    if result["faults"]:
        found.append(f"answers were not as the protocol says, the first: {result['faults'][0]}")
    if result["uncured"]:
        found.append(f"{result['uncured']} requests had no success, however often they were retried")
    if result["worker_restarts"]:
        found.append(f"the worker was started again {result['worker_restarts']:g} times")
    if not result["stored"]:
        found.append("no sample was stored")
    return found


def measure(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Serve, drive the devices, and put together what was found."""
    with serving(options.devices, console) as served:
        watch = ServerWatch()
        begin = time.monotonic()
        tally = asyncio.run(drive(served, options, watch))
        seconds = time.monotonic() - begin
        status, mean_ms = served.status(), served.mean_ms()
    result: dict[str, Any] = {
        "settings": {key: value for key, value in vars(options).items() if key != "output"},
        "version": __version__,
        "seconds": round(seconds, 1),
        **tally.result(),
        "samples_per_second": round(tally.verdicts["stored"] / seconds, 1),
        "stored_by_the_clouds_count": status["counts"].get("samples.stored", 0),
        "backlog_at_the_end": status["backlog"],
        "versions_published": status["version"],
        "worker_restarts": status["counts"].get("worker.restarts", 0),
        "server_mean_ms": mean_ms,
        "processes": watch.result(),
    }
    result["growth"] = growth(
        result["processes"], mebibytes=options.margin_mib, handles=options.margin_handles
    )
    result["problems"] = problems(result)
    return result


def show(result: dict[str, Any], console: Console) -> None:
    """Print the tables and the verdict."""
    settings = result["settings"]
    console.print(
        f"{settings['devices']} devices, {result['seconds']:g} s: {result['stored']} samples stored "
        f"({result['samples_per_second']:g} a second), {result['versions_published']} versions published, "
        f"{result['updates']} fetched and verified, {result['backlog_at_the_end']} samples wait at the end",
        highlight=False,
    )
    console.print(Tally.table(result))
    means = ", ".join(
        f"{route.rpartition('/')[2]} {value:.0f}" for route, value in result["server_mean_ms"].items()
    )
    console.print(f"the server's own mean time, ms: {means}", highlight=False)
    console.print(
        f"this process, which plays the devices, was late by {result['lateness_ms']['p50']:.0f} ms (p50) and "
        f"{result['lateness_ms']['p95']:.0f} ms (p95); latencies hold this too",
        highlight=False,
    )
    console.print(
        f"refused (429, 503) {result['refused']}, not answered {result['unanswered']}, "
        f"cured by a retry {result['cured']}, not cured {result['uncured']}",
        highlight=False,
    )
    console.print(process_table(result["processes"]))
    for problem in result["problems"]:
        console.print(f"failed: {problem}", highlight=False)
    if not result["problems"]:
        console.print(
            f"well: every refusal was cured, memory grew by at most {settings['margin_mib']:g} MiB and handles by "
            f"{settings['margin_handles']} after the first quarter",
            highlight=False,
        )


def main() -> int:
    """Measure one fleet; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--devices", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long devices make samples (120)")
    parser.add_argument("--rate", type=float, default=0.75, help="samples a second of each device (0.75)")
    parser.add_argument(
        "--linger", type=float, default=2.0, help="seconds between two frames of a device (2)"
    )
    parser.add_argument(
        "--poll", type=float, default=5.0, help="seconds between two questions for updates (5)"
    )
    parser.add_argument("--retries", type=int, default=3, help="tries after a first one that failed (3)")
    parser.add_argument("--margin-mib", type=float, default=MARGIN_MIB, help=f"memory ({MARGIN_MIB:g})")
    parser.add_argument(
        "--margin-handles", type=int, default=MARGIN_HANDLES, help=f"handles ({MARGIN_HANDLES})"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON of everything")
    options = parser.parse_args()
    console = Console()
    result = measure(options, console)
    show(result, console)
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
