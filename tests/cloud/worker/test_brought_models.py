"""Models as people bring them, through the worker's door."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from brought_models import mixed, own_response_norm

from cema.cloud.config import CloudConfig
from cema.cloud.worker.rounds import open_cohort
from cema.errors import ModelError
from cema.export.bundle import export_bundle
from cema.formats.bundle import Bundle
from cema.formats.keys import generate_key
from cema.models.norm_kinds import leave_as_it_is
from cema.models.spec import Model

CONFIG = """
data = "data"
signing_key = "signing.key"
[worker]
device = "cpu"
[[cohort]]
name = "north"
bundle = "bundle"
model = "brought_models:{}"
foundation = "brought_models:{}"
"""


def configured(folder: Path, exported: Model, edge: str, foundation: str = "convolutional") -> CloudConfig:
    key = generate_key(folder / "signing.key")
    export_bundle(exported, folder / "bundle", public_keys=[key.public_key()])
    (folder / "cloud.toml").write_text(CONFIG.format(edge, foundation))
    return CloudConfig.load(folder / "cloud.toml")


def test_a_bundle_from_before_rms_norm_was_adapted_is_served(tmp_path: Path) -> None:
    before = mixed()
    leave_as_it_is(before.module.norm)  # type: ignore[arg-type]
    config = configured(tmp_path, before, "mixed")
    bundle = Bundle.load(tmp_path / "bundle")
    assert set(bundle.norm_state()) == {"last.scale", "last.shift"}
    store = config.open_store()
    try:
        worker = open_cohort(store, config, config.cohort[0])
        assert worker.learner.norm_state().keys() == bundle.norm_state().keys()
    finally:
        store.close()


def test_a_foundation_model_that_returns_probabilities_is_refused(tmp_path: Path) -> None:
    config = configured(tmp_path, mixed(), "mixed", "probabilities")
    store = config.open_store()
    try:
        with pytest.raises(ModelError, match="returns probabilities; return the logits"):
            open_cohort(store, config, config.cohort[0])
    finally:
        store.close()


def test_what_is_not_adapted_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = configured(tmp_path, own_response_norm(), "own_response_norm")
    store = config.open_store()
    try:
        with caplog.at_level(logging.WARNING, "cema"):
            open_cohort(store, config, config.cohort[0])
    finally:
        store.close()
    assert "cohort north: edge model: not adapted: 1 layer: 3 (ResponseNorm)" in caplog.text
