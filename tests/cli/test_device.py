"""Tokens of devices: given out once, to a file that only its owner reads, and renewed."""

from __future__ import annotations

import json
import stat
from contextlib import closing
from pathlib import Path

import pytest
from cloud_toml import CLOUD
from typer.testing import CliRunner

from cema.cli.app import app
from cema.cloud.config import CloudConfig
from cema.cloud.store.activity import Poll
from cema.cloud.store.devices import Device
from cema.cloud.store.reports import Reported
from cema.cloud.store.sqlite import SqliteStore
from cema.errors import CemaError, ConfigError, StoreError
from cema.formats.report import DeviceReport, Refused, Served
from cema.testing.store_data import numbered_sample


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "cloud.toml"
    path.write_text(CLOUD)
    return path


def device(*arguments: str, config: Path) -> str:
    done = CliRunner().invoke(app, ["device", *arguments, "--config", str(config)], env={"COLUMNS": "200"})
    if isinstance(done.exception, CemaError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def owner(token: str, config: Path) -> Device | None:
    with closing(CloudConfig.load(config).open_store()) as store:
        return store.devices([]).authenticate(token.strip())


def test_a_token_goes_to_a_new_file_that_only_its_owner_reads(tmp_path: Path, config: Path) -> None:
    out = tmp_path / "camera.token"
    printed = device("add", "camera", "--cohort", "yard", "--out", str(out), config=config)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert out.read_text().strip() not in printed
    known = owner(out.read_text(), config)
    assert known is not None
    assert known.name == "camera"


@pytest.mark.parametrize("command", ["add", "renew"])
def test_a_file_that_is_there_is_left_alone_and_so_is_the_register(
    tmp_path: Path, config: Path, command: str
) -> None:
    token = device("add", "first", "--cohort", "yard", config=config)
    name, rest = ("second", ["--cohort", "yard"]) if command == "add" else ("first", [])
    out = tmp_path / "camera.token"
    out.write_text("kept")
    with pytest.raises(ConfigError, match="already"):
        device(command, name, *rest, "--out", str(out), config=config)
    assert out.read_text() == "kept"
    assert owner(token, config) is not None
    assert "second" not in device("list", config=config)


@pytest.mark.parametrize("place", ["absent/camera.token", "cloud.toml/camera.token"])
def test_a_file_that_cannot_be_written_costs_no_name(tmp_path: Path, config: Path, place: str) -> None:
    with pytest.raises(ConfigError, match="--out"):
        device("add", "camera", "--cohort", "yard", "--out", str(tmp_path / place), config=config)
    device("add", "camera", "--cohort", "yard", config=config)


def test_a_refused_device_leaves_no_file(tmp_path: Path, config: Path) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(StoreError, match="no cohort 'field'"):
        device("add", "camera", "--cohort", "field", "--out", str(tmp_path / "t"), config=config)
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "cloud"] == before


def test_a_renewed_token_works_and_the_old_one_does_not(tmp_path: Path, config: Path) -> None:
    old = device("add", "camera", "--cohort", "yard", config=config)
    out = tmp_path / "camera.token"
    device("renew", "camera", "--out", str(out), config=config)
    assert owner(old, config) is None
    printed = device("renew", "camera", config=config)
    assert owner(out.read_text(), config) is None
    known = owner(printed, config)
    assert known is not None
    assert known.name == "camera"


def test_who_cannot_be_renewed_is_told_why(config: Path) -> None:
    with pytest.raises(StoreError, match="no device 'nobody'"):
        device("renew", "nobody", config=config)
    device("add", "camera", "--cohort", "yard", config=config)
    device("revoke", "camera", config=config)
    with pytest.raises(StoreError, match="revoked"):
        device("renew", "camera", config=config)


def test_a_taken_name_leads_to_renew(config: Path) -> None:
    device("add", "camera", "--cohort", "yard", config=config)
    with pytest.raises(StoreError, match="renew"):
        device("add", "camera", "--cohort", "yard", config=config)


def test_the_list_tells_what_is_known_of_each_device(config: Path) -> None:
    device("add", "camera", "--cohort", "yard", config=config)
    device("add", "silent", "--cohort", "yard", config=config)
    with closing(CloudConfig.load(config).open_store()) as store:
        assert isinstance(store, SqliteStore)
        store.open_cohort("yard", base="b")
        sample = numbered_sample(1, 2000)  # captured at 1e9 + 1 s, by a clock that is ahead
        store.put("yard", [sample], device="camera", now=1e9 - 60, max_backlog=10)
        store.note_polls([Poll("yard", "camera", 1e9, 5)])
    printed = device("list", config=config)
    rows = {
        line.split()[1]: " ".join(line.replace("│", " ").split())
        for line in printed.splitlines()
        if "yard" in line
    }
    assert " 5 2 1 2.0 kB silent for " in rows["camera"]
    assert rows["camera"].endswith("its clock is 61 s ahead")
    assert rows["silent"].endswith("never")
    camera, silent = json.loads(device("list", "--json", config=config))
    assert (camera["name"], camera["seen_at"], camera["has"], camera["ran"]) == ("camera", 1e9, 5, 2)
    assert (silent["seen_at"], silent["samples"]) == (None, None)


def test_what_a_device_says_is_text_and_moves_no_terminal(config: Path) -> None:
    device("add", "camera", "--cohort", "yard", config=config)
    said = "\x1b]0;owned\x07\x1b[2J [/bold] [red]\N{RIGHT-TO-LEFT OVERRIDE}\nend"
    report = DeviceReport(boot="0" * 16, number=1, serving=Served(version=4), problem=said)
    with closing(CloudConfig.load(config).open_store()) as store:
        assert isinstance(store, SqliteStore)
        store.note_reports([Reported("yard", "camera", 1e9, report)])
    told = device("list", config=config)
    assert "[/bold] [red]" in told
    assert all(letter.isprintable() or letter == "\n" for letter in told)
    (camera,) = json.loads(device("list", "--json", config=config))
    assert camera["report"]["problem"] == said, "programs have it as it came"


def test_the_list_tells_what_each_device_has_reported(config: Path) -> None:
    device("add", "camera", "--cohort", "yard", config=config)
    device("add", "other", "--cohort", "yard", config=config)
    report = DeviceReport(
        boot="0" * 16,
        number=3,
        serving=Served(version=4, predicted=70),
        refused=Refused(version=5, reason="returned"),
        counts={"predicted": 400, "selected": 100, "guarded": 10},
        problem="no link",
        sent_at=1e9 - 90,
    )
    on_time = DeviceReport(boot="1" * 16, number=1, serving=Served(version=4), sent_at=1e9 - 1)
    with closing(CloudConfig.load(config).open_store()) as store:
        assert isinstance(store, SqliteStore)
        store.open_cohort("yard", base="b")
        store.note_reports([Reported("yard", "camera", 1e9, report), Reported("yard", "other", 1e9, on_time)])
    rows = {
        line.split()[1]: " ".join(line.replace("│", " ").split())
        for line in device("list", config=config).splitlines()
        if "yard" in line
    }
    assert " 25.0% 2.5% silent for " in rows["camera"]
    expected = "refused version 5: returned; its clock is 90 s behind; no link"
    assert rows["camera"].split("days; ")[1] == expected
    assert "clock" not in rows["other"]
    camera, other = json.loads(device("list", "--json", config=config))
    assert (camera["clock_offset"], camera["reports"]) == (-90.0, {"received": 1, "lost": 2})
    assert camera["report"]["serving"]["predicted"] == 70
    assert other["clock_offset"] == -1.0
