"""`cema top`: where every cohort stands, from the store of a cloud, running or not."""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path

import pytest
from cloud_toml import CLOUD
from typer.testing import CliRunner

from cema.cli.app import app
from cema.cli.top import overview_tables, sparkline
from cema.cloud.config import CloudConfig
from cema.cloud.store.agreements import AgreementCount
from cema.cloud.store.history import HistoryNote
from cema.cloud.store.overview import told_agreement
from cema.cloud.store.sqlite import SqliteStore
from cema.errors import CemaError, ConfigError
from cema.testing.store_data import numbered_sample, numbered_update

NORTH = '\n[[cohort]]\nname = "north"\nbundle = "b"\nmodel = "m"\nfoundation = "f"\n'
PRICE = '\n[traffic]\nprice = 2.0\ncurrency = "EUR"\n'


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "cloud.toml"
    path.write_text(CLOUD + NORTH + PRICE)
    now = time.time()
    with closing(CloudConfig.load(path).open_store()) as store:
        assert isinstance(store, SqliteStore)
        store.open_cohort("yard", base="b")
        store.devices(["yard"]).add("cam", cohort="yard")
        store.put("yard", [numbered_sample(i) for i in range(3)], device="cam", now=now, max_backlog=10)
        measured = [AgreementCount(4, "running", 400, 360), AgreementCount(4, "source", 400, 200)]
        store.commit_step(
            "yard",
            2,
            b"",
            numbered_update(4),
            epoch=store.claim("yard").epoch,
            now=now,
            report={"ready": True},
            measured=measured,
        )
        old = HistoryNote("yard", now - 12 * 3600, {"agreement.running": (100, 10), "bytes.up": (1, 5e8)})
        store.note_history([old, HistoryNote("yard", now, {"agreement.running": (100, 90)})])
    return path


def top(*arguments: str, config: Path | None = None) -> str:
    where = [] if config is None else ["--config", str(config)]
    done = CliRunner().invoke(app, ["top", "--once", *where, *arguments], env={"COLUMNS": "180"})
    if isinstance(done.exception, CemaError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_every_cohort_has_a_row_and_a_sentence(config: Path) -> None:
    printed = top(config=config)
    (row,) = (line.split("│")[1:-1] for line in printed.splitlines() if "✓ ok" in line)
    cells = [cell.strip() for cell in row]
    assert cells[:4] == ["✓ ok", "yard", "90.0", "50.0"]
    assert cells[5:] == ["4", "1", "0", "500.00 MB", "0.0 kB", "1.00 EUR"]
    assert (cells[4][0], cells[4][-1]) == ("▁", "█")
    assert "yard: Agrees with the foundation model on 90 % ± 3 of new samples, unadapted 50 %." in printed
    assert "north: The cloud was never started with this cohort" in printed


def test_the_table_has_the_numbers_of_the_sentence() -> None:
    few = {"share": 0.5, "low": 0.1, "high": 0.9, "samples": 2}
    many = {"share": 0.98, "low": 0.95, "high": 1.0, "samples": 140}
    told = {
        "random_agreement": {"device": few, "running": few, "source": few},
        "agreement": {"device": many, "running": many | {"share": 0.9}, "source": many | {"share": 0.86}},
    }
    found = told_agreement(told)
    assert found is not None
    what, now, source = found
    assert (what, now["share"], source and source["share"]) == ("new samples", 0.98, 0.86)
    assert told_agreement({"random_agreement": {}, "agreement": {"running": few}}) is None


def test_programs_get_the_members_of_the_api(config: Path) -> None:
    found = json.loads(top("--json", config=config))
    yard = next(one for one in found["cohorts"] if one["cohort"] == "yard")
    assert (yard["level"], yard["version"], yard["day"]["cost"]) == ("ok", 4, 1.0)
    assert [share for share in yard["trend"] if share is not None] == [0.1, 0.9]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--url", "http://127.0.0.1:9"], "--token-file"),
        (["--token-file", "t"], "--url"),
        (["--url", "http://127.0.0.1:9", "--token-file", "none"], "put an operator's token there"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        top(*arguments)


def test_a_cloud_that_is_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-token\n")
    with pytest.raises(ConfigError, match="does not answer"):
        top("--url", "http://127.0.0.1:9", "--token-file", str(tmp_path / "token"))


def test_text_from_outside_is_no_markup() -> None:
    from rich.console import Console

    told = "[red]not red[/red] [/]"
    one = {
        "cohort": "yard", "level": "warn", "sentence": told, "problems": [told], "agreement": {},
        "random_agreement": {}, "version": 0, "devices": {"registered": 0, "silent": 0}, "trend": [],
        "day": {"bytes_up": 0, "bytes_down": 0, "cost": None},
    }  # fmt: skip
    console = Console(width=160)
    with console.capture() as captured:
        console.print(overview_tables({"cohorts": [one], "error": told}))
    assert captured.get().count(told) == 3


def test_a_trend_has_a_bar_for_each_share() -> None:
    assert sparkline([0.0, 1.0, None, 0.99]) == "▁█ █"
