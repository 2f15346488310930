"""Try to make a device's budget send more than it may: random schedules of a simulated week.

Each schedule offers requests of random sizes at random moments to the budget that the agent uses, with its file:
bursts, long pauses, pauses of nearly an hour, and requests that take as much as there is room for. Meanwhile the
process is killed (also while a request is under way), the device is switched off and on, and the wall clock is set
to anything while the device runs; what it says after the device was off is right, or a year before 2020. Then every
window of an hour is summed up, by true time, with the bytes of each request at its beginning and at its end. A last
schedule always has something to send. Example::

    python benchmarks/budget.py --schedules 10000
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from cema.edge.background import Clock
from cema.edge.budget import Budget
from cema.edge.budget_config import BudgetConfig
from cema.edge.budget_ledger import SLOTS

HOUR, WEEK = 3600.0, 7 * 24 * 3600.0
START = 1_800_000_000.0  # unix seconds, in 2027
JUMPS = (-START, -86_400.0, -3600.0, 3600.0, 86_400.0, 1e9)
GAPS = (0.0, 1.0, 20.0, 300.0, 1800.0, 3540.0, 3599.0, 3600.0, 3601.0, 3660.0, 7200.0, 20_000.0)


@dataclass
class Device:
    """A device in true time."""

    path: Path
    config: BudgetConfig
    true: float = 0.0
    booted: float = 0.0
    boots: int = 0
    offset: float = 0.0
    began: list[tuple[float, int]] = field(default_factory=list)
    ended: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path.unlink(missing_ok=True)
        self.open()

    def open(self) -> None:
        """Begin anew from what is on the disk."""
        clock = Clock(
            now=lambda: START + self.true + self.offset,
            uptime=lambda: (f"boot {self.boots}", self.true - self.booted),
        )
        self.budget = Budget(self.config, self.path, clock)

    def switch_off(self, seconds: float) -> None:
        """Let the device be off; its clock is right afterwards, or was not set."""
        self.true += seconds
        self.booted, self.boots = self.true, self.boots + 1
        self.offset = self.offset if self.offset == -START else 0.0
        self.open()

    def send(self, size: int, seconds: float, *, killed: bool) -> bool:
        """Send a request that takes so long; the process may be killed while it is under way."""
        if not size or not self.budget.charge(size, 1):
            return False
        self.began.append((self.true, size))
        self.true += seconds
        self.ended.append((self.true, size))
        if killed:
            self.open()
        else:
            self.budget.settle()
        return True


def run_schedule(device: Device, rng: random.Random, allowed: int) -> Counter[str]:
    """Run one week; return what happened how often."""
    seen: Counter[str] = Counter()
    while device.true < WEEK:
        draw = rng.random()
        if draw < 0.05:
            device.offset = rng.choice((*JUMPS, 0.0))
            device.budget.look()
            seen["clock jumps"] += 1
        elif draw < 0.08:
            if device.offset < 0 and device.offset != -START:
                device.offset = (
                    0.0  # one that is behind until the device is off cannot be told from a longer pause
                )
                device.budget.look()
            device.switch_off(rng.choice(GAPS))
            seen["switched off"] += 1
        elif draw < 0.12:
            device.open()
            seen["killed"] += 1
        elif draw < 0.55:
            size = device.budget.room().bytes if rng.random() < 0.6 else rng.randrange(1, allowed)
            killed = rng.random() < 0.1
            sent = device.send(size, rng.choice((0.0, 0.5, 30.0, 500.0)), killed=killed)
            seen["sent" if sent else "refused"] += 1
            seen["killed while sending"] += sent and killed
        else:
            device.true += rng.choice(GAPS) * rng.choice((1.0, 1.0, rng.random()))
    return seen


def most_in_an_hour(sent: list[tuple[float, int]]) -> int:
    """Return the most bytes in any window of an hour, both ends included."""
    most = total = first = 0
    for moment, size in sent:
        total += size
        while sent[first][0] < moment - HOUR:
            total -= sent[first][1]
            first += 1
        most = max(most, total)
    return most


def run_steadily(device: Device) -> float:
    """Send all there is room for, every ten seconds of a day; return the share of the limit that was used."""
    day = 24 * (HOUR + HOUR / SLOTS)  # until the limit is free again for the 24th time
    while device.true < day:
        device.send(device.budget.room().bytes, 0.0, killed=False)
        device.true += 10.0
    allowed = device.budget.largest
    return sum(size for _, size in device.began) / (allowed * day / HOUR)


def main() -> None:
    """Print a table, and the same as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--bytes-per-hour", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    config = BudgetConfig(bytes_per_hour=options.bytes_per_hour)
    seen: Counter[str] = Counter()
    violations = most = 0
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "budget.json"
        for number in range(options.schedules):
            device = Device(path, config)
            seen += run_schedule(device, random.Random(f"{options.seed} {number}"), options.bytes_per_hour)
            worst = max(most_in_an_hour(device.began), most_in_an_hour(device.ended))
            violations += worst > options.bytes_per_hour
            most = max(most, worst)
        steady = run_steadily(Device(path, config))
    result = {
        "schedules": options.schedules,
        "bytes_per_hour": options.bytes_per_hour,
        "violations": violations,
        "most_in_an_hour": most,
        "share_used_when_always_sending": round(steady, 4),
        "seconds": round(time.perf_counter() - began, 1),
        **{name.replace(" ", "_"): count for name, count in sorted(seen.items())},
    }
    print("| | |\n|---|--:|")
    for name, value in result.items():
        print(f"| {name.replace('_', ' ')} | {value:,} |")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
