"""The budget on a disk: charges that survive, waits, and what the status says."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cema.edge.background import Clock
from cema.edge.budget import Budget
from cema.edge.budget_config import BudgetConfig
from cema.edge.config import EdgeConfig
from cema.edge.system import uptime
from cema.errors import ConfigError, SpoolError

NOW = 1_800_000_000.0  # 2027-01-15 08:00 UTC


@dataclass
class Device:
    path: Path
    seconds: float = 0.0
    offset: float = 0.0

    @property
    def clock(self) -> Clock:
        return Clock(now=lambda: NOW + self.seconds + self.offset, uptime=lambda: ("one boot", self.seconds))

    def budget(self, **settings: Any) -> Budget:
        return Budget(BudgetConfig(**settings), self.path / "budget.json", self.clock)


@pytest.fixture
def device(quick_path: Path) -> Device:
    return Device(quick_path)


def send(budget: Budget, size: int, samples: int = 1) -> bool:
    if not budget.charge(size, samples):
        return False
    budget.settle()
    return True


def test_what_is_left_is_said_and_kept_to(device: Device) -> None:
    budget = device.budget(bytes_per_hour=1000, samples_per_day=5)
    assert budget.room() == (1000, 5)
    assert budget.largest == 1000
    assert send(budget, 700, 2)
    assert budget.room() == (300, 3)
    assert not send(budget, 301)
    assert budget.wait(300) is None
    assert budget.wait(301) == (3660.0, "bytes_per_hour")
    assert budget.wait(1, 4) == (24 * 3600 + 24 * 60, "samples_per_day")
    device.seconds += 3660
    assert budget.room() == (1000, 3)


def test_a_charge_survives_and_one_that_was_cancelled_does_not_count(device: Device) -> None:
    budget = device.budget(bytes_per_hour=1000)
    assert send(budget, 400)
    assert budget.charge(300, 1)
    budget.cancel()
    assert budget.room().bytes == 600
    assert budget.charge(500, 1)  # and then the process is killed
    for _ in range(3):
        device.seconds += 1800
        again = device.budget(bytes_per_hour=1000)
    assert again.room().bytes == 500, "the request under way counts from the first restart on"
    device.seconds += 60
    assert again.room().bytes == 1000
    assert stat.S_IMODE((device.path / "budget.json").stat().st_mode) == 0o600


def test_other_limits_see_what_was_sent_before(device: Device) -> None:
    assert send(device.budget(bytes_per_hour=1000), 400)
    assert device.budget(bytes_per_day=500, samples_per_month=1).room() == (100, 0)
    assert device.budget(bytes_per_month=300).room().bytes == 0, "a limit that was lowered"


def test_in_quiet_hours_nothing_is_sent(device: Device) -> None:
    budget = device.budget(quiet_hours=("08:00-18:00",), quiet_clock="utc", bytes_per_hour=100)
    assert budget.room() == (0, 0)
    assert not budget.charge(1, 1)
    assert budget.wait(1) == (10 * 3600, "quiet_hours")
    device.seconds = 10 * 3600
    assert send(budget, 100)
    device.seconds = 23.5 * 3600
    assert send(budget, 100)
    assert budget.wait(1) == (34 * 3600 - device.seconds, "quiet_hours"), "the hour ends in quiet hours"


def test_a_damaged_file_counts_as_used_up(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    (device.path / "budget.json").write_bytes(b"\0" * 100)
    budget = device.budget(bytes_per_hour=1000, samples_per_day=5)
    assert budget.room() == (0, 0)
    assert "cannot be read: all limits count as used up now; remove it" in caplog.text
    device.seconds = 3660
    assert budget.room() == (1000, 0)


def test_what_cannot_be_written_down_is_not_sent(device: Device) -> None:
    budget = device.budget(bytes_per_hour=1000)
    (device.path / "budget.json").mkdir()  # no file can take its place
    with pytest.raises(SpoolError, match=r"budget\.json.* cannot be written: .*nothing is sent until it can"):
        budget.charge(400, 1)
    (device.path / "budget.json").rmdir()
    assert budget.room().bytes == 1000
    assert send(budget, 1000)


def test_that_the_clock_was_set_is_written_down_at_once(device: Device) -> None:
    budget = device.budget(bytes_per_hour=1000)
    budget.status()
    assert not (device.path / "budget.json").exists()
    device.offset = 86_400
    budget.status()
    budget.look()
    assert msgspec.json.decode((device.path / "budget.json").read_bytes())["wall"] == NOW + 86_400


def test_the_status_says_how_it_goes(device: Device) -> None:
    budget = device.budget(bytes_per_hour=50_000_000, samples_per_day=96_000)
    for _ in range(37):
        assert send(budget, 1_000_000, 1000)
        device.seconds += 80.0
    device.seconds = 3599.0
    status = budget.status()
    assert (
        status.text
        == "37 of 50 MB this hour, on course; 37000 of 96000 samples this day, 888247 at this rate"
    )
    assert status.limits["bytes_per_hour"].used == 37_000_000
    assert status.limits["bytes_per_hour"].projected < 50_000_000
    assert not status.limits["samples_per_day"].on_course
    assert (status.waits_for, status.waits_until) == (None, None)
    assert budget.wait(20_000_000) is not None
    status = budget.status()
    assert status.waits_for == "bytes_per_hour"
    assert not status.limits["bytes_per_hour"].on_course
    assert status.waits_until is not None
    assert status.waits_until > NOW + device.seconds
    assert status.text.endswith("; waits for bytes_per_hour until 2027-01-15 09:09:00 UTC")
    budget.relax()
    assert budget.status().waits_for is None
    assert device.budget(quiet_hours=("01:00-02:00",)).status().text == "nothing waits for quiet hours"


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 10**6),
    limits=st.dictionaries(
        st.sampled_from(
            [f"{what}_per_{window}" for what in ("bytes", "samples") for window in ("hour", "day", "month")]
        ),
        st.integers(1, 5000),
        min_size=1,
    ),
)
def test_no_limit_is_ever_exceeded_over_any_window(
    quick_path: Path, seed: int, limits: dict[str, int]
) -> None:
    rng = random.Random(seed)
    device = Device(quick_path)
    (quick_path / "budget.json").unlink(missing_ok=True)
    budget = device.budget(**limits)
    sent: list[tuple[float, int, int]] = []
    for _ in range(150):
        size, samples = rng.randint(1, 1500), rng.randint(1, 40)
        if rng.random() < 0.5:
            room = budget.room()
            size, samples = min(size, room.bytes), min(samples, room.samples)
        if size and samples and budget.charge(size, samples):
            sent.append((device.seconds, size, samples))
            end = rng.random()
            if end < 0.6:
                budget.settle()
            elif end < 0.8:
                budget = device.budget(**limits)  # killed
            else:
                budget.cancel()
                sent.pop()
        device.seconds += rng.choice([0.25, 1, 30, 60, 900, 3600, 40_000, 86_400, 700_000])
        device.offset = rng.choice([device.offset, device.offset, -NOW, 0.0, 1e7, -1e7])
    spans = {"hour": 3600, "day": 86_400, "month": 30 * 86_400}
    for name, allowed in limits.items():
        column, span = (1 if name.startswith("bytes") else 2), spans[name.rsplit("_", 1)[1]]
        for end, *_ in sent:
            assert sum(entry[column] for entry in sent if end - span <= entry[0] <= end) <= allowed


KILLED = """
import sys
from pathlib import Path
from cema.edge.background import Clock
from cema.edge.budget import Budget
from cema.edge.budget_config import BudgetConfig
budget = Budget(BudgetConfig(bytes_per_hour=10**6), Path(sys.argv[1]), Clock())
while budget.charge(100, 1):
    print(100, flush=True)  # what would be sent
    budget.settle()
