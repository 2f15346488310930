"""Acts on devices in the SQLite store: in any order, in stores from before, and in processes that are killed."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cema.cloud.store import sqlite_fleet
from cema.cloud.store.devices import Device
from cema.cloud.store.fleet import Expire, Quarantine, Renew, fleet_of
from cema.cloud.store.sqlite import SqliteStore
from cema.errors import StoreError

CAP = 8 * 2**20
NOW = 1e9
# As it was before there were acts on devices.
BEFORE = """
DROP INDEX devices_older;
DROP INDEX devices_quarantined;
DROP TABLE device_usage;
CREATE TABLE old (
    name TEXT PRIMARY KEY, role TEXT NOT NULL, cohort TEXT, token_hash BLOB NOT NULL UNIQUE,
    created_at REAL NOT NULL, revoked_at REAL
) WITHOUT ROWID;
INSERT INTO old SELECT name, role, cohort, token_hash, created_at, revoked_at FROM devices;
DROP TABLE devices;
ALTER TABLE old RENAME TO devices;
"""


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["renew", "renew", "use", "end"]), st.floats(0.0, 100.0)), max_size=12
    )
)
def test_at_most_two_tokens_are_good_and_the_one_that_the_device_uses_is_among_them(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, float]]
) -> None:
    path = tmp_path_factory.mktemp("tokens") / "cema.db"
    now = time.time()  # overlaps are far longer than the test
    with closing(SqliteStore(path, max_bytes=CAP)) as store:
        devices = fleet_of(store.devices(["north"]))
        made = [devices.add("cam", cohort="north")]
        used = made[0]
        for what, seconds in steps:
            if what == "renew":
                made.append(devices.act("cam", Renew(overlap=1e6 + seconds), now=now).token or "")
            elif what == "end":
                made.append(devices.act("cam", Renew(), now=now).token or "")
                used = made[-1]  # the device must be given it by hand
            else:
                used = made[-1]
                devices.note_taken(["cam"], now=now)
            good = [token for token in made if devices.authenticate(token) is not None]
            assert len(good) <= 2
            assert {used, made[-1]} == set(good) or {used, made[-1]} < set(good)


def test_a_store_from_before_takes_acts_and_a_program_from_before_takes_the_store(tmp_path: Path) -> None:
    path = tmp_path / "cema.db"
    with closing(SqliteStore(path, max_bytes=CAP)) as store:
        token = store.devices(["north"]).add("cam", cohort="north", now=5.0)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(BEFORE)
    for _ in range(2):
        with closing(SqliteStore(path, max_bytes=CAP)) as store:
            devices = fleet_of(store.devices(["north"]))
            found = devices.authenticate(token)
            assert found is not None
            assert (found.name, found.created_at) == ("cam", 5.0)
            devices.act("cam", Expire(at=2e9))
    with closing(sqlite3.connect(path)) as connection:  # what the program from before does with it
        connection.execute(
            "INSERT INTO devices (name, role, cohort, token_hash, created_at) "
            "VALUES ('new', 'device', 'north', x'00', 1)"
        )
        connection.execute("UPDATE devices SET revoked_at = 7 WHERE name = 'new'")
        connection.commit()
    with closing(SqliteStore(path, max_bytes=CAP)) as store:
        cam, new = store.devices([]).list()
        assert (cam.expires_at, new) == (2e9, Device("new", "device", "north", 1.0, 7.0))


def test_a_store_that_cannot_have_it_is_a_plain_register(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cema.db"
    with closing(SqliteStore(path, max_bytes=CAP)) as store:
        token = store.devices(["north"]).add("cam", cohort="north", now=5.0)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(BEFORE)
    monkeypatch.setattr(sqlite_fleet, "BESIDE", {"device_usage": "CREATE TABLE device_usage (no such thing"})
    with closing(SqliteStore(path, max_bytes=CAP)) as store:
        devices = fleet_of(store.devices(["north"]))
        assert devices.authenticate(token) == Device("cam", "device", "north", 5.0, None)
        assert devices.list() == (devices.authenticate(token),)
        token = devices.renew("cam")
        devices.revoke("cam", now=6.0)
        assert devices.authenticate(token) == Device("cam", "device", "north", 5.0, 6.0)
        devices.add("dog", cohort="north")
        with pytest.raises(StoreError, match="no room for acts"):
            devices.act("dog", Quarantine())
        assert (list(devices.quarantined()), devices.usage("dog")) == ([], {})
        devices.note_taken(["dog"], now=1.0)
        devices.keep_usage({"dog": {}})
    with closing(sqlite3.connect(path)) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(devices)")]
        assert "limits" not in columns, "all or nothing"


# One act of each kind on its own device, and nothing else; killed before the statement of the given number.
KILLED = """
import json, os, signal, sys
from pathlib import Path
import msgspec
from cema.cloud.store.fleet import *
from cema.cloud.store.fleet import DeviceAct
from cema.cloud.store.sqlite import SqliteStore

