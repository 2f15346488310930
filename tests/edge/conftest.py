"""Fixtures of the edge's tests: a bundle, its key, a cloud, and configurations."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from edge_support import COHORT, Cloud, make_bundle

from cema.edge.config import CloudLink, EdgeConfig, UpdateConfig, UploadConfig
from cema.formats.bundle import Bundle
from cema.ondevice.selection.config import SelectionConfig


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="session")
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, key: Ed25519PrivateKey) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "small", key)


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    cloud = Cloud()
    yield cloud
    cloud.close()


@pytest.fixture
def quick_path() -> Iterator[Path]:
    """A folder in memory where there is one: for tests that are not about durability, and write a lot."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture
def make_config(quick_path: Path, bundle: Bundle) -> Callable[..., EdgeConfig]:
    def make(cloud: Cloud | None = None, **changes: Any) -> EdgeConfig:
        config = EdgeConfig(
            bundle=str(bundle.path),
            state=str(quick_path / "state"),
            # Nearly everything is selected, so that the tests have something to look at.
            selection=SelectionConfig(e_min=0.0, e_max=1.0),
            upload=UploadConfig(linger_seconds=0.0, random_share=0.0),
            update=UpdateConfig(poll_seconds=0.02),
            cloud=None if cloud is None else CloudLink(url=cloud.url, cohort=COHORT, token=cloud.token),
        )
        return msgspec.structs.replace(config, **changes)

    return make
