"""Measure how fast this code is, beside the code from before and the goals: one table, and JSON.

Every row is measured by a program of its own in this folder, in a process of its own, in turn on today's code and on
the code of an earlier commit. A figure is a ratio within one process wherever it can be one. Examples::

    make bench OUT=bench
    python benchmarks/speed/bench.py --out bench --only step-digits,install

`ROWS` and `PROGRAMS` in speed_rows.py say what there is. A row whose data is absent is left out with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from speed_rows import PROGRAMS, ROWS, Program, Row

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# The last commit before the work on speed began.
BEFORE = "f0b3380"
TIMEOUT = 3600.0


@dataclass
class Side:
    """What was measured on some sources.

    Attributes
    ----------
    readings : dict
        Values by row.
    details : dict
        What else each program told, run by run.
    failed : dict
        By program, why it could not be measured.
    """

    readings: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    details: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    failed: dict[str, str] = field(default_factory=dict)


def main() -> int:
    """Measure, print the table, write the JSON; 1 where a program failed."""
    options = _options()
    console = Console()
    chosen = [p for p in PROGRAMS if not options.only or p.name in options.only]
    today, before = Side(), Side()
    with _earlier(options.before) as earlier, Progress(console=console) as progress:
        task = progress.add_task("measuring", total=sum(_rounds(p, options.rounds) for p in chosen))
        for program in chosen:
            for _ in range(_rounds(program, options.rounds)):
                progress.update(task, description=program.name)
                if earlier is not None and program.before:
                    _measure(program, earlier, options.data, before)
                _measure(program, ROOT / "src", options.data, today)
                progress.advance(task)
            # After each program: all of them take an hour, and what was measured survives an interruption.
            _write(options, today, before)
    _print(console, _rows(today, before), today.failed)
    if options.out is not None:
        console.print(f"written to {options.out / 'bench.json'}")
    return 1 if today.failed else 0


def _write(options: argparse.Namespace, today: Side, before: Side) -> None:
    """Write what was measured so far, where a folder was given."""
    if options.out is None:
        return
    options.out.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": _machine(),
        "before": options.before,
        "rows": _rows(today, before),
        "failed": today.failed,
        "failed_before": before.failed,
        "details": {"before": before.details, "today": today.details},
    }
    path = options.out / "bench.json"
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _rows(today: Side, before: Side) -> list[dict[str, Any]]:
    return [_row(row, today, before) for row in ROWS if row.key in today.readings]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder that bench.json is written into")
    parser.add_argument(
        "--only", type=lambda text: set(text.split(",")), help="programs, with commas between them"
    )
    parser.add_argument(
        "--rounds", type=int, help="how often each program runs; its own number when left out"
    )
    parser.add_argument("--before", default=BEFORE, help="commit to compare with, or 'none'")
    data = os.environ.get("CEMA_SHARED_DATA", str(ROOT.parent / "shared" / "data"))
    parser.add_argument(
        "--data", type=Path, default=Path(data), help="real images and weights; rows without are left out"
    )
    options = parser.parse_args()
    unknown = (options.only or set()) - {p.name for p in PROGRAMS}
    if unknown:
        parser.error(
            f"--only: expected some of {', '.join(p.name for p in PROGRAMS)}, got {', '.join(sorted(unknown))}"
        )
    return options


def _rounds(program: Program, asked: int | None) -> int:
    return program.rounds if asked is None else asked


@contextmanager
def _earlier(commit: str) -> Iterator[Path | None]:
    """Lay out the sources of an earlier commit; None where there is no such commit, as in an archive."""
    known = ["git", "-C", str(ROOT), "cat-file", "-e", f"{commit}^{{commit}}"]
    if commit == "none" or subprocess.run(known, capture_output=True, check=False).returncode:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "-C", str(ROOT), "archive", commit, "src"], capture_output=True, check=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        yield Path(folder) / "src"


def _measure(program: Program, source: Path, data: Path, side: Side) -> None:
    """Run a program on some sources and take in the last line that it prints."""
    command = [sys.executable, str(HERE / program.file), *program.arguments]
    environment = os.environ | {"PYTHONPATH": str(source), "CEMA_SHARED_DATA": str(data)}
    environment.setdefault("OMP_NUM_THREADS", "1")
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False, cwd=HERE
    )
    if done.returncode:
        side.failed[program.name] = (done.stderr.strip() or done.stdout.strip())[-2000:]
        return
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    for key, value in answer["values"].items():
        side.readings[key].append(value)
    side.details[program.name].append(answer.get("details", {}))


def _row(row: Row, today: Side, before: Side) -> dict[str, Any]:
    values, earlier = today.readings[row.key], before.readings.get(row.key)
    value = statistics.median(values)
    return {
        "name": row.name,
        "value": value,
        "goal": row.goal_text,
        "met": row.met(value),
        "lowest": min(values),
        "highest": max(values),
        "before": statistics.median(earlier) if earlier else None,
        "unit": row.unit,
        "runs": len(values),
    }


def _print(console: Console, rows: list[dict[str, Any]], failed: dict[str, str]) -> None:
    table = Table("what", "before", "today", "lowest to highest", "goal", "met")
    for row in rows:
        before = "" if row["before"] is None else f"{row['before']:.3g}"
        spread = f"{row['lowest']:.3g} to {row['highest']:.3g}"
        table.add_row(
            row["name"], before, f"{row['value']:.3g}", spread, row["goal"], "yes" if row["met"] else "NO"
        )
    console.print(table)
    for name, reason in failed.items():
        console.print(f"{name} could not be measured: {reason}", markup=False, highlight=False)


def _machine() -> dict[str, Any]:
    """Describe the machine: figures of two machines are not comparable."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": named[0] if named else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    sys.exit(main())