"""


def test_kill_9_never_gives_budget_back(tmp_path: Path) -> None:
    path, sent = tmp_path / "budget.json", 0
    for attempt in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True, env=os.environ
        )
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(20 + 9 * attempt)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.read().splitlines()
        process.stdout.close()
        assert process.wait(30) == -signal.SIGKILL
        sent += sum(int(line) for line in lines if line.strip() == "100")
        left = Budget(BudgetConfig(bytes_per_hour=10**6), path, Clock()).room().bytes
        assert left <= 10**6 - sent
        assert left >= 10**6 - sent - 100 * (attempt + 1), "at most what was under way is lost"


def test_the_devices_own_clock_goes_on() -> None:
    boot, first = uptime()
    again, second = uptime()
    assert boot == again != ""
    assert second >= first > 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bytes_per_hour = 0", r"bytes_per_hour: expected at least 1, got 0"),
        ("samples_per_month = -1", "samples_per_month: expected at least 1"),
        ('quiet_hours = ["8-18"]', "expected a range of the day"),
        ('first = "best"', "first"),
        ("duplicates = 256", "duplicates: expected a distance from 0 to 255"),
        ("remember = 0", "remember: expected a whole number from 1 to 4096"),
        ("seed = -1", "seed: expected a whole number from 0"),
        ("bytes_per_week = 5", "bytes_per_week"),
    ],
)
def test_settings_that_cannot_be_are_told(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "edge.toml"
    path.write_text(f'bundle = "b"\nstate = "s"\n[budget]\n{text}\n')
    with pytest.raises(ConfigError, match=words):
        EdgeConfig.load(path)


def test_without_limits_there_is_no_budget() -> None:
    assert not BudgetConfig().limited
    assert BudgetConfig(quiet_hours=("01:00-02:00",)).limited
    assert BudgetConfig(bytes_per_day=7).limits == {"bytes_per_day": 7}
