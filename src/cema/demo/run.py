"""The demonstration from start to end."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from rich.console import Console

from cema._util.version import __version__
from cema.cloud.config import CloudConfig
from cema.demo.html import write_html
from cema.demo.live import LivePage
from cema.demo.pacer import Pacer
from cema.demo.processes import Children
from cema.demo.provision import Provisioned, provision
from cema.demo.report import check_outputs, conclusion, result_table, write_json, write_plot
from cema.demo.settings import DemoSettings
from cema.demo.stream import EdgeStream, make_streams
from cema.demo.tally import EdgeTally, SegmentResult, summarise
from cema.demo.view import View
from cema.edge.runtime import Runtime
from cema.errors import CemaError
from cema.formats.bundle import Bundle
from cema.models.registry import resolve

__all__ = ["run_demo"]

START_SECONDS = 120.0
FLUSH_SECONDS = 60.0
REPORT, RESULTS = "report.html", "results.json"


def run_demo(settings: DemoSettings, console: Console) -> dict[str, Any]:
    """Run cloud and edges as processes on a drifting stream, and report what happened.

    Returns
    -------
    dict
        What `--json` writes: `seed`, `seconds`, `versions`, `stretches` (the segments), and what was counted.

    Raises
    ------
    CemaError
        If a child process died (with the end of its log), or the settings make no stream.
    """
    begin = time.monotonic()
    check_outputs(_outputs(settings))
    with _workspace(settings.workspace) as folder:
        edge, foundation = resolve(settings.model), resolve(settings.foundation)
        streams = make_streams(settings, edge, foundation, folder, console)
        provisioned = provision(settings, edge, foundation, folder, console)
        tallies = [EdgeTally(stream.labels, stream.bounds) for stream in streams]
        with Children(folder) as children:
            url = _start(children, provisioned, streams, settings, console)
            config = CloudConfig.load(provisioned.cloud_config)
            pacer = Pacer(children, settings, config, lambda: _cloud_status(url, provisioned), console)
            view = View(console, streams[0].names, tallies)
            with _page(url, provisioned, settings, console) as page:
                _watch(children, view, tallies, streams, bundle=provisioned.bundle, pacer=pacer, page=page)
                cloud = _cloud_status(url, provisioned)
                if page is not None:
                    page.stay()
        rows = summarise(streams[0].names, tallies)
        result = _result(settings, rows, tallies, cloud, time.monotonic() - begin)
        told = conclusion(rows, cloud, stalled=pacer.has_stalled)
        console.print(result_table(rows))
        if settings.report is not None:
            report = settings.report / REPORT
            write_html(report, names=streams[0].names, tallies=tallies, rows=rows, result=result, told=told)
            write_json(settings.report / RESULTS, result)
            console.print(f"report: {report}")
        if settings.plot is not None:
            write_plot(settings.plot, streams[0].names, tallies)
            console.print(f"plot: {settings.plot}")
        if settings.json is not None:
            write_json(settings.json, result)
            console.print(f"json: {settings.json}")
        console.print(told, highlight=False, soft_wrap=True)
    return result


def _outputs(settings: DemoSettings) -> Iterator[Path]:
    yield from (path for path in (settings.plot, settings.json) if path is not None)
    if settings.report is not None:
        yield from (settings.report / REPORT, settings.report / RESULTS)


@contextmanager
def _page(
    url: str, provisioned: Provisioned, settings: DemoSettings, console: Console
) -> Iterator[LivePage | None]:
    if not settings.page:
        yield None
        return
    with closing(LivePage(url, provisioned.cohort, provisioned.admin_token, console)) as page:
        yield page


@contextmanager
def _workspace(folder: Path | None) -> Iterator[Path]:
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="cema-demo-") as temporary:
            yield Path(temporary)
        return
    if folder.exists() and any(folder.iterdir()):
        raise CemaError(
            f"The workspace {folder} is not empty; name a new folder, so that nothing is overwritten."
        )
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


def _start(
    children: Children,
    provisioned: Provisioned,
    streams: list[EdgeStream],
    settings: DemoSettings,
    console: Console,
) -> str:
    """Start the cloud, then, once its worker adapts, the edges; return the cloud's address."""
    with console.status("starting the cloud and its worker"):
        children.start("cloud", ["cloud", "serve", "--config", str(provisioned.cloud_config)])
        url = str(children.wait_for("cloud", "listening", START_SECONDS)["url"])
        deadline = time.monotonic() + START_SECONDS
        while not _worker_ready(url, provisioned):
            children.next_event(0.2)
            if time.monotonic() > deadline:
                raise CemaError(f"The cloud's worker was not ready within {START_SECONDS:g} s; see its log.")
    for i, stream in enumerate(streams):
        config = provisioned.edge_config(i, url)
        arguments = ["edge", "run", "--config", str(config), "--source", str(stream.path)]
        pace = ["--step-on-line"] if settings.waits else ["--rate", str(settings.rate)]
        rest = ["--batch", str(settings.batch), "--linger", str(FLUSH_SECONDS)]
        children.start(f"edge-{i}", [*arguments, *pace, *rest])
    return url


