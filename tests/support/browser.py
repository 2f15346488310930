"""A real browser for tests of pages: Debian's Chromium, driven by playwright."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tools import absent, tool

__all__ = ["complaints", "inaccessible", "opened_browser"]

# What a browser does of its own accord, on a network that is not there or is nobody's business.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def opened_browser() -> Iterator[Any]:
    """Start Chromium; skip the test where it or playwright is absent, or fail it where tools are required.

    While it runs, playwright's event loop is that of this thread, in which `asyncio.run` fails: leave it before other
    tests, so let no fixture of a wider scope than a module hold it.
    """
    path = tool("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        absent("no module playwright; install the extra dev")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


def complaints(page: Any) -> list[str]:
    """Return a list that grows by what the browser reports of a page: errors, and violations of its policy."""
    found: list[str] = []
    page.on("console", lambda message: found.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: found.append(str(error)))
    return found


def inaccessible(page: Any, **options: Any) -> list[tuple[str, str, str]]:
    """Return what axe finds wrong with a page as it is now: the rule, the element, and what to do.

    Parameters
    ----------
    page
        Of playwright.
    **options
        Those of axe's `run`, such as `runOnly`.
    """
    try:
        from axe_playwright_python.sync_playwright import Axe
    except ImportError:
        absent("no module axe_playwright_python; install the extra dev")
    return [
        (violation["id"], node["html"][:200], node["failureSummary"])
        for violation in Axe().run(page, options=options).response["violations"]
        for node in violation["nodes"]
    ]
