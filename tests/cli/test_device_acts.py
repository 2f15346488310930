"""What is done with devices at the command line: many at once, tokens with an overlap, and the other acts."""

from __future__ import annotations

import csv as csv_module
import json
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from cloud_process import PATIENCE
from cloud_toml import CLOUD
from hypothesis import given, settings
from hypothesis import strategies as st
from killed_command import killed_at
from typer.testing import CliRunner

from cema.cli.app import app
from cema.cli.device_file import read_rows
from cema.cloud.config import CloudConfig
from cema.cloud.store.devices import Device, DeviceLimits
from cema.cloud.store.sqlite import SqliteStore
from cema.edge.config import CloudLink
from cema.errors import CemaError, ConfigError, StoreError

DAY = 86_400.0
CSV_COLUMNS = ("name", "cohort", "role", "expires")
FIELD = CLOUD.partition("[[cohort]]")[2].replace('"yard"', '"field"')


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "cloud.toml"
    path.write_text(f"{CLOUD}\n[[cohort]]{FIELD}")
    return path


def device(*arguments: str, config: Path) -> str:
    done = CliRunner().invoke(app, ["device", *arguments, "--config", str(config)], env={"COLUMNS": "250"})
    if isinstance(done.exception, CemaError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def owner(token: str, config: Path) -> Device | None:
    with closing(CloudConfig.load(config).open_store()) as store:
        return store.devices([]).authenticate(token.strip())


def known(config: Path) -> dict[str, Device]:
    with closing(CloudConfig.load(config).open_store()) as store:
        return {device.name: device for device in store.devices([]).list()}


def acts(config: Path) -> list[tuple[str, str]]:
    with closing(CloudConfig.load(config).open_store()) as store:
        assert isinstance(store, SqliteStore)
        return [(one.act.name, one.act.subject) for one in store.audit(limit=1000)]


def csv(tmp_path: Path, *lines: str, header: str = "name,cohort,role,expires") -> Path:
    path = tmp_path / "devices.csv"
    path.write_text("\n".join((header, *lines, "")))
    return path


def add_all(config: Path, path: Path, out: Path, *more: str) -> str:
    return device("add", "--from", str(path), "--out", str(out), *more, config=config)


def test_a_file_of_devices_makes_a_token_file_for_each(tmp_path: Path, config: Path) -> None:
    path = csv(tmp_path, "cam-1,yard,,", "cam-2, field ,device,2099-01-01", "", "ann,,operator,90d")
    out = tmp_path / "new" / "tokens"
    printed = add_all(config, path, out)
    assert "added 3 devices" in printed
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    files = sorted(out.iterdir())
    assert [file.name for file in files] == ["ann.token", "cam-1.token", "cam-2.token"]
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        token = CloudLink(url="https://a", cohort="yard", token_file=str(file)).read_token()
        assert token not in printed
        found = owner(token, config)
        assert found is not None
        assert file.name == f"{found.name}.token"
    devices = known(config)
    assert [(d.name, d.role, d.cohort) for d in devices.values()] == [
        ("ann", "operator", None),
        ("cam-1", "device", "yard"),
        ("cam-2", "device", "field"),
    ]
    assert devices["cam-1"].expires_at is None
    assert devices["cam-2"].expires_at == 4_070_908_800.0
    assert abs((devices["ann"].expires_at or 0) - time.time() - 90 * DAY) < 600
    assert acts(config) == [("device.add", name) for name in ("cam-1", "cam-2", "ann")]


def test_the_same_file_again_adds_only_what_is_new(tmp_path: Path, config: Path) -> None:
    out = tmp_path / "tokens"
    add_all(config, csv(tmp_path, "cam-1,yard,,"), out)
    before = (out / "cam-1.token").read_text()
    path = csv(tmp_path, "cam-1,yard,,", "cam-2,yard,,")
    told = json.loads(add_all(config, path, out, "--json"))
    assert told == {
        "added": [{"name": "cam-2", "file": str(out / "cam-2.token")}],
        "there": [{"name": "cam-1", "file": str(out / "cam-1.token")}],
    }
    assert (out / "cam-1.token").read_text() == before
    assert "added 0 devices; 2 were added before" in add_all(config, path, out)
    assert acts(config) == [("device.add", "cam-1"), ("device.add", "cam-2")]


@pytest.mark.parametrize(
    ("header", "lines", "told"),
    [
        ("name,cohort", ["cam-1,yard", "a b,yard"], r"line 3, column name: .*got 'a b'"),
        (
            "name,cohort",
            ["cam-1,yard", "cam-2,west"],
            r"line 3, column cohort: .*'west'; choose one of field, yard",
        ),
        ("name,cohort", ["cam-1,"], r"line 2, column cohort: a device belongs to one cohort"),
        ("name,cohort,role", ["cam-1,yard,root"], r"line 2, column role: .*got 'root'"),
        ("cohort,name,expires", ["yard,cam-1,soon"], r"line 2, column expires: .*got 'soon'"),
        ("cohort,name,expires", ["yard,cam-1,2001-01-01"], r"line 2, column expires: .*after now"),
        ("name,cohort", ["cam-1,yard", "cam-2,yard", "cam-1,yard"], r"line 4, column name: .*line 2 already"),
        ("name,cohort", ["cam-1,yard", "cam-2"], r"line 3: expected as many cells"),
        ("name,cohort", ["cam-1,yard,device"], r"line 2: expected as many cells"),
        ("name", ["cam-1"], r"line 1: expected the column names name,cohort .*got 'name'"),
        ("name,cohort,colour", ["cam-1,yard,red"], r"line 1: .*'name,cohort,colour'"),
        ("name,cohort,name", ["cam-1,yard,x"], r"line 1: "),
        ("name,cohort", [], r"at least one device"),
        ("name,cohort", ['"cam-1,yard'], r"expected a CSV file"),
    ],
)
def test_a_fault_in_the_file_is_named_and_nothing_is_made(
    tmp_path: Path, config: Path, header: str, lines: list[str], told: str
) -> None:
    out = tmp_path / "tokens"
    with pytest.raises(ConfigError, match=told):
        add_all(config, csv(tmp_path, *lines, header=header), out)
    assert not out.exists()
    assert known(config) == {}


TEXTS = st.one_of(
    st.text(max_size=200), st.text('name,cohrtdvi\n"x-1é\0', max_size=80).map("name,cohort\n".__add__)
)


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_whatever_is_in_the_file_it_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.mktemp("file") / "devices.csv"
    path.write_text(text, errors="surrogatepass")
    try:
        rows = read_rows(path, ["yard", "field"])
    except ConfigError:
        return
    assert len({row.name for row in rows}) == len(rows) > 0


CELLS = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
        "cohort": st.sampled_from(["yard", "field"]),
        "role": st.sampled_from(["", "device", "operator", "admin"]),
        "expires": st.sampled_from(["", "never", "2099-01-01", "2099-01-01T12:00+02:00", "9d"]),
    }
)


