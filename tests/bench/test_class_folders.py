"""What a benchmark makes of images in class folders: which logits it scores, and what it says of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from cema.bench.config import BenchConfig, ModelPair
from cema.bench.execute import RunContext
from cema.bench.runner import make_plan, run_benchmark
from cema.data.folder import WNIDS_FILE
from cema.errors import CemaError, ConfigError


def shade(path: Path, brightness: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (brightness,) * 3).save(path)


def config(data: Path, classes: int = 12, **changes: Any) -> BenchConfig:
    model = f"bench_models:brightness_{classes}"
    pair = (ModelPair(model=model, foundation=model),)
    return BenchConfig(data=str(data), pair=pair, methods=("source",), corruptions=("clean",), **changes)


def accuracy(asked: BenchConfig) -> float:
    plan = make_plan(asked)
    (cell,) = RunContext(plan.config, None).execute(plan.runs[0])
    return float(cell["accuracy"])


@pytest.mark.parametrize("classes", [12, 20])
def test_folders_that_are_numbers_are_scored_on_their_logits(tmp_path: Path, classes: int) -> None:
    for number in range(12):
        shade(tmp_path / "set" / str(number) / "a.png", 10 * number)
    assert accuracy(config(tmp_path / "set", classes)) == 100
    assert "number" in make_plan(config(tmp_path / "set", classes)).notes[0]


def test_part_of_the_numbers_is_scored_on_their_logits(tmp_path: Path) -> None:
    for number in (3, 7, 11):
        shade(tmp_path / "set" / str(number) / "a.png", 10 * number)
    assert accuracy(config(tmp_path / "set")) == 100


def test_names_that_say_nothing_of_the_logits_are_refused_until_there_is_a_list(tmp_path: Path) -> None:
    shade(tmp_path / "set" / "n02099601" / "a.png", 70)
    shade(tmp_path / "set" / "n03445777" / "a.png", 40)
    with pytest.raises(ConfigError, match=rf"12 logits.*--wnids FILE, or {WNIDS_FILE}"):
        make_plan(config(tmp_path / "set"))
    names = [f"other{number}" for number in range(12)]
    names[7], names[4] = "n02099601", "n03445777"
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(names))
    asked = config(tmp_path / "set", wnids=str(listed))
    assert accuracy(asked) == 100
    key = make_plan(asked).runs[0].key
    listed.write_text("\n".join(reversed(names)))
    assert make_plan(asked).runs[0].key != key, "another list scores other logits: that is another run"


def test_what_is_passed_over_and_a_single_class_are_said(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "._a.png"):
        shade(tmp_path / "set" / "3" / name, 30)
    (tmp_path / "set" / "3" / "c.heic").write_bytes(b"x")
    console = Console(file=io.StringIO(), width=200)
    run_benchmark(config(tmp_path / "set"), tmp_path / "out", console, jobs=1)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "the number is the logit" in said
    assert "passed over in set: files that are no images by their names: 1 .heic" in said
    assert "all 2 images are of one class. Their accuracy means little" in said


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for number in range(12):
        shade(tmp_path / "set" / str(number) / "a.png", 10 * number)
    (tmp_path / "set" / "5" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40)
    with pytest.raises(CemaError, match=r"5/b\.png: cannot be read as an image"):
        accuracy(config(tmp_path / "set"))
