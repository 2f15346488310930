"""The program that measures changes of domain compares every domain with every stream."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "domains.py"


def test_every_domain_with_every_stream(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, str(PROGRAM), "digits", "--samples", "96", "--output", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    result = json.loads(out.read_text())
    assert len(result["pairs"]) == 16 * 16
    assert result["drifted_in_its_own_domain"] < result["share_of_other_domains_drifted_over_half_the_time"]
