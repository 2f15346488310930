"""`benchmarks/labels.py` on a short stream."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "labels.py"


def test_accuracies_are_printed_for_each_foundation_model() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--seeds", "1", "--most", "512", "--shares", "0", "1"],
        capture_output=True,
        text=True,
        check=True,
    )
    results = json.loads(done.stdout.splitlines()[-1])
    assert len(results) == 12
    assert all(50 < result["accuracy"] <= 100 for result in results)
    found = {(r["foundation"], r["settings"], r["labelled"]): r["accuracy"] for r in results}
    fast = "many passes, high rate"
    assert found["swaps", fast, 0.0] < found["right", fast, 0.0]
    assert found["swaps", fast, 0.0] < found["swaps", fast, 1.0]
