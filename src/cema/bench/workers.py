"""Processes that share the work: each holds the data and the models, and does one task at a time.

Not a library's pool: pebble's reports the end of a task and not how far it is, and its busy processes outlive a parent
that was killed. A pipe to each process tells both.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from cema._util.memory import keep_freed_memory, worker_environment
from cema.bench.config import BenchConfig
from cema.bench.execute import RunContext
from cema.bench.plan import Run
from cema.bench.protocols import Condition
from cema.errors import CemaError

__all__ = ["Done", "Failed", "Prepare", "Task", "Workers", "available_cores"]

# How often a worker says how far it is.
_REPORT_SECONDS = 0.2
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_STOP_SECONDS = 5.0


@dataclass(frozen=True)
class Prepare:
    """The task of making the images of a condition."""

    condition: Condition
    processes: int = 1


Task = Prepare | Run


@dataclass(frozen=True)
class Done:
    """A task's result: the cells of a run, the number of images that were prepared."""

    task: Task
    cells: list[dict[str, Any]]
    seconds: float


@dataclass(frozen=True)
class Failed:
    """A task that could not be done, and why."""

    task: Task
    message: str


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    task: Task | None = None


class Workers:
    """Processes of one thread each that take tasks one after another.

    They are new interpreters (a fork of a process with threads can hang), and they end when this process does, however
    that ends. Leaving the context stops them.

    Parameters
    ----------
    config : BenchConfig
        What is measured.
    cache : Path or None
        Where corrupted images are kept.
    count : int
        How many.
    """

    def __init__(self, config: BenchConfig, cache: Path | None, count: int) -> None:
        self._config, self._cache, self._count = config, cache, count
        self._workers: list[_Worker] = []

    def run(
        self,
        tasks: Sequence[Task],
        *,
        progress: Callable[[Task, int, int], object],
        idle: Callable[[], object] = lambda: None,
    ) -> Iterator[Done | Failed]:
        """Do tasks, and yield what became of each as it is finished.

        Parameters
        ----------
        tasks : sequence of Task
            Begun in this order.
        progress : callable
            Called with a task, and how much of how much of it is done.
        idle : callable
            Called several times a second.

        Yields
        ------
        Done or Failed
            One for each task. A task whose process died has failed; a new process takes the next one.
        """
        waiting = deque(tasks)
        while waiting or any(worker.task is not None for worker in self._workers):
            while waiting and (worker := self._free()) is not None:
                worker.task = waiting.popleft()
                with contextlib.suppress(BrokenPipeError):  # it died; its end of the pipe says so below
                    worker.connection.send(worker.task)
            busy = {worker.connection: worker for worker in self._workers if worker.task is not None}
            for ready in wait(list(busy), timeout=_REPORT_SECONDS):
                finished = self._hear(busy[ready], progress)  # type: ignore[index]
                if finished is not None:
                    yield finished
            idle()

    def _free(self) -> _Worker | None:
        for worker in [worker for worker in self._workers if worker.task is None]:
            if worker.process.is_alive():
                return worker
            self._workers.remove(worker)
        if len(self._workers) < self._count:
            self._workers.append(self._start())
            return self._workers[-1]
        return None

    def _start(self) -> _Worker:
        spawn = get_context("spawn")
        here, there = spawn.Pipe()
        process = spawn.Process(target=_serve, args=(there, self._config, self._cache), name="cema-bench")
        with _worker_variables(), _deaf_to_interrupts():
            process.start()
        there.close()
        return _Worker(process, here)

    def _hear(self, worker: _Worker, progress: Callable[[Task, int, int], object]) -> Done | Failed | None:
        task = worker.task
        assert task is not None  # noqa: S101 - only busy workers are heard
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join(_STOP_SECONDS)
            self._workers.remove(worker)
            reason = "it may have run out of memory: try fewer --jobs, or a smaller --batch-size"
            return Failed(task, f"its process ended with status {worker.process.exitcode}; {reason}")
        if message[0] == "progress":
            progress(task, message[1], message[2])
            return None
        worker.task = None
        if message[0] == "failed":
            return Failed(task, message[1])
        return Done(task, message[1], message[2])

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.connection.close()
            if worker.task is not None:
                worker.process.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


def available_cores() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux knows
        return os.cpu_count() or 1


@contextlib.contextmanager
def _worker_variables() -> Iterator[None]:
    """Let processes that are started here have a worker's environment, and one thread each: they share the cores."""
    wanted = worker_environment(os.environ) | dict.fromkeys(_THREADS, "1")
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Let processes that are started here ignore Ctrl-C, which reaches them too: their starter decides."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is ignored stays so in a new program
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(connection: Connection, config: BenchConfig, cache: Path | None) -> None:
    """Do tasks until the other end of the pipe is closed."""
    torch.set_num_threads(1)
    keep_freed_memory()
    context = RunContext(config, cache)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the main process has gone
        while True:
            _do(context, connection, connection.recv())


def _do(context: RunContext, connection: Connection, task: Task) -> None:
    began = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _REPORT_SECONDS:
            last = time.monotonic()
            connection.send(("progress", done, total))

    try:
        if isinstance(task, Prepare):
            context.images(task.condition, processes=task.processes, progress=report)
            cells: list[dict[str, Any]] = []
        else:
            cells = context.execute(task, report)
    except (BrokenPipeError, ConnectionResetError):
        raise
    except CemaError as error:
        connection.send(("failed", str(error)))
    except Exception:  # of a method or a library: the others shall go on
        connection.send(("failed", traceback.format_exc()))
    else:
        connection.send(("done", cells, time.monotonic() - began))