@settings(max_examples=100, deadline=None)
@given(
    cells=st.lists(CELLS, min_size=1, max_size=20, unique_by=lambda row: row["name"]),
    order=st.permutations(CSV_COLUMNS),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, cells: list[dict[str, str]], order: list[str]
) -> None:
    path = tmp_path_factory.mktemp("file") / "devices.csv"
    with path.open("w", newline="") as file:
        writer = csv_module.DictWriter(file, order)
        writer.writeheader()
        writer.writerows(cells)
    rows = read_rows(path, ["yard", "field"])
    assert [(row.line, row.name, row.cohort, row.role) for row in rows] == [
        (line, row["name"], row["cohort"], row["role"] or "device") for line, row in enumerate(cells, 2)
    ]
    assert [row.expires_at is None for row in rows] == [row["expires"] in ("", "never") for row in cells]


@pytest.mark.parametrize(
    "text", ["9" * 400 + "d", "900000w", "10000-01-01", "1d 2h", "-3d", "inf", "NEVER", ""]
)
def test_a_moment_that_is_none_is_refused(config: Path, text: str) -> None:
    device("add", "cam", "--cohort", "yard", config=config)
    with pytest.raises(ConfigError, match="--at: expected"):
        device("expire", "cam", f"--at={text}", config=config)
    assert known(config)["cam"].expires_at is None


