"""Measure the time from a shift of the environment to its cure, through the whole product.

A real cloud and real edges run the demonstration's stream of digits. A segment is cured once the adapted model has had
80 % of what it gains over the frozen one in the segment's second half, on the mean of all edges over the last `WINDOW`
samples of each: a cure at once would be told after 80 samples. Examples::

    python benchmarks/cure.py --seed 0
    python benchmarks/cure.py --samples 3000

The seconds to the first update that was made from a segment's samples are split by the trace that the store keeps of
it: ``select`` to the first sample that was chosen, ``spool`` to its arrival at the cloud, ``upload`` to the answer,
``queue`` to the first step, ``evidence`` to the moment when the gate had its samples, of which ``step`` was spent in
steps, ``publish`` to the commit, ``poll`` until a device had asked for it, and ``swap`` until it served. Sources that
keep no traces give the samples without the split.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from cema.cloud.config import CloudConfig
from cema.demo.settings import DemoSettings

WINDOW = 100
SHARE = 0.8
# Points of accuracy below which there is nothing to cure.
LEAST_GAIN = 0.05
SPLIT = ("select", "spool", "upload", "queue", "evidence", "publish", "poll", "swap")


@dataclass
class Record:
    """What a demonstration told while it ran.

    Attributes
    ----------
    tallies, bounds, names : list
        Of the demonstration: by edge, where segments begin, and their names.
    predicted : list of dict
        By edge, the unix seconds of the line about a batch, by the place of its first image.
    uploaded : dict
        Unix seconds at which the edge knew that the cloud has a sample, by its moment of capture.
    swaps : list
        Edge, unix seconds, version.
    polls : list
        Cursor, backlog and replay-only steps of the cloud, in their order.
    """

    tallies: list[Any] = field(default_factory=list)
    names: tuple[str, ...] = ()
    predicted: dict[int, dict[int, float]] = field(default_factory=dict)
    uploaded: dict[float, float] = field(default_factory=dict)
    swaps: list[tuple[int, float, int]] = field(default_factory=list)
    polls: list[tuple[int, int, int]] = field(default_factory=list)

    def booked(self, data: dict[str, Any], tally: Any) -> None:
        """Take note of a line of an edge."""
        edge = next((i for i, known in enumerate(self.tallies) if known is tally), len(self.tallies))
        if edge == len(self.tallies):
            self.tallies.append(tally)
        match data["event"]:
            case "prediction":
                self.predicted.setdefault(edge, {})[data["index"]] = data["captured_at"]
            case "uploaded":
                for moment in data["captured_at"]:
                    self.uploaded.setdefault(moment, data["time"])
            case "swap":
                self.swaps.append((edge, data["time"], data["version"]))

    def polled(self, status: dict[str, Any]) -> None:
        """Take note of the cloud's status."""
        steps = int(status["counts"].get("worker.replay_steps", 0))
        self.polls.append((status["cursor"], status["backlog"], steps))


def main() -> int:
    """Run the demonstration, and print what was measured as one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="orders the streams and draws the corruptions")
    parser.add_argument("--samples", type=int, default=6000, help="predictions per edge")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cema-cure-") as folder:
        workspace = Path(folder) / "demo"
        begin = time.monotonic()
        result, record = _run(workspace, options.seed, options.samples)
        seconds = time.monotonic() - begin
        traces = _traces(workspace)
    counts = result["cloud"]["counts"]
    segments = [_segment(record, i, traces) for i in range(len(record.names))]
    cures = {s["name"]: s["samples"] for s in segments if s["samples"] is not None}
    rest = [count for name, count in cures.items() if name != "fog"]
    values = {
        "cure.samples": max(rest, default=None),
        "cure.fog": cures.get("fog"),
        # Not learned from in a step of their own: replayed later, or left out.
        "cure.skipped": sum(counts.get(f"worker.{name}_samples", 0) for name in ("skipped", "left_out"))
        / max(counts.get("samples.stored", 0), 1),
        "cure.idle": idle_steps_while_waiting(record.polls),
    }
    details = {
        "segments": segments,
        "seconds": seconds,
        "versions": result["versions"],
        "counts": counts,
        "accuracy": {row["name"]: row["adapted_accuracy"] for row in result["stretches"]},
    }
    known = {key: value for key, value in values.items() if value is not None}
    print(json.dumps({"values": known, "details": details}))
    return 0


def _run(workspace: Path, seed: int, samples: int) -> tuple[dict[str, Any], Record]:
    """Run the demonstration as `cema demo` does, and look at the lines that it books."""
    demo: Any = importlib.import_module("cema.demo.run")
    record, result = Record(), {}
    book, ask, make = demo._book, demo._cloud_status, demo.make_streams

    def booked(data: dict[str, Any], tally: Any, *rest: Any) -> None:
        record.booked(data, tally)
        book(data, tally, *rest)

    def asked(*arguments: Any) -> dict[str, Any]:
        status = ask(*arguments)
        record.polled(status)
        return dict(status)

    def made(*arguments: Any) -> Any:
        streams = make(*arguments)
        record.names = streams[0].names
        return streams

    demo._book, demo._cloud_status, demo.make_streams = booked, asked, made
    settings = DemoSettings.make(
        model="digits-cnn", foundation="digits-cnn-foundation", edges=2, seed=seed,
        images=None, samples=samples, rate=None, workspace=workspace,
    )  # fmt: skip
    try:
        result = demo.run_demo(settings, Console(file=io.StringIO()))
    finally:
        demo._book, demo._cloud_status, demo.make_streams = book, ask, make
    return result, record


def _traces(workspace: Path) -> dict[int, dict[str, Any]]:
    """Return the traces in the demonstration's store by version; none where the sources keep none."""
    try:
        from cema.cloud.store.traces import traces_of  # noqa: PLC0415 - sources from before have no such module
    except ImportError:
        return {}
    with closing(CloudConfig.load(workspace / "cloud.toml").open_store()) as store:
        traces = traces_of(store)
        found = {version: traces.trace("demo", version) for version in traces.traced("demo")}
    return {version: trace for version, trace in found.items() if trace is not None}


