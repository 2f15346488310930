"""The program that measures the defaults runs the benchmark's own row."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cema.data.corruptions import corrupt_images
from cema.data.digits import load_digits
from cema.models.registry import resolve

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "defaults.py"


def measure(tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    out = tmp_path / "out.json"
    command = [sys.executable, str(PROGRAM), "digits", *arguments, "--output", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    results: list[dict[str, Any]] = json.loads(out.read_text())["results"]
    return results


def test_variants_of_the_row_and_the_source(tmp_path: Path) -> None:
    arguments = ["--stream", "clean,fog:4", "--samples", "192", "--delay", "0", "--batch", "32"]
    variants = ["--variant", "source", "--variant", "default", "--variant", "guarded:guard=36,edge_lr=0.01"]
    source, default, guarded = measure(tmp_path, *arguments, *variants)
    assert [result["variant"] for result in (source, default, guarded)] == ["source", "default", "guarded"]
    for result in (source, default, guarded):
        assert [row["corruption"] for row in result["segments"]] == ["clean", "fog"]
        for row in result["segments"]:
            assert row["accuracy"] == round(100 * sum(row["by_batch"]) / 192, 2)
    fog = [result["segments"][1] for result in (source, default, guarded)]
    assert fog[0]["changes"] == 0 < fog[1]["changes"]
    assert fog[0]["accuracy"] < fog[1]["accuracy"]
    assert len({tuple(row["by_batch"]) for row in fog}) == 3

    # What the source model does to the very images, worked out here.
    digits, model = load_digits(), resolve("digits-cnn")
    chosen = np.random.default_rng(0).permutation(len(digits.test_labels))[192:384]
    images = corrupt_images([digits.test_images[i] for i in chosen], "fog", 4, seed=0)
    with torch.inference_mode():
        predicted = model.module(torch.from_numpy(model.preprocessing(images))).argmax(1).numpy()
    assert sum(fog[0]["by_batch"]) == int((predicted == digits.test_labels[chosen]).sum())
