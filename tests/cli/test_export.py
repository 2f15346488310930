"""What `cema export` says of a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from brought_models import convolutional
from PIL import Image

from cema.cli.export import export
from cema.errors import ConfigError, ImageError
from cema.formats.bundle import Bundle
from cema.formats.keys import generate_key
from cema.ondevice.image_file import read_image_file


def test_normalisation_that_does_not_adapt_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate_key(tmp_path / "signing.key")
    keys = [tmp_path / "signing.pub"]
    export(tmp_path / "bundle", "brought_models:own_response_norm", keys)
    said = capsys.readouterr().out
    assert "norm state        1 layers" in said
    assert "not adapted       1 layer: 3 (ResponseNorm)" in said
    export(tmp_path / "second", "brought_models:mixed", keys)
    assert "not adapted" not in capsys.readouterr().out


def test_statistics_and_clean_images_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate_key(tmp_path / "signing.key")
    keys = [tmp_path / "signing.pub"]
    clean = tmp_path / "clean"
    (clean / "below").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "below/b.png", "below/c.png"):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(clean / name)
    (clean / "notes.txt").write_text("no image")
    export(tmp_path / "bundle", "brought_models:convolutional", keys, clean=clean)
    said = capsys.readouterr().out
    assert "statistics        1 layers" in said
    assert "mean logits       of 3 clean images" in said
    logits = Bundle.load(tmp_path / "bundle").manifest.mean_logits
    assert logits is not None
    model = convolutional()
    images = [read_image_file(clean / name) for name in ("a.png", "below/b.png", "below/c.png")]
    with torch.no_grad():
        expected = model.module(torch.from_numpy(model.preprocessing(images))).numpy().mean(0)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    export(tmp_path / "second", "brought_models:mixed", keys)
    said = capsys.readouterr().out
    assert "statistics        none: the model has no BatchNorm" in said
    assert "mean logits" not in said


def test_clean_images_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    generate_key(tmp_path / "signing.key")
    keys, clean = [tmp_path / "signing.pub"], tmp_path / "clean"
    for error, message in ((ConfigError, "a folder of images"), (ConfigError, "found none")):
        with pytest.raises(error, match=message):
            export(tmp_path / "bundle", "brought_models:convolutional", keys, clean=clean)
        clean.mkdir(exist_ok=True)
    (clean / "a.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"a\.png"):
        export(tmp_path / "bundle", "brought_models:convolutional", keys, clean=clean)
    assert not (tmp_path / "bundle").exists()
