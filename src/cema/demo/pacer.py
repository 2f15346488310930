"""The demonstration's pace, applied: what edges and cloud say goes in, and edges are told to go on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx2
from rich.console import Console

from cema.cloud.config import CloudConfig
from cema.demo.pace import STALL_SECONDS, Pace
from cema.demo.processes import Children
from cema.demo.settings import DemoSettings
from cema.errors import CemaError

__all__ = ["Pacer"]

_ASK_SECONDS = 0.1


class Pacer:
    """Tell each edge when to predict its next batch; do nothing where the edges keep a pace of their own.

    Parameters
    ----------
    children : Children
        Its edges are named ``edge-0`` and so on.
    settings : DemoSettings
        The pace, and whether the stream waits for the worker.
    config : CloudConfig
        How many samples the worker keeps waiting, and with how many it begins a step.
    ask : callable
        Returns the status of the cohort.
    console : Console
        Where it is said that the worker makes no progress.

    Attributes
    ----------
    tick : float
        Seconds between two calls of `release`, at most.
    has_stalled : bool
        Whether the stream went on without the worker at some time.
    """

    def __init__(
        self,
        children: Children,
        settings: DemoSettings,
        config: CloudConfig,
        ask: Callable[[], dict[str, Any]],
        console: Console,
    ) -> None:
        self._children, self._ask, self._console = children, ask, console
        self._asked = 0.0
        self.has_stalled = False
        self.tick = 0.05 if settings.waits else 0.25
        self._pace: Pace | None = None
        if settings.waits:
            limit, least = config.worker.max_backlog, config.cohort[0].adapt.fresh
            self._pace = Pace(settings.edges, settings.batch, settings.rate, limit=limit, least=least)

    def book(self, edge: int, data: dict[str, Any]) -> None:
        """Take note of a line that an edge printed."""
        if self._pace is None:
            return
        match data["event"]:
            case "prediction":
                self._pace.predicted(edge, sum(data["selected"]))
            case "uploaded":
                self._pace.delivered(edge, len(data["captured_at"]))
            case "status":
                self._pace.on_device(edge, data["queued"] + data["spooled"])
            case "finished":
                self._pace.finished(edge)

    def release(self) -> None:
        """Let every edge go on whose next batch is due."""
        if self._pace is None:
            return
        now = time.monotonic()
        if now - self._asked >= _ASK_SECONDS:
            self._ask_cloud(self._pace)
            self._asked = time.monotonic()
        while (edge := self._pace.next()) is not None:
            self._children.tell(f"edge-{edge}")
        if self._pace.stalled and not self.has_stalled:
            self.has_stalled = True
            self._console.print(
                f"the cloud's worker has made no progress for {STALL_SECONDS:g} s; the stream goes on without waiting",
                highlight=False,
                soft_wrap=True,
            )

    def _ask_cloud(self, pace: Pace) -> None:
        try:
            status = self._ask()
        except (httpx2.TransportError, CemaError):
            # A busy cloud. Its end is noticed where its events are read; the worker's rest is what `Pace` bounds.
            return
        pace.cloud(backlog=status["backlog"], cursor=status["cursor"])
