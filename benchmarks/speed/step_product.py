"""A cohort's worker with a store full of samples, as the service runs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from cema.cloud.config import CohortConfig, PublishConfig, WorkerConfig
from cema.cloud.store.sqlite import SqliteStore
from cema.cloud.worker.cohort import CohortWorker
from cema.cloud.worker.publisher import Publisher
from cema.export.bundle import export_bundle
from cema.formats.bundle import Bundle
from cema.formats.image import CodecConfig, encode_image
from cema.formats.keys import generate_key, load_private_key
from cema.formats.sample import Sample, sample_id
from cema.models.spec import Model

__all__ = ["worker"]

BATCH = 32


def worker(
    folder: Path, edge: Model, foundation: Model, images: list[npt.NDArray[np.uint8]], *, steps: int
) -> CohortWorker:
    """Return a worker with as many new samples as its steps take; images get noise, each its own."""
    generate_key(folder / "key")
    bundle_folder = folder / "bundle"
    export_bundle(edge, bundle_folder, public_keys=[folder / "key.pub"])
    store = SqliteStore(folder / "cema.db", max_bytes=2**32)
    bundle = Bundle.load(bundle_folder)
    cohort = CohortConfig(
        name="north",
        bundle=str(bundle_folder),
        model=edge.name,
        foundation=foundation.name,
        publish=PublishConfig(),
    )
    publisher = Publisher(edge, bundle, "north", load_private_key(folder / "key"), cohort.publish)
    store.open_cohort("north", base=bundle.manifest.base)
    settings = WorkerConfig(device="cpu", max_backlog=10**6)
    made = CohortWorker(store, cohort, edge=edge, foundation=foundation, publisher=publisher, config=settings)
    codec = CodecConfig(codec="png" if images[0].shape[0] < 64 else "jpeg")
    rng = np.random.default_rng(0)
    for i in range(BATCH * steps):
        image = images[i % len(images)]
        noise = rng.integers(-20, 20, image.shape)
        data = encode_image((image.astype(np.int16) + noise).clip(0, 255).astype(np.uint8), codec)
        sample = Sample(id=sample_id(data), image=data, entropy=1.0, label=0, version=0, captured_at=0.0)
        store.put("north", [sample], device="north-1", now=0.0, max_backlog=10**9)
    return made
