"""A folder from which clouds of tests are made."""

from __future__ import annotations

from pathlib import Path

import pytest

__all__ = ["factory"]


@pytest.fixture(scope="session")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained tiny pair, the exported bundle, the signing key and a configuration."""
    import torch
    from cloud_tiny_models import edge, foundation, train
    from safetensors.torch import save_file

    from cema.export.bundle import export_bundle
    from cema.formats.keys import generate_key

    folder = tmp_path_factory.mktemp("factory")
    torch.set_num_threads(1)
    pair = {"edge": edge(), "foundation": foundation()}
    for seed, (name, model) in enumerate(pair.items()):
        train(model.module, seed)
        save_file(model.module.state_dict(), folder / f"{name}.safetensors")
    generate_key(folder / "signing.key")
    export_bundle(pair["edge"], folder / "bundle", public_keys=[folder / "signing.pub"])
    (folder / "cloud.toml").write_text(CONFIG)
    return folder


CONFIG = """
data = "data"
signing_key = "signing.key"
port = 0

[worker]
device = "cpu"
threads = 1
poll_seconds = 0.05

[[cohort]]
name = "north"
bundle = "bundle"
model = "cloud_tiny_models:edge"
model_weights = "edge.safetensors"
foundation = "cloud_tiny_models:foundation"
foundation_weights = "foundation.safetensors"

[cohort.adapt]
fresh = 16
replayed = 32
replay_from = 64
window = 64

[cohort.publish]
every_steps = 2
evidence = 16
min_seconds = 0.0
window = 64
"""