def test_every_fault_is_told_at_once(tmp_path: Path, config: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        add_all(
            config, csv(tmp_path, "a b,west,root,soon", *(f"{i} x,yard,," for i in range(30))), tmp_path / "t"
        )
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines[1:5]] == [
        f"line 2, column {name}" for name in ("name", "role", "cohort", "expires")
    ]
    assert (len(lines), lines[-1]) == (22, "and 14 more")


def test_a_spreadsheet_s_file_is_read(tmp_path: Path, config: Path) -> None:
    path = tmp_path / "devices.csv"
    path.write_bytes('\ufeffname,cohort\r\n"cam-1","yard"\r\n'.encode())
    add_all(config, path, tmp_path / "tokens")
    assert list(known(config)) == ["cam-1"]
    path.write_bytes("name,cohort\ncäm,yard".encode("latin-1"))
    with pytest.raises(ConfigError, match="UTF-8"):
        add_all(config, path, tmp_path / "tokens")


def test_what_is_in_the_way_is_left_alone_and_nothing_is_made(tmp_path: Path, config: Path) -> None:
    out = tmp_path / "tokens"
    path = csv(tmp_path, "cam-1,yard,,", "cam-2,yard,,")
    device("add", "cam-2", "--cohort", "yard", config=config)
    with pytest.raises(ConfigError, match=r"line 3, column name: there is a device 'cam-2' already"):
        add_all(config, path, out)
    device("remove", "cam-2", config=config)
    out.mkdir()

    def refused(told: str) -> None:
        with pytest.raises(ConfigError, match=told):
            add_all(config, path, out)
        assert known(config) == {}
        assert not (out / "cam-1.token").exists()

    (out / "cam-2.token").write_text("somebody's notes\n")
    refused("no token that this command has written")
    (out / "cam-2.token").write_text("x" * 43 + "\n")
    (out / "cam-2.token").chmod(0o644)
    refused("no token that this command has written")
    (out / "cam-2.token").unlink()
    (out / "cam-2.token").symlink_to(path)
    refused("no token that this command has written")
    (out / "cam-2.token").unlink()
    (out / "cam-2.token").mkdir()
    refused("no token that this command has written")
    path.with_name("file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written there"):
        add_all(config, path, tmp_path / "file" / "tokens")
    assert known(config) == {}


def test_a_token_of_another_device_is_not_given_twice(tmp_path: Path, config: Path) -> None:
    out = tmp_path / "tokens"
    add_all(config, csv(tmp_path, "cam-1,yard,,"), out)
    (out / "cam-1.token").rename(out / "cam-2.token")
    with pytest.raises(ConfigError, match="token of another device"):
        add_all(config, csv(tmp_path, "cam-2,yard,,"), out)
    (out / "cam-2.token").rename(out / "cam-1.token")
    with pytest.raises(ConfigError, match="was added as device of cohort yard"):
        add_all(config, csv(tmp_path, "cam-1,field,,"), out)


@pytest.mark.parametrize(
    "wrong",
    [["cam-9"], ["--cohort", "yard"], ["--expires", "9d"], ["--role", "admin"]],
)
def test_what_the_file_says_is_not_said_twice(tmp_path: Path, config: Path, wrong: list[str]) -> None:
    with pytest.raises(ConfigError, match="the file says that"):
        add_all(config, csv(tmp_path, "cam-1,yard,,"), tmp_path / "t", *wrong)
    with pytest.raises(ConfigError, match="--out: expected a folder"):
        device("add", "--from", str(csv(tmp_path, "cam-1,yard,,")), config=config)
    with pytest.raises(ConfigError, match="got neither"):
        device("add", config=config)


