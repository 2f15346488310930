"""What is shown while a benchmark runs: how far it is, how long it will take, and what has come out so far."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from cema._util.units import human_bytes
from cema.bench.plan import Run
from cema.bench.protocols import Condition

__all__ = ["Pace", "ProgressDisplay", "human_time", "print_wide"]

# Without a terminal a line this often, for a log.
_LINE_SECONDS = 15.0
_REFRESH_SECONDS = 0.25


@dataclass
class Pace:
    """How long runs take: measured by method and pair of models, and guessed from others until then.

    Parameters
    ----------
    jobs : int
        How many run at a time.
    """

    jobs: int
    _measured: dict[tuple[str, int], list[float]] = field(default_factory=dict)

    def finished(self, run: Run, seconds: float) -> None:
        """Take note of a run's time."""
        self._measured.setdefault((run.method, run.pair), []).append(seconds / len(run.segments))

    def left(self, runs: Iterable[tuple[Run, float]]) -> float | None:
        """Return seconds until these runs are done, each with its share that is not; None while nothing is known."""
        if not self._measured:
            return None
        rates = [sum(times) / len(times) / _cost(method) for (method, _), times in self._measured.items()]
        unit = sum(rates) / len(rates)
        total = 0.0
        for run, share in runs:
            times = self._measured.get((run.method, run.pair))
            each = sum(times) / len(times) if times else unit * _cost(run.method)
            total += share * each * len(run.segments)
        return total / self.jobs


class ProgressDisplay:
    """A bar, and a table with a row for every method and pair of models.

    Parameters
    ----------
    console : Console
        Where it is shown. If that is no terminal, a line now and then stands in for it.
    jobs : int
        How many runs go on at a time.
    """

    def __init__(self, console: Console, jobs: int) -> None:
        self._console = console
        self._pace = Pace(jobs)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rest]}"),
            console=console,
        )
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._last = 0.0
        self._runs: Sequence[Run] = ()
        self._shares: dict[str, float] = {}
        self._cells: list[dict[str, Any]] = []
        self._done: set[str] = set()
        self._images: dict[Condition, tuple[int, int]] = {}

    def __enter__(self) -> ProgressDisplay:
        if self._console.is_terminal:
            self._live.start()
        self._last = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def begin_images(self, conditions: Sequence[Condition]) -> None:
        """Show that images are being made."""
        self._images = dict.fromkeys(conditions, (0, 1))
        self._task = self._bar.add_task("corrupting images", total=len(conditions), rest="")

    def images(self, condition: Condition, done: int, total: int) -> None:
        """Take note of how far the images of a condition are."""
        self._images[condition] = (done, max(total, 1))
        share = sum(done / total for done, total in self._images.values())
        finished = sum(done == total for done, total in self._images.values())
        rest = f"{100 * share / len(self._images):.0f} %"
        self._bar.update(self._task, completed=finished, rest=rest)

    def begin_runs(
        self, runs: Sequence[Run], finished: Iterable[str], cells: Iterable[dict[str, Any]]
    ) -> None:
        """Show runs, of which some may be finished from before."""
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        self._runs, self._done, self._cells = runs, set(finished), list(cells)
        self._task = self._bar.add_task("runs", total=len(runs), completed=len(self._done), rest="")

    def run(self, run: Run, done: int, total: int) -> None:
        """Take note of how far a run is."""
        self._shares[run.key] = done / total

    def finished(self, run: Run, cells: Sequence[dict[str, Any]], seconds: float) -> None:
        """Take note of a run's result."""
        self._done.add(run.key)
        self._shares.pop(run.key, None)
        self._cells += cells
        self._pace.finished(run, seconds)

    def refresh(self) -> None:
        """Show it all as it is now, if that was not done just now."""
        now = time.monotonic()
        if now - self._last < (_REFRESH_SECONDS if self._console.is_terminal else _LINE_SECONDS):
            return
        self._last = now
        if self._runs:
            open_runs = [
                (run, 1.0 - self._shares.get(run.key, 0.0)) for run in self._runs if run.key not in self._done
            ]
            left = self._pace.left(open_runs)
            rest = "" if left is None else f"{human_time(left)} left"
            done = len(self._done) + sum(self._shares.values())
            self._bar.update(self._task, completed=done, rest=rest)
        if self._console.is_terminal:
            parts = [self._table(), self._bar] if self._runs else [self._bar]
            self._live.update(Group(*parts), refresh=True)
        else:
            task = self._bar.tasks[-1]
            line = f"{task.description}: {int(task.completed)} of {task.total:g} {task.fields['rest']}"
            self._console.print(line.rstrip(), highlight=False)

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
        table.add_column("model", no_wrap=True)
        table.add_column("method", no_wrap=True)
        for name in ("runs", "accuracy %", "uploaded %", "bytes up"):
            table.add_column(name, justify="right", no_wrap=True)
        rows: dict[tuple[str, str], list[int]] = {}
        for run in self._runs:
            row = rows.setdefault((run.facts["model"], run.method), [0, 0])
            row[0] += run.key in self._done
            row[1] += 1
        previous = None
        for (model, method), (done, total) in rows.items():
            if previous not in (None, model):
                table.add_section()
            shown = "" if model == previous else model
            table.add_row(shown, method, f"{done}/{total}", *self._so_far(model, method))
            previous = model
        return table

    def _so_far(self, model: str, method: str) -> tuple[str, str, str]:
        mine = [cell for cell in self._cells if (cell["model"], cell["method"]) == (model, method)]
        scored = [cell for cell in mine if cell["accuracy"] is not None]
        if not scored:
            return ("n/a" if mine else "", "", "")
        samples = sum(cell["samples"] for cell in scored)
        share = 100 * sum(cell["uploads"] for cell in scored) / samples
        accuracy = sum(cell["accuracy"] for cell in scored) / len(scored)
        return f"{accuracy:.1f}", f"{share:.1f}", human_bytes(sum(cell["bytes_up"] for cell in scored))


def print_wide(console: Console, table: Table) -> None:
    """Print a table at its full width: where that is too wide, a terminal wraps it, and nothing is cut off."""
    before, title, table.title = console.width, table.title, None
    try:
        console.print(title, highlight=False, soft_wrap=True, style="italic")
        console.width = max(
            before, Measurement.get(console, console.options.update(width=1000), table).maximum
        )
        console.print(table, crop=False)
    finally:
        console.width = before


def human_time(seconds: float) -> str:
    """Return a time as people read it.

    Examples
    --------
    >>> human_time(75), human_time(4000)
    ('1:15', '1:06:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _cost(method: str) -> float:
    from cema.methods.registry import find_method  # noqa: PLC0415 - loaded by then

    return find_method(method).cost
