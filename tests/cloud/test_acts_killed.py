"""Acts of operators whose processes are killed: each is there whole or not at all, and is done exactly once."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from cloud_process import PATIENCE, Server, eventually
from cloud_support import samples_of
from cloud_tiny_models import quadrants
from killed_command import killed_at

from cema.cloud.config import CloudConfig
from cema.cloud.store.control import Acted, Canary, Control
from cema.cloud.store.sqlite import SqliteStore
from cema.cloud.worker.rounds import open_cohort

ACTS = {"pin": ["--to", "1"], "rollback": ["--to", "1"], "stop": []}


@pytest.fixture(scope="module")
def published(factory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cloud that has published some versions and has nothing more to do."""
    folder = tmp_path_factory.mktemp("published") / "f"
    shutil.copytree(factory, folder)
    path = folder / "cloud.toml"
    text = path.read_text().replace("every_steps = 2", "every_steps = 1\ngate = 1.0")
    path.write_text(text.replace("[worker]", "[worker]\nidle_steps = 0\nmax_backlog = 1000"))
    config = CloudConfig.load(path)
    with closing(config.open_store()) as store:
        worker = open_cohort(store, config, config.cohort[0])
        images, _ = quadrants(128, 1, drift=True)
        store.put("north", samples_of(images), device="cam", now=1.0, max_backlog=1000)
        while worker.run_once():
            pass
        assert worker.publisher.version >= 3
    return folder


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    shutil.copytree(published, tmp_path / "f")
    return tmp_path / "f"


