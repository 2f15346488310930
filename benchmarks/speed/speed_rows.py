"""The rows of the table of speeds: what is measured, which program measures it, and what is to be reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["PROGRAMS", "ROWS", "Program", "Row"]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    key : str
        What the program calls it in its ``values``.
    name : str
        What readers see.
    goal : float
        The bound to reach.
    bound : {"least", "most"}
        On which side of it.
    unit : str
        Behind a number; "x" for a ratio within one run.
    """

    key: str
    name: str
    goal: float
    bound: Literal["least", "most"]
    unit: str = "x"

    def met(self, value: float) -> bool:
        """Tell whether a value reaches the goal."""
        return value >= self.goal if self.bound == "least" else value <= self.goal

    @property
    def goal_text(self) -> str:
        """The goal as readers see it."""
        return f"{'≥' if self.bound == 'least' else '≤'} {self.goal:g} {self.unit}"


@dataclass(frozen=True)
class Program:
    """A program in this folder that measures some rows in a process of its own.

    Attributes
    ----------
    name : str
        How ``--only`` chooses it.
    file : str
        In this folder.
    arguments : tuple of str
        Given to it.
    rounds : int
        How often it runs.
    before : bool
        Whether it also runs on the code from before.
    """

    name: str
    file: str
    arguments: tuple[str, ...] = ()
    rounds: int = 3
    before: bool = True


PROGRAMS: tuple[Program, ...] = (Program("cure", "../cure.py", rounds=1),)

ROWS: tuple[Row, ...] = (
    Row(
        "cure.samples",
        "samples of each device until 80 % of a segment's gain, worst but fog",
        250,
        "most",
        "samples",
    ),
    Row("cure.fog", "the same in fog", 400, "most", "samples"),
    Row("cure.skipped", "share of stored samples without a step of their own", 0.1, "most", ""),
    Row("cure.idle", "replay-only steps made while samples waited", 0, "most", "steps"),
)