def _worker_ready(url: str, provisioned: Provisioned) -> bool:
    try:
        return bool(_cloud_status(url, provisioned)["worker"]["ready"])
    except (
        httpx2.TransportError
    ):  # not up yet, or not any more: then its end is noticed where its events are read
        return False


def _watch(
    children: Children,
    view: View,
    tallies: list[EdgeTally],
    streams: list[EdgeStream],
    *,
    bundle: Bundle,
    pacer: Pacer,
    page: LivePage | None,
) -> None:
    """Book every event until each edge has finished."""
    frozen = Runtime(bundle)
    images = [np.load(stream.path, mmap_mode="r") for stream in streams]
    running = {f"edge-{i}": i for i in range(len(streams))}
    with view:
        while running:
            event = children.next_event(pacer.tick)
            if event is not None and event.child in running:
                i = running[event.child]
                _book(event.data, tallies[i], images[i], frozen, bundle)
                pacer.book(i, event.data)
                if event.data["event"] == "finished":
                    children.finish(event.child)
                    del running[event.child]
            pacer.release()
            view.update()
            view.left(summarise(streams[0].names, tallies))
            if page is not None:
                page.update(tallies, now=not running)


def _book(data: dict[str, Any], tally: EdgeTally, images: Any, frozen: Runtime, bundle: Bundle) -> None:
    match data["event"]:
        case "prediction":
            batch = np.asarray(images[data["index"] : data["index"] + len(data["labels"])])
            logits = frozen.run(bundle.manifest.preprocessing(batch))
            labels = logits.argmax(axis=1)
            moment, guarded, selected = data["captured_at"], data["guarded"], data["selected"]
            tally.predicted(data["index"], moment, data["labels"], labels, guarded, selected=selected)
        case "uploaded":
            tally.sent(data["captured_at"], data["bytes"])
        case "swap":
            tally.swapped(data["version"], data["bytes"])
        case "finished":
            tally.finished(data)


def _cloud_status(url: str, provisioned: Provisioned) -> dict[str, Any]:
    """Return the cohort's status; never through a proxy, for the cloud is on this machine."""
    response = httpx2.get(
        f"{url}/v1/cohorts/{provisioned.cohort}/status",
        headers={"Authorization": f"Bearer {provisioned.admin_token}"},
        timeout=30.0,
        trust_env=False,
    )
    if response.status_code != httpx2.codes.OK:
        raise CemaError(
            f"the cloud answered {response.status_code} when asked for its status: {response.text[:500]}"
        )
    status: dict[str, Any] = response.json()
    return status


def _result(
    settings: DemoSettings,
    rows: list[SegmentResult],
    tallies: list[EdgeTally],
    cloud: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:
    return {
        "cema": __version__,
        "seed": settings.seed,
        "seconds": round(seconds, 1),
        "model": settings.model,
        "foundation": settings.foundation,
        "versions": cloud["version"],
        "stretches": [row.as_dict() for row in rows],
        "edges": [tally.status for tally in tallies],
        "cloud": cloud,
    }
