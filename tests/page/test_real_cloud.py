"""The page of a real cloud with a real device: watched while it learns, and rolled back from the browser."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from browser import complaints
from cloud_process import PATIENCE, Server, eventually
from operated_fleet import Fleet

from cema.cloud.config import CloudConfig

MILLISECONDS = 1000


class Operated(Fleet):
    """A fleet with an operator and an admin, who look at it in a browser."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        with closing(CloudConfig.load(self.config).open_store()) as store:
            add = store.devices(["north"]).add
            self.admin = add("ann", cohort="north", role="admin")
            self.operator = add("olaf", cohort="north", role="operator")


@pytest.fixture
def fleet(chromium: Any, factory: Path, tmp_path: Path) -> Iterator[Operated]:
    shutil.copytree(factory, tmp_path / "f")
    fleet = Operated(tmp_path / "f")
    yield fleet
    fleet.close()


@pytest.fixture
def opened(chromium: Any) -> Iterator[Callable[[], Any]]:
    """Return what opens a page in a profile of its own."""
    contexts: list[Any] = []

    def open_one() -> Any:
        contexts.append(chromium.new_context(viewport={"width": 1280, "height": 900}))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE / 4 * MILLISECONDS)
        page.complaints = complaints(page)
        return page

    yield open_one
    for context in contexts:
        context.close()


def sign_in(page: Any, url: str, token: str) -> None:
    page.goto(url)
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", name="Cohorts").wait_for()


def test_a_cohort_is_watched_and_rolled_back_and_the_device_follows(
    fleet: Operated, opened: Callable[[], Any], shots: Path | None
) -> None:
    page = opened()
    page.goto(fleet.server.url)
    page.get_by_label("Token").fill("nobody's")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("alert").wait_for()
    sign_in(page, fleet.server.url, fleet.admin)
    page.complaints.clear()  # the browser reports that nobody was signed in, and that a token was refused
    assert fleet.admin not in page.url
    page.get_by_text("No version was published yet.").wait_for()

    page.goto(f"{fleet.server.url}/#/c/north")
    for _ in range(8):
        fleet.send(32)
    # Nothing is loaded anew by hand: what changes comes by itself.
    page.locator("main").get_by_text("learned").first.wait_for()
    eventually(lambda: len(fleet.versions()) >= 3 and fleet.agent.status().version >= 3)
    eventually(lambda: fleet.server.get("status").json()["backlog"] == 0)
    first = fleet.versions()[0]
    if shots is not None:
        page.screenshot(path=str(shots / "real-cohort.png"), full_page=True)

    page.get_by_role("button", name="Roll back", exact=True).click()
    dialog = page.get_by_role("dialog", name="Roll back")
    dialog.get_by_label("Version").select_option(str(first["version"]))
    dialog.get_by_role("button", name="Roll back").click()
    # Learning goes on after it: a later version may come soon, and the device has that one then.
    eventually(lambda: fleet.agent.status().digest == first["digest"])
    dialog.get_by_text("Done: v").wait_for()
    (back,) = (each for each in fleet.versions() if each["trace"]["kind"] == "rollback")
    assert back["digest"] == first["digest"]
    dialog.get_by_role("button", name="Close").click()
    page.goto(f"{fleet.server.url}/#/c/north/acts")
    page.get_by_role("cell", name="ann").first.wait_for()
    page.goto(f"{fleet.server.url}/#/c/north/d/cam")
    page.get_by_role("heading", name="cam").wait_for()
    page.get_by_text(f"v{back['version']}").first.wait_for()
    assert page.complaints == []
    assert fleet.failures == []


def test_an_operator_looks_and_does_not_act(fleet: Operated, opened: Callable[[], Any]) -> None:
    page = opened()
    page.goto(f"{fleet.server.url}/#sign-in={fleet.operator}")
    page.get_by_role("heading", name="Cohorts").wait_for()
    assert fleet.operator not in page.url
    page.goto(f"{fleet.server.url}/#/c/north")
    page.get_by_text("admin").first.wait_for()
    buttons = page.get_by_role("button", name="Stop", exact=True)
    assert all(button.get_attribute("aria-disabled") == "true" for button in buttons.all())
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Token").wait_for()
    assert page.context.cookies() == []


def test_a_link_signs_nobody_in_as_somebody_else_unasked(fleet: Operated, opened: Callable[[], Any]) -> None:
    page = opened()
    sign_in(page, fleet.server.url, fleet.admin)
    asked: list[str] = []
    answers = iter([False, True])

    def answer(dialog: Any) -> None:
        asked.append(dialog.message)
        if next(answers):
            dialog.accept()
        else:
            dialog.dismiss()

    page.on("dialog", answer)
    who = page.locator(".who b")
    ann = who.inner_text()
    page.goto("about:blank")
    page.goto(f"{fleet.server.url}/#sign-in={fleet.operator}")  # in a new page
    page.get_by_role("heading", name="Cohorts").wait_for()
    assert who.inner_text() == ann
    assert len(asked) == 1
    assert fleet.operator not in page.url
    page.goto(f"{fleet.server.url}/#sign-in={fleet.operator}")  # in the page that is there
    page.get_by_text("operator", exact=True).wait_for()
    ops = who.inner_text()
    assert ops != ann
    assert len(asked) == 2
    assert ann in asked[1]
    assert ops in asked[1]
    cookies = page.context.cookies()
    for link in (fleet.operator, "nobody's"):  # the same, or nobody: there is nothing to ask
        page.goto("about:blank")
        page.goto(f"{fleet.server.url}/#sign-in={link}")
        page.get_by_role("heading", name="Cohorts").wait_for()
        assert who.inner_text() == ops
    assert len(asked) == 2
    assert page.context.cookies() == cookies


def test_a_cloud_that_ends_and_comes_back_is_noticed(fleet: Operated, opened: Callable[[], Any]) -> None:
    config = CloudConfig.load(fleet.config)
    port = int(fleet.server.url.rpartition(":")[2])
    page = opened()
    sign_in(page, fleet.server.url, fleet.admin)
    fleet.server.end(signal.SIGTERM)
    page.get_by_text("No connection to the cloud since").wait_for()
    page.get_by_role("heading", name="Cohorts").wait_for()  # what was known stays
    assert config.port == 0
    fleet.config.write_text(fleet.config.read_text().replace("port = 0", f"port = {port}"))
    fleet.server = Server(fleet.config, fleet.token)
    page.get_by_text("No connection to the cloud since").wait_for(state="hidden")
