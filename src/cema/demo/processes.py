"""The demonstration's children: started, watched, and never left behind."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from cema.errors import CemaError

__all__ = ["ChildDied", "Children", "Event"]

# The cloud lets its worker finish the step it is in; a step of a large model takes some seconds.
STOP_SECONDS = 30.0
_ENDED = "ended"


class ChildDied(CemaError):  # noqa: N818 - a state, not a fault of a call
    """A child process ended although it was still needed; the message carries the end of its log."""


@dataclass(frozen=True)
class Event:
    """One JSON line that a child printed."""

    child: str
    data: dict[str, Any]


@dataclass
class _Child:
    name: str
    process: subprocess.Popen[bytes]
    log: Path
    finished: bool = False


class Children:
    """A group of `cema` processes whose JSON lines arrive in one queue.

    Each child gets a pipe as its standard input and is told to stop when the pipe ends, so that it goes with this
    process even when this process is killed. Leaving the context stops all of them: SIGTERM first, SIGKILL after
    `STOP_SECONDS`.

    Parameters
    ----------
    folder : Path
        Where each child's log (its standard error) is written, as `NAME.log`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: list[_Child] = []
        self._events: queue.Queue[Event] = queue.Queue()

    def start(self, name: str, arguments: Sequence[str]) -> None:
        """Start `cema ARGUMENTS --stop-on-eof`."""
        log = self._folder / f"{name}.log"
        with log.open("wb") as stderr:
            process = subprocess.Popen(  # noqa: S603 - our own program, arguments not from a shell
                [sys.executable, "-m", "cema", *arguments, "--stop-on-eof"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,  # Ctrl-C reaches this process only, which then stops them in order
            )
        child = _Child(name, process, log)
        self._children.append(child)
        threading.Thread(target=self._read, args=(child,), name=f"read-{name}", daemon=True).start()

    def _read(self, child: _Child) -> None:
        assert child.process.stdout is not None  # noqa: S101 - Popen was given PIPE
        for line in child.process.stdout:
            with contextlib.suppress(
                ValueError
            ):  # a library's stray print is no event; it must not end the demo
                data = json.loads(line)
                if isinstance(data, dict):
                    self._events.put(Event(child.name, data))
        self._events.put(Event(child.name, {"event": _ENDED}))  # in order: after everything that it said

    def next_event(self, timeout: float) -> Event | None:
        """Return the next event, or None when none came in `timeout` seconds.

        Raises
        ------
        ChildDied
            If a child ended that was not marked as finished.
        """
        try:
            event = self._events.get(timeout=timeout)
        except queue.Empty:
            return None
        if event.data.get("event") != _ENDED:
            return event
        self._ended(event.child)
        return None

    def wait_for(self, child: str, event: str, timeout: float) -> dict[str, Any]:
        """Return the data of a child's first event of a kind.

        Raises
        ------
        ChildDied
            If the child ended, or the event did not come within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            got = self.next_event(0.2)
            if got is not None and got.child == child and got.data.get("event") == event:
                return got.data
        raise ChildDied(f"{child} did not say {event!r} within {timeout:g} s.\n{self._tail(child)}")

    def tell(self, name: str) -> None:
        """Write a line to a child's standard input; one that ended meanwhile is left alone."""
        for child in self._children:
            if child.name == name and child.process.stdin is not None:
                with contextlib.suppress(OSError):
                    child.process.stdin.write(b"\n")
                    child.process.stdin.flush()

    def finish(self, name: str) -> None:
        """Mark a child as one that may end now."""
        for child in self._children:
            child.finished |= child.name == name

    def _ended(self, name: str) -> None:
        for child in self._children:
            if child.name == name and not child.finished:
                status = child.process.wait(STOP_SECONDS)
                raise ChildDied(f"{name} ended with status {status}.\n{self._tail(name)}")

    def _tail(self, name: str, lines: int = 30) -> str:
        log = self._folder / f"{name}.log"
        text = log.read_text(errors="replace").splitlines()[-lines:] if log.is_file() else []
        return f"The end of its log ({log.name}):\n" + "\n".join(f"  {line}" for line in text or ["(empty)"])

    def stop(self) -> None:
        """Stop every child that still runs, the last started first."""
        for child in reversed(self._children):
            child.finished = True
            if child.process.stdin is not None:
                with contextlib.suppress(OSError):
                    child.process.stdin.close()
            if child.process.poll() is None:
                child.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for child in self._children:
            try:
                child.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
