"""What is shown while a demonstration runs."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from cema._util.units import human_bytes
from cema.demo.tally import EdgeTally, SegmentResult, rolling_mean

__all__ = ["View"]

WINDOW = 200


class _Field(ProgressColumn):
    """A column that prints one of a task's fields at a fixed width, so that the bars do not jump."""

    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        self._name, self._width = name, width

    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get(self._name, "")).rjust(self._width))


class View:
    """A progress bar per edge, and a line for every segment that all edges have left.

    Parameters
    ----------
    names : sequence of str
        The segments of the stream.
    tallies : sequence of EdgeTally
        The records that are shown.
    """

    def __init__(self, console: Console, names: Sequence[str], tallies: Sequence[EdgeTally]) -> None:
        self._names, self._tallies = names, tallies
        self._printed = 0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            _Field("segment", max(map(len, names))),
            _Field("accuracy", 9),
            _Field("traffic", 25),
            _Field("version", 4),
            TimeRemainingColumn(compact=True),
            console=console,
        )
        self._tasks = [
            self._progress.add_task(f"edge-{i}", total=len(t.labels)) for i, t in enumerate(tallies)
        ]

    def update(self) -> None:
        """Show the records as they are now."""
        for task, tally in zip(self._tasks, self._tallies, strict=True):
            if not tally.seen:
                continue
            recent = slice(max(0, tally.seen - WINDOW), tally.seen)
            frozen, adapted = (rolling_mean(x[recent], WINDOW)[-1] for x in (tally.frozen, tally.adapted))
            share = 100 * int(tally.uploaded.sum()) / tally.seen
            up, down = human_bytes(int(tally.bytes_up.sum())), human_bytes(int(tally.bytes_down.sum()))
            self._progress.update(
                task,
                completed=tally.seen,
                segment=self._names[tally.segment],
                accuracy=f"{frozen:.0f} → {adapted:.0f} %",
                traffic=f"{share:.0f} % ↑{up} ↓{down}",
                version=f"v{tally.version}",
            )

    def left(self, rows: Sequence[SegmentResult]) -> None:
        """Print a line for each segment that every edge has left since the last call."""
        done = sum(all(t.seen >= t.bounds[i + 1] for t in self._tallies) for i in range(len(self._names)))
        for row in rows[self._printed : done]:
            self._progress.console.print(
                f"{row.name:>{max(map(len, self._names))}}: frozen {row.frozen_accuracy:5.1f} %  "
                f"adapted {row.adapted_accuracy:5.1f} %  uploaded {row.uploaded} of {row.samples}",
                highlight=False,
            )
        self._printed = max(self._printed, done)

    def __enter__(self) -> View:
        self._progress.console.print(
            f"per edge: accuracy of the last {WINDOW} predictions, frozen → adapted; share sent; bytes ↑ up ↓ down",
            highlight=False,
            soft_wrap=True,
        )
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
