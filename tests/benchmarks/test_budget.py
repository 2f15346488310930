"""`benchmarks/budget.py` on a few schedules."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "budget.py"


def test_no_schedule_exceeds_the_budget() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--schedules", "8", "--bytes-per-hour", "50000"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "| violations | 0 |" in done.stdout
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["most_in_an_hour"] == 50_000, "the limit is used, so that it could have been exceeded"
    assert result["share_used_when_always_sending"] == round(60 / 61, 4)
    for event in ("sent", "refused", "killed", "killed_while_sending", "switched_off", "clock_jumps"):
        assert result[event] > 20