path, left, name, content = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
store = SqliteStore(Path(path), max_bytes=int(sys.argv[5]))
devices = store.audited_devices(["north", "south"], actor="os:ann")

def count(statement):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

store.database._writer.set_trace_callback(count)
if name == "new":
    devices.add_all([NewDevice(f"new-{i}", "north", "device", "t" * 42 + str(i), 2e9) for i in range(3)])
else:
    devices.act(name, msgspec.json.decode(content, type=DeviceAct), now=1e9)
"""
ACTS = {
    "renew": {"overlap": 1e7},
    "move": {"to": "south"},
    "expire": {"at": 2e9},
    "quarantine": {},
    "limit": {"samples_per_day": 4},
    "revoke": {},
    "remove": {},
    "add": {},
}


def told(path: Path) -> tuple[object, ...]:
    """Return all that acts change, without what is drawn or read off a clock, and the record of acts."""
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        devices = [dict(row) for row in connection.execute("SELECT * FROM devices ORDER BY name")]
        for device in devices:
            device["token_hash"] = device["token_hash"] == bytes(32)
            device["created_at"] = 0
        usage = connection.execute("SELECT count(*) FROM device_usage").fetchone()[0]
        acts = [tuple(row) for row in connection.execute("SELECT actor, act, subject, detail FROM audit")]
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    return devices, usage, acts


@pytest.mark.parametrize("act", ACTS)
def test_an_act_whose_process_is_killed_is_there_whole_with_its_record_or_not_at_all(
    tmp_path: Path, act: str
) -> None:
    seen, point = [], 0
    while True:
        path = tmp_path / f"{point}.db"
        with closing(SqliteStore(path, max_bytes=CAP)) as store:
            devices = fleet_of(store.devices(["north"]))
            devices.add("cam", cohort="north")
            devices.keep_usage({"cam": {}})
            with store.database.write() as connection:
                connection.execute("UPDATE devices SET token_hash = ?", (bytes(32),))
                connection.execute("INSERT INTO device_usage VALUES ('cam', 'samples_per_day', 1, 1)")
        before = told(path)
        content = json.dumps({"type": act, **ACTS[act]})
        name = "new" if act == "add" else "cam"
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(path), str(point), name, content, str(CAP)],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        seen.append(told(path))
        if done.returncode == 0:
            break
        assert seen[-1] == before
        point += 1
    assert seen[-1] != before
    assert point >= 4  # before BEGIN, the change, the record and COMMIT, at least
    devices_now, usage, acts = seen[-1]
    assert len(acts) == (3 if act == "add" else 1)  # type: ignore[arg-type]
    assert usage == (0 if act == "remove" else 1)
    assert len(devices_now) == {"add": 4, "remove": 0}.get(act, 1)  # type: ignore[arg-type]
