"""Take the pictures of the page that the documents show: of a real demonstration, near its end.

::

    python scripts/pictures.py            # writes docs/images/page-*.png; takes some three minutes
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

SAMPLES = 6000
# Where the stream has changed often enough for a chart to show it.
SHARE = 0.75
LONGEST = 900.0
VIEWS = {"overview": "#/", "cohort": "#/c/demo", "device": "#/c/demo/d/edge-0", "devices": "#/c/demo/devices"}
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light", "device_scale_factor": 2},
}
# Debian's; with what a browser does of its own accord left out.
BROWSER = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
]


def main() -> None:
    """Run the demonstration, and take a picture of every view in every look."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path("docs/images"), help="the folder (default: docs/images)"
    )
    parser.add_argument(
        "--views", nargs="+", default=["cohort"], choices=VIEWS, help="of what (default: cohort)"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "demo.log"
        command = [sys.executable, "-m", "cema", "demo", "--open", "--samples", str(SAMPLES)]
        command += ["--plot", str(Path(folder) / "demo.png")]
        with log.open("w") as out:
            demo = subprocess.Popen(  # noqa: S603 - our own command
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=os.environ | {"BROWSER": "true"},  # no window of its own
            )
        try:
            take(address(log, demo), options.out, options.views)
        finally:
            demo.terminate()
            demo.wait()


def address(log: Path, demo: subprocess.Popen[bytes]) -> str:
    """Return the page's address, once the demonstration has printed it."""
    deadline = time.monotonic() + LONGEST
    while time.monotonic() < deadline and demo.poll() is None:
        found = re.search(r"page: (\S+)", log.read_text())
        if found:
            return found[1]
        time.sleep(0.2)
    raise SystemExit(f"the demonstration printed no address of its page:\n{log.read_text()}")


def take(url: str, out: Path, views: list[str]) -> None:
    """Wait until most of the stream is over, and take the pictures."""
    base = url.partition("#")[0]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        pages = {look: browser.new_context(**settings).new_page() for look, settings in LOOKS.items()}
        for page in pages.values():
            page.goto(url)
            page.get_by_role("heading", name="Cohorts").wait_for()
        first = next(iter(pages.values()))
        deadline = time.monotonic() + LONGEST
        while first.evaluate(PREDICTED) < SHARE * SAMPLES and time.monotonic() < deadline:
            first.wait_for_timeout(1000)
        for view in views:
            for look, page in pages.items():
                page.goto(f"{base}{VIEWS[view]}")
                page.wait_for_function("() => !document.querySelector('.loading')")
                page.wait_for_timeout(1500)
                page.screenshot(path=str(out / f"page-{view}-{look}.png"))
        browser.close()


# How many images a device has predicted, by its report.
PREDICTED = """async () => {
  const answer = await fetch("/v1/cohorts/demo/devices");
  const found = await answer.json();
  return Math.max(0, ...found.devices.map((one) => one.report?.counts?.predicted ?? 0));
}"""


if __name__ == "__main__":
    main()
