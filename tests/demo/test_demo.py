"""The main job, end to end: real processes, real HTTP, real digits."""

from __future__ import annotations

import html
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from rich.console import Console

from cema.cli.update import way_of
from cema.cloud.config import CloudConfig
from cema.cloud.store.history import added, history_of
from cema.cloud.store.traces import traces_of
from cema.demo.settings import DemoSettings
from cema.demo.stream import make_streams
from cema.methods.base import MethodContext
from cema.methods.registry import make_adapter
from cema.models.registry import resolve

SAMPLES = 450

# A foundation model that takes ten times as long as the demo's.
SLOW_FOUNDATION = """
import torch
from cema.models.registry import resolve
from cema.models.spec import Model

class Slow(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, pixels):
        with torch.no_grad():
            for _ in range(10):
                self.network(pixels)
        return self.network(pixels)

def foundation():
    model = resolve("digits-cnn-foundation")
    return Model("slow", Slow(model.module), model.preprocessing, model.classes)
"""


def command(folder: Path, *arguments: str) -> list[str]:
    outputs = ["--json", str(folder / "result.json"), "--plot", str(folder / "plot.png")]
    return [sys.executable, "-m", "cema", "demo", *outputs, *arguments]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """Run a short demonstration with a slow worker; return its folder, its JSON, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "slow.py").write_text(SLOW_FOUNDATION)
    models = ["--foundation", f"{folder / 'slow.py'}:foundation"]
    arguments = [*models, "--samples", str(SAMPLES), "--seed", "3", "--workspace", str(folder / "workspace")]
    arguments += ["--open", "--report", str(folder / "report")]
    done = subprocess.run(
        command(folder, *arguments),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env=os.environ | {"BROWSER": "true"},  # a program that does nothing
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, json.loads((folder / "result.json").read_text()), done.stdout


def test_adapted_beats_frozen_on_the_demos_stream(tmp_path: Path) -> None:
    """The demo's own stream through the benchmark's row: the same classes, and nothing depends on how fast they are."""
    edge, foundation = resolve("digits-cnn"), resolve("digits-cnn-foundation")
    settings = DemoSettings(
        model=edge.name,
        foundation=foundation.name,
        images=None,
        samples=4000,
        edges=1,
        rate=1.0,
        batch=32,
        seed=3,
    )
    (stream,) = make_streams(settings, edge, foundation, tmp_path, Console(quiet=True))
    images = np.load(stream.path)
    adapted, frozen = (
        make_adapter(name, edge, context=MethodContext(foundation)) for name in ("cema", "source")
    )
    right = {name: [0] * len(stream.names) for name in ("adapted", "frozen")}
    for place, (begin, end) in enumerate(pairwise(stream.bounds)):
        for start in range(begin, end, settings.batch):
            chosen = slice(start, min(start + settings.batch, end))
            for name, method in (("adapted", adapted), ("frozen", frozen)):
                predicted = method.step(images[chosen]).logits.argmax(1)
                right[name][place] += int((predicted == stream.labels[chosen]).sum())
    assert stream.names[0] == "clean"
    length = stream.bounds[1]
    assert right["adapted"][0] >= right["frozen"][0] - 0.02 * length
    gained = sum(right["adapted"][1:]) - sum(right["frozen"][1:])
    assert gained > 0.1 * length * (len(stream.names) - 1)


def test_the_page_is_told_how_accurate_the_models_are(finished: tuple[Path, dict[str, Any], str]) -> None:
    folder, result, printed = finished
    assert "page: http://127.0.0.1:" in printed
    with closing(CloudConfig.load(folder / "workspace" / "cloud.toml").open_store()) as store:
        history = history_of(store)
        assert history is not None
        now = time.time()
        bins = history.history("demo", now - 3600, now + 10, 10)
    sums = added({}, *(each.measures for each in bins))
    for name in ("adapted", "frozen"):
        count, right = sums[f"labelled.{name}"]
        share = sum(row[f"{name}_accuracy"] * row["samples"] for row in result["stretches"]) / 100
        assert (count, right) == (2 * SAMPLES, pytest.approx(share))


def test_the_report_is_one_file_with_the_results_beside_it(
    finished: tuple[Path, dict[str, Any], str],
) -> None:
    folder, result, printed = finished
    page = (folder / "report" / "report.html").read_text(encoding="utf-8")
    assert json.loads((folder / "report" / "results.json").read_text()) == result
    assert printed.rstrip().splitlines()[-1] in html.unescape(page)
    assert "http://" not in page.replace("http://www.w3.org/", "")
    (rows,) = (each["rows"] for each in blocks(page) if each["kind"] == "table")
    assert [row[0] for row in rows] == [row["name"] for row in result["stretches"]]
    (series,) = (each for each in blocks(page) if each["kind"] == "series")
    assert {line["name"] for line in series["lines"]} == {"adapted", "frozen"}
    assert all(len(line["values"]) == len(series["at"]) for line in series["lines"])


def blocks(page: str) -> list[dict[str, Any]]:
    (data,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S)
    found = json.loads(data)
    return list(found["blocks"] if isinstance(found, dict) else found)


def test_every_prediction_is_in_the_table(finished: tuple[Path, dict[str, Any], str]) -> None:
    _, result, printed = finished
    assert sum(row["samples"] for row in result["stretches"]) == 2 * SAMPLES
    assert all(edge["predicted"] == SAMPLES for edge in result["edges"])
    assert all(row["name"] in printed for row in result["stretches"])


def test_edges_and_cloud_agree(finished: tuple[Path, dict[str, Any], str]) -> None:
    _, result, _ = finished
    edges, cloud, rows = result["edges"], result["cloud"], result["stretches"]
    counts = {"samples.duplicate": 0, "bytes.duplicate": 0, **cloud["counts"]}
    assert sum(edge["uploaded"] for edge in edges) == counts["samples.stored"] + counts["samples.duplicate"]
    assert sum(edge["bytes_up"] for edge in edges) == counts["bytes.stored"] + counts["bytes.duplicate"]
    assert sum(row["uploaded"] for row in rows) == sum(edge["uploaded"] for edge in edges)
    assert sum(row["bytes_up"] for row in rows) == sum(edge["bytes_up"] for edge in edges)
    assert sum(row["bytes_down"] for row in rows) == sum(edge["bytes_down"] for edge in edges)
    assert all(0 < edge["version"] <= result["versions"] == cloud["version"] for edge in edges)
    assert not any(edge["dropped"] or edge["rejected_updates"] for edge in edges)


def test_no_segment_sends_more_than_it_has(finished: tuple[Path, dict[str, Any], str]) -> None:
    _, result, _ = finished
    assert all(row["uploaded"] <= row["samples"] for row in result["stretches"])


def test_the_last_line_says_what_was_gained(finished: tuple[Path, dict[str, Any], str]) -> None:
    _, _, printed = finished
    assert printed.splitlines()[-1].startswith("Adaptation ")


def test_the_stream_waits_for_a_worker_that_is_slow(finished: tuple[Path, dict[str, Any], str]) -> None:
    _, result, _ = finished
    counts = result["cloud"]["counts"]
    # Far more was sent than may wait; the worker passes over what is beyond that. Without the waiting it is more than a
    # third. What one device sends beyond twice its part of a batch is passed over also where the worker keeps up.
    assert counts["samples.stored"] > 150
    passed_over = sum(counts.get(f"worker.{name}_samples", 0) for name in ("skipped", "left_out"))
    assert passed_over < 0.1 * counts["samples.stored"]


def test_the_way_of_every_update_is_known(finished: tuple[Path, dict[str, Any], str]) -> None:
    folder, result, _ = finished
    config = folder / "workspace" / "cloud.toml"
    with closing(CloudConfig.load(config).open_store()) as store:
        traces = traces_of(store)
        known = traces.traced("demo")
        first = traces.trace("demo", 1)
    # There may be one more than when the result was written.
    assert known == list(range(1, len(known) + 1))
    assert len(known) >= result["versions"] > 0
    assert first is not None
    way = [moment for _, moment in way_of(first)]
    # All clocks are this machine's. In so short a stream the guard may serve the source model all the time: then no
    # sample says that this version runs.
    captured, _, received, _, began, ended, evidence, published, fetched, *ran = way
    assert captured <= received <= began < evidence <= published <= fetched
    assert all(fetched <= moment for moment in ran)
    assert began < ended <= published
    assert first["samples"] == sum(step["samples"] for step in first["steps"]) >= 64
    assert sum(step["seconds"] for step in first["steps"]) <= published - began
    assert set(first["devices"]) <= {"edge-0", "edge-1"}
    done = subprocess.run(
        [sys.executable, "-m", "cema", "update", "trace", "1", "--json", "--config", str(config)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == {"cohort": "demo", **first}


def test_the_plot_is_a_picture(finished: tuple[Path, dict[str, Any], str]) -> None:
    folder, _, _ = finished
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_workspace_that_is_in_use_is_refused(finished: tuple[Path, dict[str, Any], str]) -> None:
    folder, _, _ = finished
    arguments = command(folder, "--workspace", str(folder / "workspace"))
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "not empty" in done.stderr


@contextmanager
def running(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a demonstration that would run for long, and yield it once both edges run."""
    # Few samples are soon drawn, and at this pace the stream lasts for twenty minutes.
    pace = ["--samples", "1200", "--rate", "1"]
    arguments = command(folder, *pace, "--workspace", str(folder / "workspace"))
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def family(process: subprocess.Popen[str], edges: int) -> list[psutil.Process]:
    """Return all descendants of a demonstration once its edges run."""
    parent = psutil.Process(process.pid)
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        children = parent.children(recursive=True)
        if sum("edge" in arguments(child) for child in children) == edges:
            return children
        time.sleep(0.1)  # no event tells that a process tree has grown
    raise AssertionError("the edges did not start within three minutes")


def arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it ended meanwhile
        return []


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return who still runs after half a minute; a zombie that nobody has reaped does not."""
    _, left = psutil.wait_procs(processes, timeout=30)
    return [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_it_ends_it_leaves_no_process_behind(tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path) as process:
        children = family(process, edges=2)
        os.kill(process.pid, number)
        assert not alive(children)
        process.communicate(timeout=30)
        assert process.returncode != 0


def test_a_child_that_dies_ends_the_demo_with_its_log(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        children = family(process, edges=2)
        cloud = next(child for child in children if "serve" in arguments(child))
        cloud.kill()
        printed, _ = process.communicate(timeout=60)
        assert process.returncode not in (0, None)
        assert "cloud ended with status -9" in printed
        assert "log" in printed
        assert not alive(children)
