"""`benchmarks/likeness.py` on digits and on a folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "likeness.py"


def test_distances_are_printed_for_each_source(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(3):
        squares = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(30, 0).repeat(30, 1)
        Image.fromarray(squares).save(tmp_path / f"{i}.png")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "digits", str(tmp_path), "--most", "60"],
        capture_output=True,
        text=True,
        check=True,
    )
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["digits"]["images"] == 60
    assert 4 < results["digits"]["percentile 0"] < results["digits"]["percentile 50"]
    assert "moved by 1" not in results["digits"], "digits are too small to be moved"
    folder = results[str(tmp_path)]
    assert folder["images"] == 3
    assert 0 < folder["jpeg_compression 1"] < folder["moved by 1"] < folder["moved by 8"]
