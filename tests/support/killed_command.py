"""Commands that are killed at one point after another, as power would be lost there."""

from __future__ import annotations

import signal
import subprocess
import sys

from cloud_process import PATIENCE

__all__ = ["killed_at"]

# The command kills its process where it would make one more change: to names of files, or to a database.
KILLED = """
import os, signal, sqlite3, sys
EVENTS = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.chmod"}
CHANGES = ("BEGIN IMMEDIATE", "INSERT", "UPDATE", "DELETE", "CREATE", "ALTER", "COMMIT")
left = int(sys.argv.pop(1))

def count():
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

def statement(text):
    if text.lstrip().upper().startswith(CHANGES):
        count()

def event(name, arguments):
    if name in EVENTS:
        count()

def connect(*arguments, **settings):
    connection = really_connect(*arguments, **settings)
    connection.set_trace_callback(statement)
    return connection

from cema.cli.app import app
import cema.cloud.config, cema.cloud.store.sqlite
sys.addaudithook(event)
really_connect, sqlite3.connect = sqlite3.connect, connect
app()
"""


def killed_at(point: int, *arguments: str) -> bool:
    """Run a `cema` command that is killed at a point, from 0 on; tell whether it had one so late."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(point), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0
