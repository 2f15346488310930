"""Memory and open handles of the processes that `fleet` watches."""

from __future__ import annotations

import statistics
import time
from typing import Any

import psutil
from rich.table import Table

# How much more than after the first quarter a process may have at the end.
MARGIN_MIB = 16.0
MARGIN_HANDLES = 8
# Which share of the run each value is the median of: one reading alone would catch a moment.
WINDOWS = {"start": (0.0, 0.0), "quarter": (0.25, 0.375), "half": (0.5, 0.625), "end": (0.875, 1.0)}
_KINDS = {"server": "serve", "worker": "cema.cloud.worker.process"}


class ServerWatch:
    """The cloud's two processes, which are children of this one."""

    def __init__(self) -> None:
        self._processes = {
            name: next(p for p in psutil.Process().children(recursive=True) if word in p.cmdline())
            for name, word in _KINDS.items()
        }
        self._begin = time.monotonic()
        self._readings: dict[str, list[dict[str, float]]] = {name: [] for name in _KINDS}

    def read(self) -> None:
        """Read memory and handles now; a process that has ended has no more readings."""
        for name, process in self._processes.items():
            try:
                with process.oneshot():
                    connections = len(process.net_connections("tcp"))
                    reading = {
                        "seconds": round(time.monotonic() - self._begin, 2),
                        "rss_mib": process.memory_info().rss / 2**20,
                        "handles": process.num_fds() - connections,
                        "connections": connections,
                        "threads": process.num_threads(),
                        "cpu_seconds": sum(process.cpu_times()[:2]),
                    }
            except psutil.NoSuchProcess:
                continue
            self._readings[name].append(reading)

    def result(self) -> dict[str, Any]:
        """Return, by process, the values of each window and every reading."""
        return {
            name: {**{w: _median(readings, *span) for w, span in WINDOWS.items()}, "readings": readings}
            for name, readings in self._readings.items()
        }


def growth(processes: dict[str, Any], *, mebibytes: float, handles: int) -> list[str]:
    """Return, in words, what grew after the first quarter by more than its margin.

    Parameters
    ----------
    processes : dict
        Of `ServerWatch.result`.
    mebibytes : float
        Of memory.
    handles : int
        Open handles. Connections are not among them: those of devices come and go, and the server bounds them.
    """
    found = []
    for name, windows in processes.items():
        for key, unit, margin in (("rss_mib", "MiB", mebibytes), ("handles", "open handles", handles)):
            before, after = windows["quarter"][key], windows["end"][key]
            if after > before + margin:
                found.append(f"the {name} had {before:.1f} {unit} after a quarter and {after:.1f} at the end")
    return found


def process_table(processes: dict[str, Any]) -> Table:
    """Return the windows of both processes as a table."""
    table = Table("process", "when", "RSS, MiB", "handles", "connections", "threads", "CPU s")
    for name, windows in processes.items():
        for when in WINDOWS:
            row = windows[when]
            counts = (f"{row[key]:.0f}" for key in ("handles", "connections", "threads", "cpu_seconds"))
            table.add_row(name, when, f"{row['rss_mib']:.1f}", *counts)
    return table


def _median(readings: list[dict[str, float]], begin: float, end: float) -> dict[str, float]:
    """Return the median of the readings between two shares of them, both included."""
    last = len(readings) - 1
    chosen = readings[round(begin * last) : round(end * last) + 1]
    return {key: round(statistics.median(r[key] for r in chosen), 2) for key in chosen[0]}