def idle_steps_while_waiting(polls: list[tuple[int, int, int]]) -> int:
    """Count the replay-only steps that were made while samples waited, at least.

    The cursor stands still while what waits is not learned from. Of the steps in such a time the first may have begun
    before the samples came; all others are counted.

    Examples
    --------
    >>> idle_steps_while_waiting([(10, 0, 1), (10, 5, 2), (10, 5, 3), (10, 6, 5), (16, 0, 6)])
    2
    """
    count = first = 0
    before: tuple[int, int, int] | None = None
    for cursor, backlog, steps in polls:
        if before is None or not backlog or (cursor, True) != (before[0], before[1] > 0):
            first = steps
        count += max(0, steps - first - 1) - (max(0, before[2] - first - 1) if before else 0)
        before = (cursor, backlog, steps)
    return count


def _segment(record: Record, index: int, traces: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return when a segment was cured, and how the time to its first update is split."""
    name, bounds = record.names[index], record.tallies[0].bounds
    begin, end = bounds[index], bounds[index + 1]
    gains = [t.adapted[begin:end].astype(float) - t.frozen[begin:end] for t in record.tallies]
    mean = np.mean(gains, axis=0)
    samples = samples_until(mean)
    shift = min(_moment(moments, begin) for moments in record.predicted.values())
    found: dict[str, Any] = {"name": name, "samples": samples, "gain": float(mean[len(mean) // 2 :].mean())}
    if samples is not None:
        cured = max(_moment(m, min(begin + samples, end - 1)) for m in record.predicted.values())
        found["seconds"] = cured - shift
    last = max(_moment(moments, end - 1) for moments in record.predicted.values())
    versions = [v for v, t in sorted(traces.items()) if shift <= t["published_at"] <= last]
    found["versions"] = len({version for _, moment, version in record.swaps if shift <= moment <= last})
    for version in versions:
        split = _split(record, shift, version, traces[version])
        if split is not None:
            return found | {"first_update": {"version": version, **split}}
    return found


def samples_until(gain: np.ndarray) -> int | None:
    """Return after how many samples a segment has `SHARE` of its gain; None where there is none.

    Parameters
    ----------
    gain : ndarray of float, (N,)
        By sample, how much more often the adapted model is right.

    Examples
    --------
    >>> samples_until(np.repeat([0.0, 0.5], [200, 1000]))
    280
    """
    full = float(gain[len(gain) // 2 :].mean())
    if full < LEAST_GAIN:
        return None
    total = np.concatenate([[0.0], np.cumsum(gain)])
    means = (total[WINDOW:] - total[:-WINDOW]) / WINDOW
    reached = np.flatnonzero(means >= SHARE * full)
    return int(reached[0]) + WINDOW if len(reached) else len(gain)


def _moment(moments: dict[int, float], place: int) -> float:
    """Return when the batch with an image was captured, unix seconds."""
    return moments[max(first for first in moments if first <= place)]


def _split(record: Record, shift: float, version: int, trace: dict[str, Any]) -> dict[str, Any] | None:
    """Split the seconds from the shift until an update served; None where it knew nothing of the segment."""
    steps = [step for step in trace["steps"] if step["captured"][0] >= shift]
    served = [moment for _, moment, running in record.swaps if running >= version]
    asked = [device["fetched_at"] for device in trace["devices"].values() if device["fetched_at"]]
    if not steps or not served or not asked or trace["evidence_at"] is None:
        return None
    first = steps[0]
    captured, received = first["captured"][0], first["received"][0]
    answered = max(received, record.uploaded.get(captured, received))
    begin = max(answered, first["begin"])
    # What came before the shift may have been enough for the gate: then the first step was what it waited for.
    evidence = max(begin + first["seconds"], trace["evidence_at"])
    published = trace["published_at"]
    at = (
        captured, received, answered, begin, evidence, published, min(asked),
        min(moment for moment in served if moment >= published),
    )  # fmt: skip
    spent = dict(
        zip(SPLIT, (after - before for before, after in zip((shift, *at), at, strict=False)), strict=True)
    )
    return {**spent, "step": sum(step["seconds"] for step in steps), "all": at[-1] - shift}


if __name__ == "__main__":
    sys.exit(main())
