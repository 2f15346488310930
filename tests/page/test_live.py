"""The page follows the cloud: only what changed is drawn again, and what is shown stays without a connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from page_scene import Scene
from page_server import PageServer

Browse = Callable[..., Any]
SETTLED = "() => !document.querySelector('.loading') && document.querySelector('main h1')"
# Counts changes of the document by the article that they are in.
WATCH = """
window.changed = {};
new MutationObserver((records) => records.forEach((record) => {
  const element = record.target.nodeType === 1 ? record.target : record.target.parentElement;
  if (element?.closest('time')) return;
  const name = element?.closest('article')?.getAttribute('aria-label') ?? 'page';
  window.changed[name] = (window.changed[name] ?? 0) + 1;
})).observe(document.querySelector('main'), { subtree: true, childList: true, characterData: true, attributes: true });
"""


def test_a_change_is_shown_at_once(browse: Browse, scene: Scene) -> None:
    page = browse()
    page.wait_for_function(SETTLED)
    page.get_by_text("Live").wait_for()
    page.evaluate(WATCH)
    scene.told["yard"] = "Agrees on 12 % now."
    scene.busy = 0.2
    scene.same = True  # of the two others events say the same
    page.get_by_text("Agrees on 12 % now.").wait_for()
    assert page.evaluate("window.changed") == {"Cohort yard": 1}


def test_what_did_not_change_is_not_touched(browse: Browse, scene: Scene) -> None:
    page = browse()
    page.wait_for_function(SETTLED)
    page.get_by_text("Live").wait_for()
    page.evaluate(WATCH)
    page.evaluate("window.events = 0")
    page.evaluate(
        "() => { new EventSource('/v1/events').addEventListener('overview', () => window.events++) }"
    )
    scene.same = True  # events come, and say the same
    scene.busy = 0.1
    page.wait_for_function("() => window.events > 5")
    assert page.evaluate("window.changed") == {}


def test_a_level_that_changes_is_said_aloud(browse: Browse, scene: Scene) -> None:
    page = browse()
    page.wait_for_function(SETTLED)
    page.get_by_text("Live").wait_for()
    scene.levels["yard"] = "bad"
    scene.changes += 1
    page.wait_for_function(
        "() => document.querySelector('[role=status]#announce').textContent.startsWith('yard: problem.')"
    )
    assert page.locator("article").first.get_attribute("aria-label") in {"Cohort tunnel", "Cohort yard"}


def test_a_dead_cloud_is_told_with_since_when_and_what_is_shown_stays(
    browse: Browse, scene: Scene, server: PageServer
) -> None:
    page = browse("#/c/yard")
    page.wait_for_function(SETTLED)
    page.get_by_text("Live").wait_for()
    server.stop()
    try:
        banner = page.get_by_role("alert")
        banner.wait_for()
        assert banner.inner_text().startswith("No connection to the cloud since ")
        assert page.locator(".chart canvas").count() == 5
        assert page.evaluate("getComputedStyle(document.querySelector('main')).filter") == "grayscale(1)"
        stop = page.get_by_role("button", name="Stop")
        assert stop.get_attribute("title") == "There is no connection to the cloud."
    finally:
        server.start()
    banner.wait_for(state="detached", timeout=15_000)
    page.get_by_text("Live").wait_for()
    assert not stop.get_attribute("title")
    page.complaints.clear()  # the browser reports each request that got no answer


def test_a_cloud_that_is_dead_at_first_is_tried_again(
    browse: Browse, scene: Scene, chromium: Any, server: PageServer
) -> None:
    page = browse("#/c/yard")
    page.wait_for_function(SETTLED)
    page.route("**/v1/**", lambda route: route.abort())
    page.reload()
    page.get_by_role("alert").wait_for()
    page.unroute("**/v1/**")
    page.get_by_role("heading", name="yard").wait_for(timeout=15_000)
    page.complaints.clear()


def test_where_too_many_pages_listen_it_asks_from_time_to_time(browse: Browse, scene: Scene) -> None:
    scene.full = True
    page = browse()
    page.wait_for_function(SETTLED)
    scene.told["yard"] = "Agrees on 12 now."
    scene.changes += 1
    page.get_by_text("Agrees on 12 now.").wait_for()
    page.get_by_text("Live").wait_for()
    assert page.get_by_role("alert").count() == 0
    assert {text.rsplit(" ", 1)[0] for text in page.complaints} == {
        "Failed to load resource: the server responded with a status of 503 (Service"
    }
    page.complaints.clear()


def test_a_session_that_ends_leads_to_the_sign_in(browse: Browse, scene: Scene) -> None:
    page = browse("#/c/yard/devices")
    page.wait_for_function(SETTLED)
    page.get_by_text("Live").wait_for()
    scene.signed_in = False
    page.get_by_role("heading", name="Sign in").wait_for()
    assert page.locator("table").count() == 0
    page.complaints.clear()


def test_a_large_fleet_and_long_histories_make_small_documents(browse: Browse, scene: Scene) -> None:
    scene.devices = 1000
    scene.points = 100_000
    page = browse("#/c/yard/devices")
    page.wait_for_function(SETTLED)
    assert page.locator("table.devices tbody tr").count() == 50
    page.get_by_text("1 to 50 of 1,000").wait_for()
    page.evaluate("location.hash = '#/c/yard'")
    page.locator(".chart canvas").nth(4).wait_for()
    assert page.evaluate("document.querySelectorAll('*').length") < 4000
    places = page.locator("[role=slider]").evaluate_all(
        "all => all.map((one) => Number(one.getAttribute('aria-valuemax')))"
    )
    assert len(places) == 5
    assert 100 < max(places) <= 400


def test_the_page_works_below_a_path_of_a_proxy(browse: Browse, server: PageServer, scene: Scene) -> None:
    page = browse()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{server.url}/fleet/#/c/yard")
    page.get_by_role("heading", name="yard").wait_for()
    page.wait_for_function("() => !document.querySelector('.loading')")
    assert asked
    assert [url for url in asked if not url.startswith(f"{server.url}/fleet/")] == []
