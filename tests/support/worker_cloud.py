"""A store, a cohort's configuration and a clock, for tests of the worker."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cloud_support import samples_of
from cloud_tiny_models import quadrants

from cema.cloud.config import CloudConfig, CohortConfig
from cema.cloud.store.sqlite import SqliteStore
from cema.cloud.worker.cohort import CohortWorker
from cema.cloud.worker.rounds import open_cohort
from cema.formats.bundle import Bundle, BundleStatistics, write_bundle


@dataclass
class Cloud:
    """A store, the configuration of one cohort, and a clock that only moves when told to."""

    folder: Path
    config: CloudConfig
    store: SqliteStore
    now: float = 1000.0
    sent: int = field(default=0)

    @property
    def cohort(self) -> CohortConfig:
        return self.config.cohort[0]

    def adapt(self, **values: Any) -> None:
        self._replace(adapt=msgspec.structs.replace(self.cohort.adapt, **values))

    def publish(self, **values: Any) -> None:
        self._replace(publish=msgspec.structs.replace(self.cohort.publish, **values))

    def worker_config(self, **values: Any) -> None:
        worker = msgspec.structs.replace(self.config.worker, **values)
        self.config = msgspec.structs.replace(self.config, worker=worker)

    def _replace(self, **values: Any) -> None:
        cohort = msgspec.structs.replace(self.cohort, **values)
        self.config = msgspec.structs.replace(self.config, cohort=(cohort,))

    def open(self) -> CohortWorker:
        worker = open_cohort(self.store, self.config, self.cohort)
        worker._clock = lambda: self.now
        return worker

    def send(self, count: int, *, drift: bool = True, version: int = 0, cohort: str = "north") -> None:
        images, _ = quadrants(count, 1000 + self.sent, drift=drift)
        self.sent += count
        samples = [msgspec.structs.replace(sample, version=version) for sample in samples_of(images)]
        self.store.put(cohort, samples, device="d", now=self.now, max_backlog=10**6)

    def counters(self) -> dict[str, float]:
        return self.store.counters("north")


@pytest.fixture
def cloud(factory: Path, tmp_path: Path) -> Iterator[Cloud]:
    shutil.copytree(factory, tmp_path / "f")
    path = tmp_path / "f" / "cloud.toml"
    path.write_text(path.read_text().replace("[worker]", "[worker]\nidle_steps = 0"))
    config = CloudConfig.load(path)
    store = SqliteStore(Path(config.data) / "cema.db", max_bytes=64 * 2**20)
    made = Cloud(tmp_path / "f", config, store)
    made.worker_config(max_backlog=1000)  # tests send all at once, and mean each sample to be learned from
    yield made
    store.close()


def rewrite_bundle(path: Path, statistics: BundleStatistics | None) -> Bundle:
    """Write a bundle again with the same model, and these statistics or none."""
    bundle = Bundle.load(path)
    manifest = bundle.manifest
    return write_bundle(
        path,
        model_bytes=bundle.model_path.read_bytes(),
        norm_state=bundle.norm_state(),
        norm=manifest.norm,
        golden_images=bundle.golden_images,
        golden_logits=bundle.golden_logits,
        public_keys=bundle.public_keys.values(),
        statistics=statistics,
        overwrite=True,
        **{
            name: getattr(manifest, name)
            for name in ("model", "classes", "labels", "input_name", "output_name")
        },
        **{
            name: getattr(manifest, name)
            for name in ("preprocessing", "upload_side", "tolerance", "created_by")
        },
    )


@pytest.fixture
def plain_cloud(cloud: Cloud) -> Cloud:
    """The same with a bundle without statistics: all that updates carry is folded."""
    rewrite_bundle(cloud.folder / "bundle", None)
    return cloud


def drain(worker: CohortWorker) -> int:
    """Run until there is nothing to do; returns how often there was."""
    turns = 0
    while worker.run_once():
        turns += 1
        assert turns < 500
    return turns
