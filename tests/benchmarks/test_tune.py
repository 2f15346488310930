"""The program that looks for rates prints one accuracy for each point of a grid."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "tune.py"


def test_a_grid_of_one_method(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, str(PROGRAM), "digits", "--samples", "128", "--corruption", "spatter"]
    command += ["--method", "lame", "--output", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    found = json.loads(out.read_text())["lame"]
    assert found.pop("default")["neighbours"] == 5
    assert found.keys() == {'{"neighbours": 1}', '{"neighbours": 3}', '{"neighbours": 5}'}
    assert all(50 < accuracy <= 100 for accuracy in found.values())
