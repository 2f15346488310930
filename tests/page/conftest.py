"""A browser, a made-up cloud, and a page that is open on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import complaints, opened_browser
from cloud_factory import factory
from page_scene import Scene
from page_server import PageServer

__all__ = ["browse", "chromium", "factory", "scene", "server", "shots"]

SIZES = {"light": (1280, 900), "dark": (1280, 900), "phone": (360, 760)}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One browser for a file of tests; it is closed before tests of another one may use asyncio."""
    with opened_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def server() -> Iterator[PageServer]:
    server = PageServer(Scene())
    server.start()
    yield server
    server.stop()


@pytest.fixture
def scene(server: PageServer) -> Scene:
    """A fresh scene behind the server."""
    server.scene = Scene()
    server.requests.clear()
    server.histories.clear()
    return server.scene


@pytest.fixture
def browse(chromium: Any, server: PageServer, scene: Scene) -> Iterator[Callable[..., Any]]:
    """Open a view in a new browser profile; at the end nothing may have been reported in any of them."""
    opened: list[tuple[Any, Any, list[str]]] = []

    def browse(view: str = "#/", look: str = "light") -> Any:
        width, height = SIZES[look]
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if look == "dark" else "light"
        )
        page = context.new_page()
        page.set_default_timeout(10_000)
        opened.append((context, page, complaints(page)))
        page.goto(f"{server.url}/{view}")
        page.wait_for_selector("main h1")
        page.complaints = opened[-1][2]
        return page

    yield browse
    found = [text for _, _, reported in opened for text in reported]
    for context, _, _ in opened:
        context.close()
    assert not found


@pytest.fixture(scope="session")
def shots() -> Path | None:
    """Where pictures of all views are wanted: the folder in CEMA_PAGE_SHOTS, or nowhere."""
    folder = os.environ.get("CEMA_PAGE_SHOTS")
    if not folder:
        return None
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder)
