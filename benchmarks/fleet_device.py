"""The light devices of `fleet`: what a device sends, without its model, and what they all counted."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import httpx2
import numpy as np
from rich.table import Table

from cema.edge.retry import Backoff, LinkError, parse_retry_after
from cema.errors import FormatError, UpdateRejected
from cema.formats.image import CodecConfig, encode_image
from cema.formats.sample import CONTENT_TYPE, Sample, encode_samples, sample_id
from cema.formats.update import UpdateManifest, verify_payload, verify_update

if TYPE_CHECKING:
    import ssl

    from cema.formats.bundle import Bundle

# The numbers of a device, see docs/protocol.md.
BATCH_SAMPLES = 32
TIMEOUT_SECONDS = 10.0
KEEPALIVE_SECONDS = 30.0
# Answers of a cloud that cannot now; the others are successes or faults.
LATER = (429, 503)
# Noise of each image, in grey levels: no two images are the same, and all are of one domain.
NOISE = 20.0
MOST_FAULTS = 20


@dataclass(frozen=True)
class Traffic:
    """What each device does: samples a second, seconds between frames and between polls, tries after a failure."""

    rate: float
    linger: float
    poll: float
    retries: int


@dataclass
class Tally:
    """What all devices counted together."""

    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    latencies: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    verdicts: Counter[str] = field(default_factory=Counter)
    bytes_up: int = 0
    updates: int = 0
    refused: int = 0
    unanswered: int = 0
    cured: int = 0
    uncured: int = 0
    faults: list[str] = field(default_factory=list)
    lateness: list[float] = field(default_factory=list)
    verified: dict[bytes, UpdateManifest] = field(default_factory=dict)

    def fault(self, text: str) -> None:
        """Note an answer that is neither a success nor "later"; the first few are kept."""
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(text)

    def result(self) -> dict[str, Any]:
        """Return it for JSON; latencies in milliseconds."""
        kinds = sorted(set(self.latencies) | {kind for kind, _ in self.statuses})
        return {
            "requests": self.statuses.total(),
            "stored": self.verdicts["stored"],
            "verdicts": dict(self.verdicts),
            "bytes_up": self.bytes_up,
            "updates": self.updates,
            "refused": self.refused,
            "unanswered": self.unanswered,
            "cured": self.cured,
            "uncured": self.uncured,
            "faults": self.faults,
            "statuses": {
                kind: {status: n for (k, status), n in sorted(self.statuses.items()) if k == kind}
                for kind in kinds
            },
            "lateness_ms": _percentiles(self.lateness),
            "latency_ms": {kind: _percentiles(self.latencies[kind]) for kind in kinds},
        }

    @staticmethod
    def table(result: dict[str, Any]) -> Table:
        """Return the statuses and latencies of a result as a table."""
        table = Table("request", "answers", "p50 ms", "p95 ms", "p99 ms", "max ms")
        for kind, statuses in result["statuses"].items():
            answers = ", ".join(f"{n} x {status}" for status, n in statuses.items())
            times = result["latency_ms"][kind].values()
            table.add_row(kind, answers, *(f"{value:.0f}" for value in times))
        return table


class Device:
    """One device: its token, its connections, its images.

    Parameters
    ----------
    url : str
        Of its cohort.
    token : str
    bundle : Bundle
        Whose keys and base updates are verified with.
    traffic : Traffic
    tally : Tally
        Where everything is counted.
    images : ndarray of uint8, shape (N, height, width, channels)
        Drawn from, with noise.
    context : ssl.SSLContext
        Shared by all, since making one takes long.
    seed : tuple of int
        Of the images, the noise and every pause.
    """

    def __init__(
        self,
        url: str,
        token: str,
        bundle: Bundle,
        traffic: Traffic,
        tally: Tally,
        *,
        images: np.ndarray,
        context: ssl.SSLContext,
        seed: tuple[int, ...],
    ) -> None:
        self._url, self._bundle, self._traffic, self._tally = url, bundle, traffic, tally
        self._cohort = url.rpartition("/")[2]
        self._images = images
        self._rng = np.random.default_rng(seed)
        self._random = Random(int(self._rng.integers(2**32)))
        self._version = 0
        self._etag: str | None = None
        self._client = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"},
            timeout=TIMEOUT_SECONDS,
            limits=httpx2.Limits(max_connections=4, keepalive_expiry=KEEPALIVE_SECONDS),
            trust_env=False,
            verify=context,
        )

    async def run(self, end: float) -> None:
        """Send samples and ask for updates until `end` (monotonic seconds), and finish what was begun."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._repeat(self._upload, self._traffic.linger, end))
            tasks.create_task(self._repeat(self._ask, self._traffic.poll, end))

    async def close(self) -> None:
        """End its connections."""
        await self._client.aclose()

    async def _repeat(self, step: Any, seconds: float, end: float) -> None:
        """Take a step again and again; the first at a random moment, as devices are not switched on together."""
        last = time.monotonic()
        pause = self._random.uniform(0, seconds)
        while time.monotonic() + pause < end:
            await asyncio.sleep(pause)
            now = time.monotonic()
            await step(now - last)
            last = now
            pause = max(0.0, now + seconds * self._random.uniform(0.9, 1.1) - time.monotonic())

    async def _upload(self, seconds: float) -> None:
        """Send what was selected in so many seconds."""
        waiting = int(self._rng.poisson(self._traffic.rate * seconds))
        while waiting > 0:
            batch = [self._sample() for _ in range(min(waiting, BATCH_SAMPLES))]
            waiting -= len(batch)
            body = encode_samples(batch)
            response = await self._request(
                "upload", "POST", "/samples", {"Content-Type": CONTENT_TYPE}, body, good=(200,)
            )
            if response is None:
                continue
            self._tally.bytes_up += len(body)
            found = {entry["id"]: entry["verdict"] for entry in response.json()["verdicts"]}
            self._tally.verdicts.update(found.values())
            if {sample.id for sample in batch} != {
                k for k, v in found.items() if v in ("stored", "duplicate")
            }:
                self._tally.fault(f"{len(batch)} samples got the verdicts {sorted(found.values())}")

    def _sample(self) -> Sample:
        image = self._images[self._rng.integers(len(self._images))]
        noisy = image + self._rng.normal(0, NOISE, image.shape)
        encoded = encode_image(np.clip(noisy, 0, 255).astype(np.uint8), CodecConfig())
        return Sample(
            id=sample_id(encoded),
            image=encoded,
            entropy=float(self._rng.uniform(0.5, 2.0)),
            label=int(self._rng.integers(10)),
            version=self._version,
            captured_at=time.time(),
        )

    async def _ask(self, _: float) -> None:
        """Ask for the newest update, and fetch and verify what is new."""
        headers = {} if self._etag is None else {"If-None-Match": self._etag}
        response = await self._request("poll", "GET", "/updates/latest", headers, None, good=(200, 204, 304))
        if response is None or response.status_code != 200:
            return
        try:
            manifest = self._verified(response.content)
            path = f"/artifacts/{manifest.payload}"
            payload = await self._request("artifact", "GET", path, {}, None, good=(200,))
            if payload is None:
                return
            verify_payload(manifest, payload.content)
        except (UpdateRejected, FormatError) as error:
            self._tally.fault(f"an update was rejected: {error}")
            return
        self._version, self._etag = manifest.version, response.headers["etag"]
        self._tally.updates += 1

    def _verified(self, envelope: bytes) -> UpdateManifest:
        """Verify an envelope, once for all devices: they are of one cohort and trust one key."""
        if envelope not in self._tally.verified:
            self._tally.verified[envelope] = verify_update(
                envelope,
                public_keys=self._bundle.public_keys,
                cohort=self._cohort,
                base=self._bundle.manifest.base,
                running_version=0,
                now=time.time(),
            )
        manifest = self._tally.verified[envelope]
        if manifest.version <= self._version:
            raise UpdateRejected("old", f"version {manifest.version} came after {self._version}")
        return manifest

    async def _request(
        self,
        kind: str,
        method: str,
        path: str,
        headers: dict[str, str],
        content: bytes | None,
        *,
        good: tuple[int, ...],
    ) -> httpx2.Response | None:
        """Send until there is a success, waiting in between as a device does; None where there was none."""
        backoff = Backoff(random=self._random)
        for attempt in range(self._traffic.retries + 1):
            response, failure = await self._once(kind, method, path, headers, content)
            if response is not None and response.status_code in good:
                self._tally.cured += attempt > 0
                return response
            if response is not None and response.status_code not in LATER:
                self._tally.fault(f"{method} {path}: {response.status_code} {response.text[:200]}")
                return None
            if attempt < self._traffic.retries:
                await asyncio.sleep(backoff.after(failure))
        self._tally.uncured += 1
        return None

    async def _once(
        self, kind: str, method: str, path: str, headers: dict[str, str], content: bytes | None
    ) -> tuple[httpx2.Response | None, LinkError]:
        """Send once; return the answer, if one came, and the failure that it is if it is one."""
        begin = time.perf_counter()
        try:
            response = await self._client.request(
                method, f"{self._url}{path}", headers=headers, content=content
            )
        except httpx2.HTTPError as error:
            self._tally.unanswered += 1
            self._tally.statuses[kind, f"no answer ({type(error).__name__})"] += 1
            return None, LinkError(str(error))
        self._tally.latencies[kind].append(time.perf_counter() - begin)
        self._tally.statuses[kind, str(response.status_code)] += 1
        self._tally.refused += response.status_code in LATER
        wish = parse_retry_after(response.headers.get("retry-after"), time.time())
        return response, LinkError("later", status=response.status_code, retry_after=wish)


def _percentiles(seconds: list[float]) -> dict[str, float]:
    values = np.percentile(seconds, (50, 95, 99, 100)) * 1000 if seconds else np.zeros(4)
    return {
        name: round(float(value), 2) for name, value in zip(("p50", "p95", "p99", "max"), values, strict=True)
    }