class Told:
    """What a store has of acts on its cohort, and of versions."""

    def __init__(self, config: CloudConfig) -> None:
        with closing(config.open_store()) as store:
            assert isinstance(store, SqliteStore)
            self.acts: list[Acted] = store.acts("north")
            self.control: Control = store.control("north")
            self.audit = [one.act.name for one in store.audit(limit=100)]
            self.versions = [(known.version, known.digest) for known in store.versions("north")]
        with closing(sqlite3.connect(Path(config.data) / "cema.db")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def work(config: CloudConfig) -> None:
    """Let a worker that is started now do all that there is to do."""
    with closing(config.open_store()) as store:
        worker = open_cohort(store, config, config.cohort[0])
        while worker.run_once():
            pass


def check_done_once(config: CloudConfig, act: str, before: Told) -> None:
    """Check that workers, however often they are started, do a written act once."""
    for _ in range(2):
        work(config)
        told = Told(config)
        (acted,) = told.acts
        assert (acted.state, acted.version) == ("done", before.versions[-1][0] + 1)
        assert told.versions[:-1] == before.versions
        assert told.versions[-1][0] == acted.version
        if act != "stop":
            assert told.versions[-1][1] == dict(before.versions)[1]


@pytest.mark.parametrize("act", ACTS)
def test_a_command_that_is_killed_has_written_its_act_whole_or_not_at_all(folder: Path, act: str) -> None:
    config = CloudConfig.load(folder / "cloud.toml")
    before, point = Told(config), 0
    assert before.acts == []
    command = ("cloud", act, *ACTS[act], "--no-wait", "--config", str(folder / "cloud.toml"))
    while killed_at(point, *command):
        told = Told(config)
        assert (told.acts, told.audit, told.control, told.versions) == ([], [], Control(), before.versions)
        point += 1
    assert point >= 4  # BEGIN, the act, its record and COMMIT, at least
    told = Told(config)
    assert [acted.state for acted in told.acts] == ["waiting"]
    assert told.audit == [f"cohort.{act}"]
    assert told.control.serial == told.acts[0].number
    check_done_once(config, act, before)


def test_a_share_of_canary_devices_is_set_whole_or_not_at_all_by_a_command_that_is_killed(
    folder: Path,
) -> None:
    path = folder / "cloud.toml"
    text = path.read_text().replace("[[cohort]]", '[[cohort]]\nrollout = {mode = "canary"}', 1)
    path.write_text(text)
    config, point = CloudConfig.load(path), 0
    command = ("cloud", "canary", "--first", "0.5", "--config", str(path))
    while killed_at(point, *command):
        told = Told(config)
        assert (told.acts, told.audit, told.control) == ([], [], Control())
        point += 1
    assert point >= 4
    told = Told(config)
    assert [(acted.state, acted.act) for acted in told.acts] == [("done", Canary(first=0.5))]
    assert told.audit == ["cohort.canary"]
    assert told.control == Control(serial=told.acts[0].number, first=0.5)


# A worker for each point, forked off one process so that torch is loaded once; its store is a copy of its own.
WORKERS = """
import os, shutil, signal, sys
from pathlib import Path
import msgspec
from cema.cloud.config import CloudConfig
from cema.cloud.worker.rounds import open_cohort

CHANGES = ("BEGIN IMMEDIATE", "INSERT", "UPDATE", "DELETE", "COMMIT")
config, point = CloudConfig.load(Path(sys.argv[1])), 0
while True:
    place = f"{config.data}-{point}"
    shutil.copytree(config.data, place)
    child = os.fork()
    if not child:
        left = point

        def statement(text):
            global left
            if text.lstrip().upper().startswith(CHANGES):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        here = msgspec.structs.replace(config, data=place)
        store = here.open_store()
        store.database._writer.set_trace_callback(statement)
        worker = open_cohort(store, here, here.cohort[0])
        while worker.run_once():
            pass
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        print(point)
        sys.exit(os.WEXITSTATUS(status))
    assert os.WTERMSIG(status) == signal.SIGKILL
    point += 1
"""


@pytest.mark.parametrize("act", ACTS)
def test_a_worker_that_is_killed_at_any_point_does_the_act_once_when_it_is_started_again(
    folder: Path, act: str
) -> None:
    path = folder / "cloud.toml"
    config = CloudConfig.load(path)
    before = Told(config)
    assert not killed_at(10**6, "cloud", act, *ACTS[act], "--no-wait", "--config", str(path))
    done = subprocess.run(
        [sys.executable, "-c", WORKERS, str(path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    points, seen = int(done.stdout), set()
    assert points >= 10
    for point in range(points + 1):
        here = msgspec.structs.replace(config, data=f"{config.data}-{point}")
        told = Told(here)
        (acted,) = told.acts
        # Done with its version, or neither.
        assert (acted.state == "done") == (len(told.versions) == len(before.versions) + 1)
        seen.add(acted.state)
        check_done_once(here, act, before)
        shutil.rmtree(here.data)
    assert seen == {"waiting", "done"}


# A server that is killed in the middle of an act: before a statement of its transaction, or after all of it.
SERVER = """
import os, signal, sqlite3, sys
at, begun, seen = sys.argv.pop(1), False, 0

def statement(text):
    global begun, seen
    begun = begun or text.startswith("SELECT 1 FROM cohorts WHERE name")
    if begun:
        if at == text or at == str(seen):
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

def connect(*arguments, **settings):
    connection = really_connect(*arguments, **settings)
    connection.set_trace_callback(statement)
    return connection

really_connect, sqlite3.connect = sqlite3.connect, connect
from cema.cloud.store.sqlite_control import ControlTable
act = ControlTable.act

def acted(*arguments, **more):
    done = act(*arguments, **more)
    if at == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return done

ControlTable.act = acted
from cema.cli.app import app
app()
"""


@pytest.mark.parametrize("at", ["3", "6", "COMMIT", "after"])
def test_a_service_that_is_killed_has_written_an_act_whole_or_not_at_all(folder: Path, at: str) -> None:
    path = folder / "cloud.toml"
    config = CloudConfig.load(path)
    with closing(config.open_store()) as store:
        token = store.devices(["north"]).add("boss", cohort=None, role="admin")
    before = Told(config)
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, at, "cloud", "serve", "--config", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    url = json.loads(process.stdout.readline())["url"]
    with pytest.raises(httpx2.HTTPError):
        post(url, token)
    assert process.wait(PATIENCE) == -signal.SIGKILL
    process.stdout.close()
    written = [acted.state in {"waiting", "done"} for acted in Told(config).acts]
    assert written == ([True] if at == "after" else [])
    version = before.versions[-1][0] + 1
    for _ in range(2):
        # Where nobody has got an answer and nothing was written, it is sent again.
        serve_until(path, token, version, again=not written)
        written = [True]
        told = Told(config)
        assert [(acted.state, acted.version) for acted in told.acts] == [("done", version)]
        assert told.versions == [*before.versions, (version, dict(before.versions)[1])]
        assert [name for name in told.audit if name.startswith("cohort.")] == ["cohort.pin"]


def serve_until(path: Path, token: str, version: int, *, again: bool) -> None:
    """Serve until a version is there and the worker is ready for more; `again` asks for the act first."""
    server = Server(path, token)
    try:
        if again:
            assert post(server.url, token).status_code == 202
        eventually(lambda: server.get("status").json()["version"] == version)
        eventually(lambda: server.get("status").json()["worker"]["ready"])
    finally:
        server.close()


def post(url: str, token: str) -> Any:
    headers = {"Authorization": f"Bearer {token}"}
    return httpx2.post(
        f"{url}/v1/cohorts/north/acts", json={"type": "pin", "to": 1}, headers=headers, timeout=60
    )
