"""A cloud's store to back up and restore, and what a test asks of it."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from cloud_support import make_samples

from cema.cloud.config import CloudConfig
from cema.cloud.store.base import PublishedUpdate, Store

CONFIG = """
data = "data"
signing_key = "signing.key"

[[cohort]]
name = "north"
bundle = "bundle"
model = "m"
foundation = "f"
publish = { min_seconds = 60.0 }
"""


@pytest.fixture
def config(tmp_path: Path) -> CloudConfig:
    """A cloud with one cohort: five samples, version 3, a device and a revoked one."""
    path = tmp_path / "cloud.toml"
    path.write_text(CONFIG)
    loaded = CloudConfig.load(path)
    with closing(loaded.open_store()) as store:
        store.open_cohort("north", base="b")
        store.put("north", make_samples(5), device="d", now=1.0, max_backlog=100)
        publish(store, 3)
        devices = store.devices(["north"])
        for name in ("early", "cam"):
            devices.add(name, cohort="north")
        devices.revoke("early")
    return loaded


def publish(store: Store, version: int) -> None:
    payload = b"payload"
    update = PublishedUpdate(version, hashlib.sha256(payload).hexdigest(), b"{}", payload, 1.0, 2.0)
    state = store.claim("north")
    store.commit_step("north", state.cursor, b"", update, epoch=state.epoch, now=1.0)


def database(config: CloudConfig) -> Path:
    return Path(config.data) / "cema.db"


def version(config: CloudConfig) -> int:
    with closing(config.open_store()) as store:
        update = store.latest_update("north")
        return update.version if update else 0


def integrity(path: Path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])


def damage(path: Path) -> None:
    """Overwrite some pages after the first ones."""
    with path.open("r+b") as file:
        file.seek(24 * 4096)
        file.write(b"\xff" * 8 * 4096)
