"""`benchmarks/page.py` on the made-up cloud, for a moment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tools import tool

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "page.py"


def test_every_view_is_measured_and_few_bytes_are_transferred() -> None:
    tool("chromium")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--seconds", "0.5"], capture_output=True, text=True, check=False
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert result.keys() == {"overview", "cohort", "devices"}
    for view in result.values():
        assert 0 < view["first_paint_ms"] <= view["drawn_ms"]
        assert 50_000 < view["transferred"] < 200_000
