"""Another edge model for the classes of the tiny pair, and its bundle."""

from __future__ import annotations

from pathlib import Path

import pytest
from cloud_tiny_models import edge, train
from safetensors.torch import save_file

from cema.export.bundle import export_bundle

__all__ = ["newer"]


@pytest.fixture(scope="session")
def newer(factory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundle and the weights of another edge model."""
    folder = tmp_path_factory.mktemp("newer")
    model = edge()
    train(model.module, 5)
    save_file(model.module.state_dict(), folder / "edge.safetensors")
    export_bundle(model, folder / "bundle", public_keys=[factory / "signing.pub"])
    return folder
