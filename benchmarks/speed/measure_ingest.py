"""Measure uploads and polls against a bare endpoint that reads the same body and answers the same.

The cloud's HTTP process (without a worker) and the bare one run side by side, each in a process of its own; requests
are made beforehand and sent in turn to both from this process, over connections that stay open, without TLS. Every
sample is new. CPU is that of the server's process, all of its threads, user and system.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ingest_server import COHORT, DEVICES, ETAG, SAMPLES
from PIL import Image

from cema.formats.image import CodecConfig, encode_image
from cema.formats.sample import CONTENT_TYPE, Sample, encode_samples, sample_id

HERE = Path(__file__).resolve().parent
BLOCKS = 3
# Clients, and requests of each in a block.
JPEG_CLIENTS, JPEG_REQUESTS = 8, 8
DIGIT_CLIENTS, DIGIT_REQUESTS = DEVICES, 3
POLLS = 400
# Photographs of this side have some 13 KB as JPEGs; so have smooth images with so much noise, in grey levels.
SIDE, NOISE = 224, 2.0


@dataclass
class Server:
    """One side: its process, and what was measured of it."""

    process: int
    port: int
    tokens: list[str]
    cpu_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    rate: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    statuses: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))

    def cpu(self) -> float:
        """Return the CPU seconds used so far."""
        # The clock of a process, as clock_getcpuclockid makes it: counted in nanoseconds, not in ticks of 10 ms.
        return time.clock_gettime((~self.process << 3) | 2)


def main() -> None:
    """Measure the rows and print them."""
    with tempfile.TemporaryDirectory(prefix="cema-ingest-") as name, ExitStack() as stack:
        sides = {
            "bare": stack.enter_context(_server("bare")),
            "product": stack.enter_context(_server("product", name)),
        }
        jpegs, digits = _frames(_jpegs()), _frames(_digits())
        for block in range(BLOCKS + 1):
            for side in sides.values():  # the first block warms up
                kept = block > 0
                _uploads(side, "jpeg", jpegs, JPEG_CLIENTS, JPEG_REQUESTS, kept=kept)
                _uploads(side, "digits", digits, DIGIT_CLIENTS, DIGIT_REQUESTS, kept=kept)
                _polls(side, kept=kept)
        _report(sides["bare"], sides["product"])


@contextmanager
def _server(*arguments: str) -> Iterator[Server]:
    """Start one side and end it."""
    command = [sys.executable, str(HERE / "ingest_server.py"), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = json.loads(process.stdout.readline())
            yield Server(process.pid, said["port"], said["tokens"] or ["none"] * DEVICES)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)


def _jpegs() -> Iterator[bytes]:
    """Make JPEGs of the size that photographs have, each another one by its comment."""
    rng = np.random.default_rng(0)
    bases = []
    for coarse in rng.integers(40, 216, (SAMPLES, 16, 16, 3), dtype=np.uint8):
        smooth = np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        noisy = smooth + rng.normal(0, NOISE, smooth.shape)
        bases.append(encode_image(np.clip(noisy, 0, 255).astype(np.uint8), CodecConfig()))
    for number, base in enumerate(itertools.cycle(bases)):
        yield base[:2] + b"\xff\xfe" + struct.pack(">HI", 6, number) + base[2:]


def _digits() -> Iterator[bytes]:
    """Make small grey images, as the codec makes them of digits."""
    rng = np.random.default_rng(1)
    while True:
        strokes = np.kron(rng.random((7, 7)) > 0.7, np.ones((4, 4)))
        noisy = 200 * strokes + rng.normal(0, 20, (28, 28))
        yield encode_image(np.clip(noisy, 0, 255).astype(np.uint8)[:, :, None], CodecConfig())


def _frames(images: Iterator[bytes]) -> Iterator[bytes]:
    while True:
        yield encode_samples(
            [
                Sample(id=sample_id(image), image=image, entropy=0.5, label=0, version=0, captured_at=1e9)
                for image in itertools.islice(images, SAMPLES)
            ]
        )


def _uploads(
    side: Server, kind: str, frames: Iterator[bytes], clients: int, requests: int, *, kept: bool
) -> None:
    work = []
    for token in side.tokens[:clients]:
        bodies = itertools.islice(frames, requests)
        work.append([_head("POST", "samples", token, body) for body in bodies])
    _measure(side, kind, work, kept=kept)


def _polls(side: Server, *, kept: bool) -> None:
    poll = _head("GET", "updates/latest", side.tokens[0])
    _measure(side, "poll", [[poll] * POLLS], kept=kept)


def _head(method: str, path: str, token: str, body: bytes = b"") -> bytes:
    head = (
        f"{method} /v1/cohorts/{COHORT}/{path} HTTP/1.1\r\nHost: cloud\r\nAuthorization: Bearer {token}\r\n"
    )
    head += f"Content-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n" if body else ""
    return (head + f"If-None-Match: {ETAG}\r\n\r\n").encode() + body


def _measure(side: Server, kind: str, work: list[list[bytes]], *, kept: bool) -> None:
    """Send the requests of all clients at one time, and book CPU, rate and statuses."""
    cpu = side.cpu()
    begin = time.perf_counter()
    statuses = asyncio.run(_send(side.port, work))
    seconds = time.perf_counter() - begin
    cpu = side.cpu() - cpu
    if kept:
        side.cpu_ms[kind].append(1000 * cpu / statuses.total())
        side.rate[kind].append((statuses[200] + statuses[304]) / seconds)
        side.statuses[kind] += statuses


async def _send(port: int, work: list[list[bytes]]) -> Counter[int]:
    found = await asyncio.gather(*(_client(port, requests) for requests in work))
    return sum(found, Counter[int]())


async def _client(port: int, requests: list[bytes]) -> Counter[int]:
    """Send one request after another over one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    statuses: Counter[int] = Counter()
    for request in requests:
        writer.write(request)
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        status = int(head.split(b" ", 2)[1])
        await reader.readexactly(int(length or 0) if status != 304 else 0)
        statuses[status] += 1
    writer.close()
    await writer.wait_closed()
    return statuses


def _report(bare: Server, product: Server) -> None:
    """Print the rows: medians of ratios, block by block."""

    def ratio(name: str, kind: str) -> float:
        pairs = zip(getattr(product, name)[kind], getattr(bare, name)[kind], strict=True)
        return float(statistics.median(ours / theirs for ours, theirs in pairs))

    details: dict[str, Any] = {}
    for name, side in (("bare", bare), ("product", product)):
        details[name] = {
            "cpu_ms": side.cpu_ms,
            "rate": side.rate,
            "statuses": {kind: dict(found) for kind, found in side.statuses.items()},
        }
    values = {
        "ingest.jpeg.cpu": ratio("cpu_ms", "jpeg"),
        "ingest.jpeg.rate": ratio("rate", "jpeg"),
        "ingest.digits.rate": ratio("rate", "digits"),
        "ingest.digits.refused": float(product.statuses["digits"][503]),
        "poll.unchanged": ratio("cpu_ms", "poll"),
    }
    print(json.dumps({"values": values, "details": details}))


if __name__ == "__main__":
    main()
