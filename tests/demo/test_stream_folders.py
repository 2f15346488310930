"""The demo's labels of photographs in class folders: the rules are the benchmark's."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_models import brightness_20
from PIL import Image
from rich.console import Console

from cema.demo.settings import DemoSettings
from cema.demo.stream import make_streams
from cema.errors import ConfigError


def settings(images: Path) -> DemoSettings:
    return DemoSettings(
        model="m", foundation="m", images=images, samples=12, edges=1, rate=1.0, batch=1, seed=0
    )


def test_class_folders_have_the_logits_that_the_benchmark_finds(tmp_path: Path) -> None:
    for name in ("2", "10"):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "set" / name / "a.png")
    model, console = brightness_20(), Console(quiet=True)
    (stream,) = make_streams(settings(tmp_path / "set"), model, model, tmp_path, console)
    assert set(stream.labels.tolist()) == {2, 10}
    (tmp_path / "set" / "10").rename(tmp_path / "set" / "cat")
    with pytest.raises(ConfigError, match="20 logits, and nothing says which"):
        make_streams(settings(tmp_path / "set"), model, model, tmp_path, console)
