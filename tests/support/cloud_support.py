"""What the cloud's tests share: samples, a written bundle, an engine without a worker, a real server."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn

from cema.cloud.config import CloudConfig
from cema.cloud.http.app import create_app
from cema.cloud.worker.supervisor import Engine
from cema.formats.bundle import Bundle, write_bundle
from cema.formats.image import CodecConfig, encode_image
from cema.formats.keys import generate_key
from cema.formats.sample import Sample, sample_id
from cema.ondevice.preprocess import Preprocessing


def make_samples(count: int, seed: int = 0) -> list[Sample]:
    """Samples of random pixels, each different."""
    return samples_of(np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8))


def samples_of(images: Iterable[np.ndarray]) -> list[Sample]:
    """Samples of images, as a device encodes them."""
    samples = []
    for i, image in enumerate(images):
        encoded = encode_image(image, CodecConfig(codec="raw"))
        samples.append(
            Sample(
                id=sample_id(encoded), image=encoded, entropy=0.5, label=i % 4, version=0, captured_at=1e9 + i
            )
        )
    return samples


def opaque_bundle(path: Path, public_key: object) -> Bundle:
    """A bundle whose graph nobody runs: all that the HTTP process looks at."""
    return write_bundle(
        path,
        model="opaque",
        model_bytes=b"a graph",
        norm_state={"bn.scale": np.ones(3, np.float32), "bn.shift": np.zeros(3, np.float32)},
        golden_images=np.zeros((1, 8, 8, 3), np.uint8),
        golden_logits=np.zeros((1, 4), np.float32),
        preprocessing=Preprocessing(height=8, width=8, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3),
        classes=4,
        input_name="x",
        output_name="y",
        created_by="tests",
        public_keys=[public_key],  # type: ignore[list-item]
    )


def write_config(folder: Path, *, extra: str = "", cohorts: str = "") -> Path:
    """A configuration with keys and an opaque bundle beside it."""
    key = generate_key(folder / "signing.key")
    opaque_bundle(folder / "bundle", key.public_key())
    path = folder / "cloud.toml"
    path.write_text(
        f"""
data = "data"
signing_key = "signing.key"
port = 0
{extra}
[[cohort]]
name = "north"
bundle = "bundle"
model = "cloud_tiny_models:edge"
foundation = "cloud_tiny_models:foundation"
{cohorts}
"""
    )
    return path


class StillEngine:
    """The store and the devices of a configuration, and nothing that adapts."""

    def __init__(self, config: CloudConfig) -> None:
        self.config = config
        self.store = config.open_store()
        for cohort in config.cohort:
            self.store.open_cohort(cohort.name, base=Bundle.load(Path(cohort.bundle)).manifest.base)
        self.devices = self.store.devices([cohort.name for cohort in config.cohort])
        self.well = True

    def start(self) -> None:
        """Nothing to start."""

    def stop(self) -> None:
        self.store.close()

    def healthy(self) -> bool:
        return self.well


@contextmanager
def serving(engine: Engine, **settings: Any) -> Iterator[str]:
    """Serve an engine on a free loopback port; yields the URL."""
    server = uvicorn.Server(
        uvicorn.Config(create_app(engine), port=0, log_config=None, lifespan="on", **settings)
    )
    started = threading.Event()
    original = server.startup

    async def startup(sockets: object = None) -> None:
        await original()
        started.set()

    server.startup = startup  # type: ignore[method-assign,assignment]
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert started.wait(20)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
