"""Copies of a cloud's store, and stores that are restored from them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from backup_cloud import CONFIG, config, damage, database, integrity, publish, version
from cloud_process import PATIENCE, Server, eventually
from cloud_support import make_samples, samples_of
from cloud_tiny_models import quadrants
from hypothesis import given
from hypothesis import strategies as st
from recorded_folders import recorded
from worker_cloud import Cloud, cloud

from cema.cloud import backup as backups
from cema.cloud.config import CloudConfig
from cema.cloud.data_folder import lock_data_folder
from cema.cloud.store.backups import BackupStore, backups_of, restorer_of, version_floor
from cema.cloud.store.fleet import Expire, Quarantine, Remove, fleet_of
from cema.cloud.store.open import backend_of
from cema.cloud.store.sqlite import SqliteStore
from cema.errors import ConfigError, StoreError

__all__ = ["cloud", "config", "recorded"]


def test_a_copy_has_everything_and_is_readable_by_its_owner_alone(
    config: CloudConfig, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(database(config))) as connection:
        connection.execute("CREATE TABLE of_another_module (x)")
        connection.execute("INSERT INTO of_another_module VALUES (7)")
        connection.commit()
    out, told = tmp_path / "out.db", []
    content = backups.backup(config, out, lambda done, total: told.append((done, total)))
    assert (content.devices, content.revoked) == (2, 1)
    assert (content.cohorts["north"].version, content.cohorts["north"].samples) == (3, 5)
    assert content.size == out.stat().st_size == told[-1][0] == told[-1][1] or content.size >= told[-1][1]
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cloud.toml", "data", "out.db"]
    with closing(sqlite3.connect(database(config))) as one, closing(sqlite3.connect(out)) as other:
        for pragma in ("page_size", "auto_vacuum", "user_version"):
            assert one.execute(f"PRAGMA {pragma}").fetchone() == other.execute(f"PRAGMA {pragma}").fetchone()
        assert other.execute("SELECT x FROM of_another_module").fetchall() == [(7,)]
        assert other.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        # What the copy alone has: when it was made.
        lines = [set(connection.iterdump()) for connection in (one, other)]
        assert {line.split()[2].strip('"') for line in lines[1] - lines[0]} == {"backup"}
        assert lines[0] <= lines[1]


def test_a_file_that_is_there_is_not_overwritten(config: CloudConfig, tmp_path: Path) -> None:
    out = tmp_path / "out.db"
    out.write_text("mine")
    with pytest.raises(ConfigError, match="there is such a file already"):
        backups.backup(config, out)
    assert out.read_text() == "mine"
    with pytest.raises(ConfigError, match="cannot be written"):
        backups.backup(config, tmp_path / "no folder" / "out.db")


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    (tmp_path / "cloud.toml").write_text(CONFIG)
    with pytest.raises(StoreError, match="no store that can be read"):
        backups.backup(CloudConfig.load(tmp_path / "cloud.toml"), tmp_path / "out.db")
    assert [path.name for path in tmp_path.iterdir()] == ["cloud.toml"]


def test_a_damaged_store_gives_no_backup(config: CloudConfig, tmp_path: Path) -> None:
    with closing(config.open_store()) as store:
        store.put("north", make_samples(200, 1), device="d", now=1.0, max_backlog=1000)
    damage(database(config))
    with pytest.raises(StoreError, match=r"damaged|malformed"):
        backups.backup(config, tmp_path / "out.db")
    assert not list(tmp_path.glob("*out.db*"))


def test_a_backup_becomes_the_store_of_an_empty_folder(config: CloudConfig, tmp_path: Path) -> None:
    out = tmp_path / "out.db"
    backups.backup(config, out)
    before = out.read_bytes()
    shutil.rmtree(config.data)
    done = backups.restore(config, out)
    assert (done.store.kept, done.store.tokens_back) == ((), None)
    assert out.read_bytes() == before
    assert stat.S_IMODE(database(config).stat().st_mode) == 0o600
    with closing(config.open_store()) as store:
        assert store.backlog("north").samples == 5
        assert version_floor(store, "north") == done.next_versions["north"] > 3
        for number in (4, done.next_versions["north"] - 1):
            with pytest.raises(StoreError, match="devices may have seen those below"):
                publish(store, number)
        publish(store, done.next_versions["north"])
    # It is the store's and not the process's, and goes along with the next backup.
    backups.backup(config, tmp_path / "next.db")
    again = backups.restore(config, tmp_path / "next.db", replace=True)
    assert again.next_versions["north"] > done.next_versions["north"]


def test_a_store_that_is_there_is_replaced_only_when_told_and_kept(
    config: CloudConfig, tmp_path: Path
) -> None:
    out = tmp_path / "out.db"
    backups.backup(config, out)
    with closing(config.open_store()) as store:
        publish(store, 900)
        devices = store.devices(["north"])
        devices.add("late", cohort="north")
        devices.revoke("cam")
    with pytest.raises(StoreError, match="add --replace"):
        backups.restore(config, out)
    assert version(config) == 900
    done = backups.restore(config, out, replace=True)
    assert version(config) == 3
    assert done.next_versions == {"north": 901}  # the replaced store says more than the time since
    assert done.store.tokens_back == ("cam",)
    (kept,) = done.store.kept
    assert kept.name.startswith("cema.db.replaced-")
    with closing(SqliteStore(kept, max_bytes=2**24)) as old:
        update = old.latest_update("north")
        assert update is not None
        assert update.version == 900


def test_whoever_signed_out_is_not_signed_in_by_a_restored_store(config: CloudConfig, tmp_path: Path) -> None:
    out, now = tmp_path / "out.db", time.time()
    with closing(config.open_store()) as store:
        assert isinstance(store, SqliteStore)
        token = store.devices(["north"]).add("ops", cohort="north", role="operator")
        secret = store.open_session(token, now=now) or ""
        backups.backup(config, out)
        store.end_session(secret)
    backups.restore(config, out, replace=True)
    with closing(config.open_store()) as store:
        assert isinstance(store, SqliteStore)
        assert store.session(secret, now=now) is None
        assert store.open_session(token, now=now), "the token is good again"


def test_a_store_behind_a_link_is_restored_where_it_is(config: CloudConfig, tmp_path: Path) -> None:
    disk = tmp_path / "another disk"
    disk.mkdir()
    database(config).rename(disk / "cema.db")
    database(config).symlink_to(disk / "cema.db")
    backups.backup(config, tmp_path / "out.db")
    done = backups.restore(config, tmp_path / "out.db", replace=True)
    assert database(config).is_symlink()
    assert [path.parent for path in done.store.kept] == [disk]
    assert version(config) == 3
    with closing(config.open_store()) as store:
        assert version_floor(store, "north") == done.next_versions["north"]


def test_names_may_have_characters_that_mean_something_in_a_url(tmp_path: Path) -> None:
    (tmp_path / "cloud.toml").write_text(CONFIG.replace('"data"', '"d a?#%41&mode=rw"'))
    config = CloudConfig.load(tmp_path / "cloud.toml")
    with closing(config.open_store()) as store:
        store.open_cohort("north", base="b")
        publish(store, 3)
    out = tmp_path / "o?mode=memory#%2F.db"
    assert backups.backup(config, out).cohorts["north"].version == 3
    backups.restore(config, out, replace=True)
    assert version(config) == 3


def test_nothing_is_restored_while_the_store_is_in_use(
    config: CloudConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cema.cloud.store.sqlite_restore.BUSY_SECONDS", 0.1)
    out = tmp_path / "out.db"
    backups.backup(config, out)
    with lock_data_folder(Path(config.data)), pytest.raises(StoreError, match="another cloud is using"):
        backups.restore(config, out, replace=True)
    # A worker whose server was killed may still finish its step.
    with closing(config.open_store()) as store:
        with pytest.raises(StoreError, match="a process is using the store"):
            backups.restore(config, out, replace=True)
        publish(store, 4)
    assert version(config) == 4
    assert not [path for path in Path(config.data).iterdir() if "replaced" in path.name or "tmp" in path.name]


@pytest.mark.parametrize("broken", ["database", "empty", "log alone"])
def test_what_is_left_of_a_broken_store_is_kept_apart(
    config: CloudConfig, tmp_path: Path, broken: str
) -> None:
    out, path = tmp_path / "out.db", database(config)
    backups.backup(config, out)
    # A log of changes as a killed process leaves it: over the restored store it would be read as the latest pages.
    store = config.open_store()
    publish(store, 50)
    shutil.copy(path.with_name("cema.db-wal"), tmp_path / "log")
    store.close()
    shutil.copy(tmp_path / "log", path.with_name("cema.db-wal"))
    log = (tmp_path / "log").read_bytes()
    assert log
    if broken == "database":
        path.write_bytes(b"no database" * 1000)
    elif broken == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    done = backups.restore(config, out, replace=True)
    assert version(config) == 3
    assert integrity(path) == "ok"
    assert log in [kept.read_bytes() for kept in done.store.kept]


def test_what_is_no_whole_backup_is_refused(config: CloudConfig, tmp_path: Path) -> None:
    out, before = tmp_path / "out.db", version(config)
    with closing(config.open_store()) as store:
        store.put("north", make_samples(200, 1), device="d", now=1.0, max_backlog=1000)
    backups.backup(config, out)
    damage(out)
    with pytest.raises(StoreError, match=r"damaged|malformed"):
        backups.restore(config, out, replace=True)
    out.write_bytes(b"no database at all" * 1000)
    with pytest.raises(StoreError, match="not a database"):
        backups.restore(config, out, replace=True)
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE t (x)")
    with pytest.raises(StoreError, match="got another database"):
        backups.restore(config, other, replace=True)
    with pytest.raises(ConfigError, match="there is no such file"):
        backups.restore(config, tmp_path / "none.db", replace=True)
    with closing(config.open_store()) as store:
        store.count("north", {"x": 1})  # so that there is a log
        with pytest.raises(StoreError, match="a store in use"):
            backups.restore(config, database(config), replace=True)
    assert version(config) == before
    assert integrity(database(config)) == "ok"


def test_where_numbers_cannot_be_told_one_is_asked_for(
    config: CloudConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.db"
    backups.backup(config, out)

    def restore(config: CloudConfig, path: Path, next_version: int | None = None) -> int:
        done = backups.restore(config, path, replace=True, next_version=next_version)
        return done.next_versions["north"]

    hasty = msgspec.structs.replace(config.cohort[0].publish, min_seconds=0.0)
    cohort = msgspec.structs.replace(config.cohort[0], publish=hasty)
    unlimited = msgspec.structs.replace(config, cohort=(cohort,))
    with pytest.raises(ConfigError, match=r"min_seconds is or was 0.*--next-version"):
        restore(unlimited, out)
    backups.backup(unlimited, tmp_path / "hasty.db")  # it is remembered, though the setting has changed since
    with pytest.raises(ConfigError, match="min_seconds is or was 0"):
        restore(config, tmp_path / "hasty.db")
    shutil.copy(database(config), tmp_path / "plain.db")
    with pytest.raises(ConfigError, match=r"nobody knows when this copy was made.*--next-version"):
        restore(config, tmp_path / "plain.db")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 1000)
    with pytest.raises(ConfigError, match=r"from now, by the clock.*--next-version"):
        restore(config, out)
    with pytest.raises(ConfigError, match=r"expected a number above 3, .* got 3"):
        restore(config, out, 3)
    assert restore(config, out, 4) == 4
    assert restore(unlimited, tmp_path / "plain.db", 4000) == 4000
    # The replaced store's own floor counts, too.
    with pytest.raises(ConfigError, match="expected a number above 3999"):
        restore(config, out, 1000)


def test_a_cohort_that_came_after_the_backup_begins_above_what_it_may_have_published(
    config: CloudConfig, tmp_path: Path
) -> None:
    backups.backup(config, tmp_path / "out.db")
    south = msgspec.structs.replace(config.cohort[0], name="south")
    more = msgspec.structs.replace(config, cohort=(*config.cohort, south))
    shutil.rmtree(config.data)
    done = backups.restore(more, tmp_path / "out.db")
    assert set(done.next_versions) == {"north", "south"}
    assert done.next_versions["south"] > 100
    with closing(more.open_store()) as store:
        assert version_floor(store, "south") == done.next_versions["south"]


@given(
    seconds=st.floats(0, 1e6),
    min_seconds=st.floats(10.0, 1e5),
    lifetime_days=st.floats(0.01, 60),
    waits=st.lists(st.floats(0, 3.0), min_size=1, max_size=20),
)
def test_no_more_versions_can_be_published_than_are_reckoned_with(
    seconds: float, min_seconds: float, lifetime_days: float, waits: list[float]
) -> None:
    """The worker's rule: a new version after `min_seconds`, the same one anew after half a life."""
    half = lifetime_days * 86_400 / 2
    if seconds / min(half, min_seconds) > 1e5:
        return
    now, created, count = 0.0, -1e9, 0
    while now <= seconds:
        if now >= created + min(min_seconds, half):
            created, count = now, count + 1
        now = max(now, created + min(min_seconds, half) * (1 + waits[count % len(waits)] * 0.1))
    told = backups.versions_since(seconds, min_seconds=min_seconds, lifetime_days=lifetime_days)
    assert count <= told


