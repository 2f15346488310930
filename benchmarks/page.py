"""Measure the operators' page in Chromium: what it transfers, when it paints, and how long it keeps the browser busy.

Without ``--url`` it is served by the made-up cloud of the tests, with 1,000 devices and histories of some 100,000
numbers that are 10 seconds apart. With it, a real cloud is measured, signed in with ``--token``. Each view is loaded
anew with an empty cache; then it is left open for a while, in which the made-up cloud sends an event each second.
Goals: first paint within 1 s, no task longer than 100 ms while the page is live, less than 200 kB transferred for
``/`` and the files that it loads. Examples::

    python benchmarks/page.py --seconds 20
    python benchmarks/page.py --fleet 1000   # a real cloud
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from large_fleet import COHORT, large_fleet, numbers_kept

SUPPORT = Path(__file__).parents[1] / "tests" / "support"
VIEWS = {"overview": "#/", "cohort": "#/c/{cohort}", "devices": "#/c/{cohort}/devices"}
GOALS = {"first_paint_ms": 1000.0, "longest_task_live_ms": 100.0, "transferred": 200_000.0}
OBSERVE = """
window.longTasks = [];
new PerformanceObserver((list) => list.getEntries().forEach((entry) => window.longTasks.push(
  [entry.startTime, entry.duration]
))).observe({ type: 'longtask', buffered: true });
"""
DRAWN = "() => document.querySelector('main h1') && !document.querySelector('.loading')"


def main() -> int:
    """Measure, print, and return 1 where a goal is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="a real cloud (default: the made-up one)")
    parser.add_argument("--token", default="", help="of an operator of it (default: none)")
    parser.add_argument("--cohort", default="yard", help="whose views are opened (default: yard)")
    parser.add_argument("--seconds", type=float, default=10.0, help="each view stays open (default: 10)")
    parser.add_argument(
        "--fleet", type=int, metavar="N", help="a real cloud, made with N devices and a month behind it"
    )
    options = parser.parse_args()
    with _cloud(options) as (url, token, cohort):
        result = measured(url, token, cohort, options.seconds)
    print(
        "| view | first paint, ms | drawn, ms | longest task while loading, ms | while live, ms | transferred |"
    )
    print("|---|--:|--:|--:|--:|--:|")
    for view, found in result.items():
        print(f"| {view} | " + " | ".join(f"{value:.0f}" for value in found.values()) + " |")
    print(json.dumps(result))
    missed = [
        f"{view}: {name}" for view, found in result.items() for name in GOALS if found[name] > GOALS[name]
    ]
    if missed:
        print("goals missed: " + ", ".join(missed), file=sys.stderr)
    return int(bool(missed))


@contextmanager
def _cloud(options: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    """Yield the address of what is measured, a token, and the cohort."""
    if options.url:
        yield options.url, options.token, options.cohort
    elif options.fleet:
        with (
            tempfile.TemporaryDirectory() as folder,
            large_fleet(Path(folder), options.fleet) as (url, token),
        ):
            print(f"{options.fleet} devices, {numbers_kept():,} numbers in the history")
            yield url, token, COHORT
    else:
        with _made_up() as url:
            yield url, "", options.cohort


@contextmanager
def _made_up() -> Iterator[str]:
    """Start the made-up cloud with a large fleet."""
    sys.path.insert(0, str(SUPPORT))
    scenes, servers = importlib.import_module("page_scene"), importlib.import_module("page_server")
    server = servers.PageServer(scenes.Scene(devices=1000, points=100_000, versions=60, busy=1.0))
    server.start()
    try:
        yield server.url
    finally:
        server.stop()


def measured(url: str, token: str, cohort: str, seconds: float) -> dict[str, dict[str, float]]:
    """Return the figures of each view."""
    playwright = importlib.import_module("playwright.sync_api")
    path = shutil.which("chromium")
    if path is None:
        raise SystemExit("no program chromium on the PATH; install it")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        result = {}
        for name, view in VIEWS.items():
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            if token:
                context.request.post(f"{url}/v1/session", data={"token": token}, headers={"CEMA-Page": "1"})
            result[name] = _view(context.new_page(), f"{url}/{view.format(cohort=cohort)}", seconds)
            context.close()
        browser.close()
    return result


def _view(page: Any, address: str, seconds: float) -> dict[str, float]:
    """Load one view, leave it open, and return what was seen."""
    page.add_init_script(OBSERVE)
    page.goto(address)
    page.wait_for_function(DRAWN)
    drawn = page.evaluate("performance.now()")
    page.wait_for_timeout(1000)
    live = page.evaluate("performance.now()")
    page.wait_for_timeout(seconds * 1000)
    tasks = page.evaluate("window.longTasks")
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    sizes = page.evaluate(
        "[...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]"
        ".filter((one) => !one.name.includes('/v1/')).map((one) => one.transferSize)"
    )
    return {
        "first_paint_ms": paint,
        "drawn_ms": drawn,
        "longest_task_loading_ms": max((length for at, length in tasks if at < live), default=0.0),
        "longest_task_live_ms": max((length for at, length in tasks if at >= live), default=0.0),
        "transferred": float(sum(sizes)),
    }


if __name__ == "__main__":
    sys.exit(main())