def test_a_token_is_exchanged_with_an_overlap(tmp_path: Path, config: Path) -> None:
    old = device("add", "cam", "--cohort", "yard", config=config)
    assert device("token", "cam", config=config) == "1 token\n"
    out = tmp_path / "new.token"
    told = device("token", "cam", "--renew", "--out", str(out), config=config)
    assert "2 tokens until " in told
    assert "the newest was not used yet" in told
    assert out.read_text().strip() not in told
    for token in (old, out.read_text()):
        assert owner(token, config) is not None
    until = json.loads(device("token", "cam", "--json", config=config))["older_token_until"]
    assert abs(until - time.time() - 7 * DAY) < 600
    assert "2 tokens until" in device("list", config=config)
    last = device("token", "cam", "--renew", "--overlap", "0", config=config)
    assert [owner(token, config) is None for token in (old, out.read_text(), last)] == [True, True, False]
    assert json.loads(device("list", "--json", config=config))[0]["older_token_until"] is None
    with pytest.raises(ConfigError, match="--overlap: expected a duration such as 7d"):
        device("token", "cam", "--renew", "--overlap", "soon", config=config)
    with pytest.raises(StoreError, match="no device 'nobody'"):
        device("token", "nobody", config=config)
    with pytest.raises(StoreError, match="the act renew"):
        device("token", "cam", "--renew", "--overlap", "400d", config=config)


def test_acts_do_what_they_say_and_the_list_tells(config: Path) -> None:
    device("add", "cam", "--cohort", "yard", "--expires", "2099-01-01", config=config)
    rows: Callable[[], str] = lambda: device("list", config=config)  # noqa: E731
    assert "expires 2099-01-01 00:00:00 UTC" in rows()
    device("expire", "cam", "--at", "9d", config=config)
    assert "its token expires in 9 days" in rows() or "its token expires in 8 days" in rows()
    with closing(CloudConfig.load(config).open_store()) as store:
        assert isinstance(store, SqliteStore)
        with store.database.write() as connection:  # as if the days had passed
            connection.execute("UPDATE devices SET expires_at = 5")
    assert "expired 1970-01-01 00:00:05 UTC" in rows()
    assert "never expires" in device("expire", "cam", "--at", "never", config=config)
    with pytest.raises(ConfigError, match="--at: expected a moment after now"):
        device("expire", "cam", "--at", "2001-01-01", config=config)
    told = device("move", "cam", "--to", "field", config=config)
    assert "Set cloud.cohort to 'field'" in told
    assert known(config)["cam"].cohort == "field"
    device("quarantine", "cam", config=config)
    assert "quarantined by os:" in rows()
    device("release", "cam", config=config)
    told = device("limit", "cam", "--samples-per-hour", "500", "--bytes-per-day", "0", config=config)
    assert told == "limits of cam: samples per hour: 500, bytes per day: no limit\n"
    assert "samples per hour: 500" in rows()
    assert known(config)["cam"].limits == DeviceLimits(samples_per_hour=500, bytes_per_day=0)
    assert device("limit", "cam", "--as-configured", config=config) == "limits of cam: as configured\n"
    with pytest.raises(ConfigError, match="at least one of --samples-per-hour"):
        device("limit", "cam", config=config)
    device("revoke", "cam", config=config)
    device("remove", "cam", config=config)
    assert known(config) == {}
    assert [name for name, _ in acts(config)] == [
        f"device.{name}"
        for name in (
            "add",
            "expire",
            "expire",
            "move",
            "quarantine",
            "release",
            "limit",
            "limit",
            "revoke",
            "remove",
        )
    ]


def test_the_list_tells_whom_the_worker_has_quarantined(config: Path) -> None:
    device("add", "cam", "--cohort", "yard", config=config)
    device("add", "dog", "--cohort", "yard", config=config)
    device("quarantine", "dog", config=config)
    with closing(CloudConfig.load(config).open_store()) as store:
        store.open_cohort("yard", base="b")
        store.put_report("yard", {"ready": True, "quarantined": ["cam"]}, now=1.0)
    found = {row["name"]: row for row in json.loads(device("list", "--json", config=config))}
    assert [found[name]["quarantined_by_worker"] for name in ("cam", "dog")] == [True, False]
    assert found["cam"]["quarantined_by"] is None
    assert found["dog"]["quarantined_by"].startswith("os:")
    (line,) = [line for line in device("list", config=config).splitlines() if "cam" in line]
    assert "quarantined by the worker: unlike all others" in line