def test_a_store_from_before_can_be_backed_up_and_restored(recorded: Path) -> None:
    config = CloudConfig.load(recorded / "cloud.toml")
    store = database(config)
    plain = recorded / "plain.db"
    shutil.copy(store, plain)
    with closing(sqlite3.connect(plain)) as connection:
        newest = connection.execute("SELECT cohort, max(version) FROM updates GROUP BY cohort").fetchall()
    done = backups.restore(config, plain, replace=True, next_version=10**6)
    assert {name: held.version for name, held in done.content.cohorts.items()} == dict(newest)
    backups.backup(config, recorded / "out.db")
    name = config.cohort[0].name
    with closing(config.open_store()) as opened:
        assert version_floor(opened, name) == 10**6


def test_a_restored_cloud_publishes_above_the_floor(cloud: Cloud, tmp_path: Path) -> None:
    cloud.send(32)
    worker = cloud.open()
    while worker.run_once():
        pass
    assert worker.publisher.version == 1
    backups.backup(cloud.config, tmp_path / "out.db")
    cloud.store.close()
    backups.restore(cloud.config, tmp_path / "out.db", replace=True, next_version=5000)
    cloud.store = SqliteStore(Path(cloud.config.data) / "cema.db", max_bytes=64 * 2**20)
    worker = cloud.open()
    assert worker.publisher.version == 1
    assert worker.publisher.next_version == 5000
    # The floor may be far above the versions that are known: what devices say is measured by it.
    worker.publisher.not_below(5_000_000)
    worker.publisher.devices_run(5_500_000)
    assert worker.publisher.next_version == 5_500_001
    worker = cloud.open()
    cloud.send(64)
    while worker.run_once():
        pass
    update = cloud.store.latest_update("north")
    assert update is not None
    assert update.version >= 5000


