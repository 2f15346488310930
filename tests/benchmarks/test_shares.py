"""`benchmarks/shares.py` on results that a benchmark wrote."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "own-digits-cnn"
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "shares.py"


def test_rows_are_averaged_and_drawn(tmp_path: Path) -> None:
    plot = tmp_path / "shares.png"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(RESULTS), "--severity", "5", "--output", str(plot)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "| source (own-digits-cnn) | 42.6 | 0.0 | 0 |" in done.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_severity_without_cells_is_an_error() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(RESULTS), "--severity", "4"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "expected cells of severity 4" in done.stderr
