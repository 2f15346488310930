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


PROGRAMS: tuple[Program, ...] = (
    Program("step-digits", "measure_step.py", ("digits",)),
    Program("step-vit", "measure_step.py", ("vit",)),
    Program("step-resnet", "measure_step.py", ("resnet",)),
    Program("step-lite", "measure_step.py", ("lite",), rounds=1),
    Program("ingest", "measure_ingest.py"),
    Program("predict", "measure_device.py", ("predict",)),
    Program("memory", "measure_device.py", ("memory",), rounds=1),
    Program("swap", "measure_device.py", ("swap",), rounds=1),
    Program("swap-pinned", "measure_device.py", ("swap", "--pinned"), rounds=1),
    Program("start", "measure_install.py", ("start",)),
    Program("install", "measure_install.py", ("install",), rounds=1, before=False),
    Program("cure", "../cure.py", rounds=1),
)

ROWS: tuple[Row, ...] = (
    Row("step.resnet", "service step with its gate, ResNet-20/56: speed over the textbook's", 2.2, "least"),
    Row("step.digits", "service step, digits CNN: speed over the textbook's", 2.0, "least"),
    Row("step.vit", "service step, digits Transformer: speed over the textbook's", 2.0, "least"),
    Row("step.lite", "service step, EfficientNet-Lite0/Lite2: speed over the textbook's", 1.5, "least"),
    Row("step.lite.memory", "peak memory of that step", 4.0, "most", "GB"),
    Row(
        "ingest.jpeg.cpu", "upload of 32 JPEGs of 224 px, 8 clients: CPU over a bare endpoint's", 4.0, "most"
    ),
    Row("ingest.jpeg.rate", "the same: requests per second over a bare endpoint's", 0.5, "least"),
    Row(
        "ingest.digits.rate", "upload of 32 digits, 64 clients: requests per second over bare", 0.333, "least"
    ),
    Row("ingest.digits.refused", "the same: requests answered 503", 0.0, "most", "requests"),
    Row("poll.unchanged", "poll answered 304, one client: CPU over a bare endpoint's", 1.5, "most"),
    Row("predict.digits1", "prediction over a bare session, digits, one image", 2.0, "most"),
    Row("predict.digits32", "prediction over a bare session, digits, 32 images", 1.2, "most"),
    Row("predict.lite1", "prediction over a bare session, EfficientNet-Lite0, one image", 1.05, "most"),
    Row("memory.lite", "memory of an agent beyond a bare session's, EfficientNet-Lite0", 50.0, "most", "MB"),
    Row("memory.lite.updated", "the same with an update installed", 50.0, "most", "MB"),
    Row("swap.lite.p50", "predictions during 100 swaps over quiet ones, median", 1.1, "most"),
    Row("swap.lite.p99", "predictions during 100 swaps over quiet ones, 99th percentile", 1.1, "most"),
    Row("swap.pinned.p50", "the same on one core, median", 1.1, "most"),
    Row("swap.pinned.p99", "the same on one core, 99th percentile", 1.1, "most"),
    Row("cure.samples", "samples of each device until 80 % of a gain, worst but fog", 250, "most", "samples"),
    Row("cure.fog", "the same in fog", 400, "most", "samples"),
    Row("cure.skipped", "share of stored samples without a step of their own", 0.1, "most", ""),
    Row("cure.idle", "replay-only steps made while samples waited", 0, "most", "steps"),
    Row("install.edge", "pip install 'cema[edge]' on disk", 200.0, "most", "MB"),
    Row("import.edge", "importing EdgeAgent over importing onnxruntime", 1.3, "most"),
    Row("cli.help", "`cema --help`, processor time", 0.25, "most", "s"),
)