def test_machines_get_json_of_every_act(tmp_path: Path, config: Path) -> None:
    made = json.loads(device("add", "cam", "--cohort", "yard", "--json", config=config))
    assert owner(made["token"], config) is not None
    out = tmp_path / "t"
    assert json.loads(device("renew", "cam", "--out", str(out), "--json", config=config)) == {
        "name": "cam",
        "file": str(out),
    }
    renewed = json.loads(device("token", "cam", "--renew", "--json", config=config))
    assert owner(renewed["token"], config) is not None
    for act, rest, member, value in (
        ("move", ["--to", "field"], "cohort", "field"),
        ("expire", ["--at", "2099-01-01"], "expires_at", 4_070_908_800.0),
        ("limit", ["--bytes-per-hour", "7"], "limits", {"samples_per_hour": None, "samples_per_day": None,
                                                       "bytes_per_hour": 7, "bytes_per_day": None}),
        ("release", [], "quarantined_at", None),
    ):  # fmt: skip
        if act == "release":
            assert json.loads(device("quarantine", "cam", "--json", config=config))["quarantined_at"] > 0
        assert json.loads(device(act, "cam", *rest, "--json", config=config))[member] == value
    assert json.loads(device("revoke", "cam", "--json", config=config))["revoked_at"] > 0
    assert json.loads(device("remove", "cam", "--json", config=config)) == {"name": "cam", "removed": True}


def test_a_command_that_is_killed_is_run_again_and_completes(tmp_path: Path, config: Path) -> None:
    path, seen = csv(tmp_path, "cam-1,yard,,", "cam-2,field,,90d", "cam-3,yard,,"), set()
    device("list", config=config)  # the store is there, as in a cloud that has run
    shutil.copytree(tmp_path / "cloud", tmp_path / "before")
    point = 0
    while True:
        out = tmp_path / f"tokens-{point}"
        command = ("device", "add", "--from", str(path), "--out", str(out), "--config", str(config))
        killed = killed_at(point, *command)
        names = set(known(config))
        assert names in (set(), {"cam-1", "cam-2", "cam-3"}), "all or none"
        seen.add(bool(names))
        left = {file.name: file.read_text() for file in out.glob("*.token")}
        if names:
            assert left.keys() == {f"{name}.token" for name in names}
        add_all(config, path, out)
        assert left.items() <= {file.name: file.read_text() for file in out.glob("*.token")}.items()
        for name in ("cam-1", "cam-2", "cam-3"):
            found = owner((out / f"{name}.token").read_text(), config)
            assert found is not None
            assert found.name == name
        assert acts(config) == [("device.add", name) for name in ("cam-1", "cam-2", "cam-3")]
        if not killed:
            break
        shutil.rmtree(tmp_path / "cloud")
        shutil.copytree(tmp_path / "before", tmp_path / "cloud")
        point += 1
    assert point >= 10
    assert seen == {False, True}


def test_a_renewal_that_is_killed_leaves_the_device_a_token_and_is_run_again(
    tmp_path: Path, config: Path
) -> None:
    old = device("add", "cam", "--cohort", "yard", config=config)
    point = 0
    while True:
        out = tmp_path / f"{point}.token"
        command = ("device", "token", "cam", "--renew", "--out", str(out), "--config", str(config))
        killed = killed_at(point, *command)
        assert owner(old, config) is not None, "the device has not got the new one yet"
        if out.exists():
            assert owner(out.read_text(), config) is not None
        if not killed:
            break
        point += 1
    assert point >= 5
    assert out.exists()


def test_of_two_commands_at_one_time_each_ends_or_says_to_run_it_again(tmp_path: Path, config: Path) -> None:
    device("list", config=config)
    path = csv(tmp_path, *(f"cam-{i},yard,," for i in range(40)))
    command = ["device", "add", "--from", str(path), "--out", str(tmp_path / "t"), "--config", str(config)]
    running = [
        subprocess.Popen([sys.executable, "-m", "cema", *command], stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in running:
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode in (0, 1)
        assert process.returncode == 0 or "run it again" in errors or "cannot be written there" in errors, (
            errors
        )
    add_all(config, path, tmp_path / "t")
    assert len(acts(config)) == 40
    for i in range(40):
        found = owner((tmp_path / "t" / f"cam-{i}.token").read_text(), config)
        assert found is not None
        assert found.name == f"cam-{i}"