def test_a_back_end_may_do_without(config: CloudConfig) -> None:
    backend, _ = backend_of(config.store_url)
    assert restorer_of(backend) is backend
    with closing(config.open_store()) as store:
        assert isinstance(store, BackupStore)
        assert backups_of(store) is store

    class Plain:
        pass

    with pytest.raises(StoreError, match="makes no backups"):
        backups_of(Plain())  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="cannot be restored"):
        restorer_of(Plain())  # type: ignore[arg-type]
    assert version_floor(Plain(), "north") == 0  # type: ignore[arg-type]


@pytest.fixture
def server(factory: Path, tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "f"
    shutil.copytree(factory, folder)
    with closing(CloudConfig.load(folder / "cloud.toml").open_store()) as store:
        token = store.devices(["north"]).add("cam", cohort="north")
    started = Server(folder / "cloud.toml", token)
    yield started
    started.close()


def test_a_running_cloud_is_backed_up_while_it_is_written_to(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "f" / "cloud.toml"
    acknowledged: list[str] = []
    stop = threading.Event()

    def upload() -> None:
        seed = 0
        while not stop.is_set():
            seed += 1
            samples = samples_of(quadrants(8, seed, drift=True)[0])
            server.send(samples)
            acknowledged.extend(sample.id for sample in samples)

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cema", "cloud", *arguments, "--config", str(path)],
            check=False,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    thread = threading.Thread(target=upload)
    thread.start()
    try:
        eventually(lambda: server.get("updates/latest").status_code == 200)
        for number in range(3):
            before = list(acknowledged)
            out = tmp_path / f"{number}.db"
            done = command("backup", "--out", str(out), "--json")
            assert done.returncode == 0, done.stderr
            told = json.loads(done.stdout)
            assert len(acknowledged) > len(before), "nothing was uploaded during the backup"
            with closing(SqliteStore(out, max_bytes=2**30)) as copy:
                ids = {sample.id for sample in copy.fresh("north", after=0, limit=10**6)}
                update = copy.latest_update("north")
            assert set(before) <= ids
            assert update is not None
            assert told["cohorts"]["north"] == {"version": update.version, "samples": len(ids)}
            assert told["devices"] == 1
        refused = command("restore", str(tmp_path / "0.db"), "--replace", "--next-version", "100000")
        assert refused.returncode == 1
        assert "another cloud is using the data folder" in refused.stderr
    finally:
        stop.set()
        thread.join()
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    newest = {"version": 0}
    eventually(lambda: not_in_use(CloudConfig.load(path), newest))
    asked = command("restore", str(tmp_path / "0.db"), "--replace")  # its min_seconds is 0
    assert asked.returncode == 1
    assert "--next-version" in asked.stderr
    done = command(
        "restore", str(tmp_path / "0.db"), "--replace", "--next-version", str(newest["version"] + 1)
    )
    assert done.returncode == 0, done.stderr
    assert f"the next version has at least number {newest['version'] + 1}" in done.stdout
    assert "tokens and revocations are those of the backup" in done.stdout
    assert "tokens that are good again: none" in done.stdout
    assert "cema.db.replaced-" in done.stdout


def not_in_use(config: CloudConfig, newest: dict[str, int]) -> bool:
    """Tell whether the worker, too, has ended; note the store's newest version."""
    with closing(sqlite3.connect(database(config), timeout=0.1)) as connection:
        newest["version"] = connection.execute("SELECT max(version) FROM updates").fetchone()[0]
        try:
            return connection.execute("PRAGMA journal_mode=DELETE").fetchone()[0] == "delete"
        except sqlite3.OperationalError:
            return False


def test_what_was_done_with_devices_since_the_backup_is_undone_and_told_where_a_token_is_good_again(
    config: CloudConfig, tmp_path: Path
) -> None:
    with closing(config.open_store()) as store:
        fleet = fleet_of(store.devices(["north"]))
        fleet.act("cam", Expire(at=2e9))
        token = fleet.add("gone", cohort="north")
    out = tmp_path / "out.db"
    backups.backup(config, out)
    with closing(config.open_store()) as store:
        fleet = fleet_of(store.devices(["north"]))
        fleet.act("cam", Expire(at=None))
        fleet.act("cam", Quarantine())
        fleet.act("gone", Remove())
    assert backups.restore(config, out, replace=True).store.tokens_back == ("gone",)
    with closing(config.open_store()) as store:
        fleet = fleet_of(store.devices(["north"]))
        cam = next(device for device in fleet.list() if device.name == "cam")
        assert (cam.expires_at, cam.quarantined_at) == (2e9, None)
        assert fleet.authenticate(token) is not None
