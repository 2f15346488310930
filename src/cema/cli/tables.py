"""Tables for a terminal of any width."""

from __future__ import annotations

import os

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

__all__ = ["FittedTable", "Newest", "out"]

# What a table is given where its lines go to a file or to another program.
_FILE_WIDTH = 200
# Wider than any terminal: how wide a table is when nothing holds it back.
_NO_LIMIT = 10_000


class FittedTable(Table):
    """A table that gives up the room around its cells, and then breaks words, before it hides what a cell says.

    Parameters
    ----------
    *headers : str
        The names of its columns.
    """

    def __init__(self, *headers: str) -> None:
        super().__init__(*(Column(header, overflow="fold") for header in headers))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it, without room around its cells where the width needs that."""
        free = Measurement.get(console, options.update(max_width=_NO_LIMIT), self).maximum
        self.padding = (0, 0) if free > options.max_width else (0, 1)
        yield from super().__rich_console__(console, options)


class Newest:
    """A text whose beginning is left out where its column is too narrow.

    Parameters
    ----------
    text : str
        The text, the oldest first.
    least : int
        So many characters are always shown.
    """

    def __init__(self, text: str, least: int) -> None:
        self._text, self._least = text, least

    def __rich_measure__(self, _console: Console, _options: ConsoleOptions) -> Measurement:
        """Return how narrow and how wide it may be."""
        return Measurement(min(self._least, len(self._text)), len(self._text))

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the end of it."""
        yield Text(self._text[-options.max_width :], no_wrap=True)


def out() -> Console:
    """Return the console of standard output; what is no terminal gets lines that are wide enough to be searched."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _FILE_WIDTH
    return console
