"""One commit for many: threads that write at the same moment share one flush to the disk.

A flush takes milliseconds, and what is written in it microseconds. While one group is flushed, the next one gathers.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from cema.cloud.store.sqlite_database import Database
from cema.errors import StoreError, StoreUnavailable

__all__ = ["GroupCommit"]

T = TypeVar("T")

# What one commit may write, beside the first work of its group: more would keep its members waiting.
GROUP_BYTES = 16 * 2**20


class _Job:
    """What one thread wants written, and what came of it."""

    __slots__ = ("_woken", "error", "leads", "size", "value", "work")

    def __init__(self, work: Callable[[sqlite3.Connection], Any], size: int) -> None:
        self.work, self.size = work, size
        self.value: Any = None
        self.error: Exception | None = None
        self.leads = False
        self._woken = threading.Lock()
        self._woken.acquire()

    def wait(self) -> None:
        """Wait until another thread has called `wake`."""
        self._woken.acquire()

    def wake(self, *, leads: bool) -> None:
        """Let the thread of this job go on: its job is done, or it is the next to lead."""
        self.leads = leads
        self._woken.release()

    def fail(self, error: BaseException) -> None:
        """Keep an error; of those that several threads raise, each gets its own."""
        if isinstance(error, StoreError):
            self.error = type(error)(*error.args)
            self.error.__cause__ = error.__cause__
        elif isinstance(error, Exception):
            self.error = error
        else:
            self.error = StoreUnavailable(f"the write was interrupted: {error!r}")


class GroupCommit:
    """Runs the writes of many threads in few transactions.

    The thread that comes first leads: it takes what waits when it has the database, does the work of all, each in a
    savepoint of its own, and commits once. A `StoreError` of one work undoes that work alone. Where the transaction as
    a whole fails, each work is done again in a transaction of its own, so that it fails for its own reasons only.

    Parameters
    ----------
    database
        Where to write.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._waiting: deque[_Job] = deque()
        self._led = False

    def __len__(self) -> int:
        """Return how many threads wait for a commit to begin."""
        return len(self._waiting)

    def run(self, work: Callable[[sqlite3.Connection], T], *, size: int) -> T:
        """Do work in a transaction and return what it returns, once that is on disk.

        Parameters
        ----------
        work
            Gets the connection. It may be called a second time, when the first was undone.
        size
            Bytes that it writes, about.

        Raises
        ------
        StoreError
            As `Database.write`, and whatever `work` raises. Nothing of this work was stored.
        """
        job = _Job(work, size)
        with self._lock:
            self._waiting.append(job)
            job.leads, self._led = not self._led, True
        if not job.leads:
            job.wait()
        if job.leads:
            self._lead()
        if job.error is not None:
            raise job.error
        value: T = job.value
        return value

    def _lead(self) -> None:
        """Commit one group, whose first job is the thread's own, and let the next one lead."""
        group: list[_Job] = []
        try:
            with self._database.write() as connection:
                group = self._take()
                for job in group:
                    _work(job, connection, alone=len(group) == 1)
        except BaseException as error:
            again = len(group) > 1 and isinstance(error, Exception)
            # Where the database could not be had, it could not be had for those that wait either.
            group = group or self._take()
            for job in group:
                job.fail(error)
                if again:
                    self._alone(job)
            if not isinstance(error, Exception):
                raise
        finally:
            with self._lock:
                following = self._waiting[0] if self._waiting else None
                self._led = following is not None
            for job in group[1:]:
                job.wake(leads=False)
            if following is not None:
                following.wake(leads=True)

    def _take(self) -> list[_Job]:
        """Return the jobs of the next group, at least one, in the order in which they came."""
        with self._lock:
            group = [self._waiting.popleft()]
            size = group[0].size
            while self._waiting and size + self._waiting[0].size <= GROUP_BYTES:
                group.append(self._waiting.popleft())
                size += group[-1].size
        return group

    def _alone(self, job: _Job) -> None:
        try:
            with self._database.write() as connection:
                job.error = None
                job.value = job.work(connection)
        except Exception as error:
            job.fail(error)


def _work(job: _Job, connection: sqlite3.Connection, *, alone: bool) -> None:
    """Do one job of a group's transaction; what it raises itself undoes it alone."""
    if alone:
        job.value = job.work(connection)
        return
    connection.execute("SAVEPOINT job")
    try:
        job.value = job.work(connection)
    except StoreError as error:
        connection.execute("ROLLBACK TO job")
        job.error = error
    connection.execute("RELEASE job")
