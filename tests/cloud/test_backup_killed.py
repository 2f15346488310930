"""Backups and restores that are killed, or meet a full disk: there is the old store or the new one, whole."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from backup_cloud import config, database, integrity, publish, version
from cloud_process import PATIENCE
from cloud_support import samples_of

from cema.cloud import backup as backups
from cema.cloud.config import CloudConfig
from cema.cloud.store.backups import version_floor

__all__ = ["config"]

# The command, which kills its process where an event of the interpreter comes for the N-th time: renames, links,
# removals, databases that are opened, and every fifth report of progress.
KILLED = """
import os, signal, sys
EVENTS = {"os.rename", "os.link", "os.remove", "sqlite3.connect", "os.chmod"}
left = int(sys.argv.pop(1))

def count(event, arguments):
    global left
    if event in EVENTS:
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

from cema.cli.app import app
import cema.cloud.backup, cema.cloud.config, rich.progress
sys.addaudithook(count)
app()
"""


def killed_at(point: int, *arguments: str) -> bool:
    """Run a command that is killed at a point; tell whether it had one so late."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(point), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def test_a_backup_that_is_killed_leaves_no_half_file(config: CloudConfig, tmp_path: Path) -> None:
    path = tmp_path / "cloud.toml"
    point = 0
    out = tmp_path / "out.db"
    while killed_at(point, "cloud", "backup", "--config", str(path), "--out", str(out)):
        if out.exists():
            assert integrity(out) == "ok"
            out.unlink()
        assert version(config) == 3
        point += 1
    assert integrity(out) == "ok"
    assert point > 5


def test_a_restore_that_is_killed_leaves_the_old_store_or_the_new_one(
    config: CloudConfig, tmp_path: Path
) -> None:
    path, out = tmp_path / "cloud.toml", tmp_path / "out.db"
    backups.backup(config, out)
    with closing(config.open_store()) as store:
        publish(store, 77)
    shutil.copytree(config.data, tmp_path / "before")
    point, seen = 0, []
    command = ("cloud", "restore", str(out), "--config", str(path), "--replace")
    while killed_at(point, *command):
        assert integrity(database(config)) == "ok"
        seen.append(version(config))
        assert seen[-1] in (3, 77)
        if seen[-1] == 3:
            # The old one is whole, too, under the other name; and no number can be used again.
            (kept,) = Path(config.data).glob("cema.db.replaced-*")
            assert integrity(kept) == "ok"
            with closing(config.open_store()) as store:
                assert version_floor(store, "north") >= 78
        shutil.rmtree(config.data)
        shutil.copytree(tmp_path / "before", config.data)
        point += 1
    assert version(config) == 3
    assert point > 8
    assert {3, 77} == set(seen)


def test_a_restore_after_a_killed_one_removes_its_rest(config: CloudConfig, tmp_path: Path) -> None:
    out = tmp_path / "out.db"
    backups.backup(config, out)
    rest = Path(config.data) / ".cema.db.restore.tmp"
    rest.write_bytes(b"half of a store")
    rest.with_name(rest.name + "-journal").write_bytes(b"and its journal")
    backups.restore(config, out, replace=True)
    assert not list(Path(config.data).glob(".*"))
    assert version(config) == 3


# A copy that is killed in its middle, or that meets a full disk there.
INTERRUPTED = """
import os, resource, signal, sys
from pathlib import Path
from cema.cloud import backup
from cema.cloud.config import CloudConfig
from cema.errors import CemaError

what, how, config, path = sys.argv[1], sys.argv[2], CloudConfig.load(Path(sys.argv[3])), Path(sys.argv[4])

def progress(done, total):
    if how == "kill" and 0 < done < total:
        os.kill(os.getpid(), signal.SIGKILL)

if how == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6 * 2**20, 6 * 2**20))
try:
    if what == "backup":
        backup.backup(config, path, progress)
    else:
        backup.restore(config, path, replace=True, progress=progress)
except CemaError as error:
    sys.exit(f"cema: {error}")
"""


@pytest.mark.parametrize("how", ["kill", "full"])
@pytest.mark.parametrize("what", ["backup", "restore"])
def test_a_copy_that_ends_in_its_middle_changes_nothing(
    config: CloudConfig, tmp_path: Path, what: str, how: str
) -> None:
    with closing(config.open_store()) as store:
        pixels = np.random.default_rng(0).integers(0, 256, (8, 1024, 512, 3), dtype=np.uint8)
        store.put("north", samples_of(pixels), device="d", now=1.0, max_backlog=1000)
    out = tmp_path / "out.db"
    if what == "restore":
        backups.backup(config, out)
        assert out.stat().st_size > 10 * 2**20
    before = contents(database(config))
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, what, how, str(tmp_path / "cloud.toml"), str(out)],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    if how == "kill":
        assert done.returncode == -signal.SIGKILL, done.stderr
    else:
        assert done.returncode == 1
        assert "has room" in done.stderr
        assert not list(tmp_path.glob(".*")), "what was copied is removed"
    assert out.exists() == (what == "restore")
    assert contents(database(config)) == before
    if what == "restore":
        backups.restore(config, out, replace=True)
        assert not list(Path(config.data).glob(".*"))
        with closing(config.open_store()) as store:
            assert store.backlog("north").samples == 13
    else:
        backups.backup(config, out)
        assert integrity(out) == "ok"


def contents(path: Path) -> tuple[str, ...]:
    with closing(sqlite3.connect(path)) as connection:
        return tuple(connection.iterdump())
