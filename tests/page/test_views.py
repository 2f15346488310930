"""What each view shows: the state of things, what explains it, and what to do where there is nothing yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import inaccessible
from page_scene import HOSTILE, Scene
from page_server import TOKEN, PageServer

Browse = Callable[..., Any]
VIEWS = {
    "overview": "#/",
    "cohort": "#/c/tunnel",
    "devices": "#/c/yard/devices",
    "device": "#/c/yard/d/camera-0023",
    "acts": "#/c/yard/acts",
}
# Dark differs from light in its colours alone.
RULES: dict[str, Any] = {"light": {}, "phone": {}, "dark": {"runOnly": ["color-contrast"]}}
SETTLED = "() => !document.querySelector('.loading') && document.querySelector('main h1')"


def go(page: Any, view: str) -> None:
    """Go to a view as a link does, and wait for all that it asked for."""
    page.evaluate("view => { location.hash = view }", view)
    page.wait_for_function("view => location.hash === view", arg=view)
    page.wait_for_timeout(50)
    page.wait_for_function(SETTLED)


def acted(scene: Scene) -> None:
    """Let some acts have happened."""
    for act in (
        {"type": "pause"},
        {"type": "resume"},
        {"type": "rollback", "to": 4},
        {"type": "pin", "to": 3, "device": "camera-0003"},
    ):
        scene.act("yard", act)
    scene.work()
    scene.act("yard", {"type": "canary", "first": 0.2})


@pytest.mark.parametrize("look", ["light", "dark", "phone"])
def test_every_view_is_accessible_and_fits(
    browse: Browse, scene: Scene, shots: Path | None, look: str
) -> None:
    acted(scene)
    page = browse("#/", look)
    for name, view in VIEWS.items():
        go(page, view)
        assert not inaccessible(page, **RULES[look]), name
        width, room = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width <= room, name
        assert page.title().endswith("– CEMA")
        if shots:
            page.evaluate(
                "document.querySelectorAll('img[loading]').forEach((image) => { image.loading = 'eager' })"
            )
            page.wait_for_function("() => [...document.images].every((image) => image.complete)")
            page.screenshot(path=str(shots / f"{look}-{name}.png"), full_page=True)


def test_the_overview_has_the_worst_cohort_first_with_its_reasons(browse: Browse, scene: Scene) -> None:
    page = browse()
    page.wait_for_function(SETTLED)
    assert page.locator("article h2").all_inner_texts() == ["tunnel", "harbour", "yard"]
    assert (
        page.locator(".lead").inner_text()
        == "3 cohorts: 1 with a problem, 1 with a warning, 1 OK. 360 devices, 10 silent."
    )
    tunnel = page.locator("article").first
    assert "agreement fell by 14 points in 24 hours" in tunnel.inner_text()
    assert tunnel.locator(".level").inner_text().strip() == "Problem"
    legend = tunnel.locator(".legend > span:not(.when)").evaluate_all(
        "all => all.map((one) => one.childNodes[1].data)"
    )
    assert [text.strip() for text in legend] == [
        "Running version",
        "In training",
        "Unadapted",
        "True accuracy",
        "True accuracy, unadapted",
    ]
    facts = page.locator("article").nth(1).locator(".facts").inner_text()
    assert "v14 on canary devices" in facts
    assert "no prices set" in facts
    assert "0.84" in tunnel.locator(".facts").inner_text()


def test_a_chart_tells_its_values_to_keys_and_as_a_table(browse: Browse) -> None:
    page = browse()
    page.wait_for_function(SETTLED)
    chart = page.locator("figure.chart").first
    slider = chart.get_by_role("slider")
    assert "Running version: from" in slider.get_attribute("aria-valuetext")
    slider.focus()
    page.keyboard.press("Home")
    first = slider.get_attribute("aria-valuetext")
    page.keyboard.press("ArrowRight")
    second = slider.get_attribute("aria-valuetext")
    assert first != second
    assert "Running version" in second
    assert slider.get_attribute("aria-valuenow") == "1"
    assert chart.locator(".when").inner_text() == second.split(": ")[0]
    chart.get_by_text("Show as a table").click()
    chart.locator("tbody tr").first.wait_for()
    assert chart.get_by_role("columnheader").all_inner_texts()[:3] == [
        "from",
        "Running version",
        "In training",
    ]
    assert 20 < chart.locator("tbody tr").count() <= 50


def test_a_cohort_is_explained_by_its_charts_versions_and_samples(browse: Browse, server: PageServer) -> None:
    page = browse("#/c/yard")
    page.wait_for_function(SETTLED)
    headings = page.locator("main h2").all_inner_texts()
    assert headings == [
        "Is it getting worse?",
        "Entropy",
        "What devices select",
        "Losses",
        "Traffic",
        "Versions",
        "Domains",
        "Latest acts",
        "Newest samples",
    ]
    assert page.locator(".chart canvas").count() == 5
    assert page.locator("tr.chosen").inner_text().split("\t")[:2] == ["v14", "rolled back to v12"]
    assert page.locator(".histogram tbody tr").count() == 10
    assert page.locator(".tile").count() == 60
    different = page.locator(".tile.differs").count()
    page.get_by_label("They disagree").check()
    assert page.locator(".tile").count() == different > 0
    page.get_by_role("button", name="v12", exact=True).click()
    page.get_by_role("heading", name="What v12 changed").wait_for()
    asked = [path for path in server.requests if path.endswith("/history")]
    page.get_by_label("7 d").check()
    page.wait_for_function("() => document.querySelector('.marks')")
    page.wait_for_timeout(100)
    assert len([path for path in server.requests if path.endswith("/history")]) == len(asked) + 1


def test_of_a_young_cohort_the_known_time_alone_is_shown_and_in_finer_bins(
    browse: Browse, scene: Scene, server: PageServer
) -> None:
    scene.age = 300
    page = browse("#/c/yard")
    page.get_by_text("Nothing is known of before").wait_for()
    page.wait_for_function(
        "() => document.querySelector('[role=slider]').getAttribute('aria-valuemax') >= 10"
    )
    (first, until), *_, (last, _) = server.histories
    assert until - first == 86_400
    assert until - last <= 700


def test_devices_with_problems_come_first_and_the_cloud_searches_and_pages(browse: Browse) -> None:
    page = browse("#/c/yard/devices")
    page.wait_for_function(SETTLED)
    rows = page.locator("table.devices tbody tr")
    assert rows.count() == 50
    assert rows.first.inner_text().split()[:2] == ["camera-0023", "Problem"]
    assert "refused version 14" in rows.first.inner_text()
    assert page.locator(".pages span").inner_text() == "1 to 50 of 120"
    page.get_by_role("button", name="Next").click()
    page.get_by_text("51 to 100 of 120").wait_for()
    page.get_by_role("searchbox").fill("011")
    page.get_by_text("1 to 11 of 11").wait_for()
    page.get_by_label("By name", exact=True).check()
    page.wait_for_function(
        "() => document.querySelector('table.devices tbody th').innerText.startsWith('camera-0011')"
    )
    page.get_by_role("searchbox").fill("nobody")
    page.get_by_text('No device\'s name has "nobody" in it.').wait_for()


def test_a_device_tells_what_it_serves_holds_and_sent(browse: Browse) -> None:
    page = browse("#/c/yard/d/camera-0023")
    page.wait_for_function(SETTLED)
    text = page.locator("main").inner_text()
    for told in (
        "refused version 14: golden_batch",
        "It refused v14",
        "80 selected samples",
        "1.2\u202fMB",
        "61.5",
        "v13 serves",
        "5,120",
    ):
        assert told in text
    page.locator(".tile").first.wait_for()
    assert page.locator(".tile").count() == 24


NOTHING_YET = [
    ("#/", "Agreement is drawn once devices send samples."),
    ("#/c/yard", "The first one comes when the gate has enough samples"),
    ("#/c/yard", "No samples yet."),
    ("#/c/yard", "Entropy is drawn once devices send samples or reports."),
    ("#/c/yard/devices", "cema device add NAME --cohort yard"),
    ("#/c/yard/acts", "Nobody has acted yet."),
    ("#/c/yard/d/nobody", "no such device"),
    ("#/c/other", 'This token sees no cohort "other".'),
    ("#/nothing", "The address names no view."),
]


def test_where_nothing_is_yet_it_says_what_to_do(browse: Browse, scene: Scene) -> None:
    scene.versions = 0
    scene.devices = 0
    page = browse()
    for view, told in NOTHING_YET:
        page.evaluate("view => { location.hash = view }", view)
        page.get_by_text(told).first.wait_for()
    assert page.complaints == [
        "Failed to load resource: the server responded with a status of 404 (Not Found)"
    ]
    page.complaints.clear()


def test_a_private_cohort_shows_labels_and_asks_for_no_image(
    browse: Browse, scene: Scene, server: PageServer
) -> None:
    scene.private = True
    page = browse("#/c/yard")
    page.get_by_text("This cohort is private").wait_for()
    assert page.locator(".tile").count() == 60
    assert page.locator(".tile img").count() == 0
    assert not [path for path in server.requests if path.endswith("/image")]


def test_text_from_outside_is_shown_as_text(browse: Browse, scene: Scene) -> None:
    acted(scene)
    scene.hostile = True
    page = browse()
    page.wait_for_function(SETTLED)
    assert page.locator("article h2").first.inner_text() == "tunnel" + HOSTILE
    name = page.evaluate("text => encodeURIComponent(text)", "yard" + HOSTILE)
    device = page.evaluate("text => encodeURIComponent(text)", "camera-0023" + HOSTILE)
    for part in ("", "/devices", f"/d/{device}", "/acts"):
        go(page, f"#/c/{name}{part}")
        assert HOSTILE in page.locator("main").inner_text(), part
        assert page.locator("main img[src=x], main script").count() == 0
        assert page.evaluate("window.attacked") is None
    go(page, f"#/c/{name}")
    page.get_by_role("button", name="Stop").click()
    page.get_by_label("Type", exact=False).fill("yard" + HOSTILE)
    page.get_by_role("dialog").get_by_role("button", name="Stop").click()
    page.get_by_text("is written down").first.wait_for()
    assert page.evaluate("window.attacked") is None


def test_signing_in_by_hand_and_by_a_link(browse: Browse, scene: Scene) -> None:
    scene.signed_in = False
    page = browse()
    page.get_by_role("heading", name="Sign in").wait_for()
    assert not inaccessible(page)
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("This cloud does not know the token.").wait_for()
    page.get_by_text("Paste all of it.").wait_for()
    page.get_by_label("Token").fill(TOKEN)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Cohorts").wait_for()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("heading", name="Sign in").wait_for()
    other = browse(f"#sign-in={TOKEN}")
    other.get_by_role("heading", name="Cohorts").wait_for()
    assert other.evaluate("location.hash") == "#/"
    assert TOKEN not in other.evaluate("JSON.stringify(localStorage) + document.documentElement.outerHTML")
    # The browser reports each answer of 401.
    assert all("401" in text for text in [*page.complaints, *other.complaints])
    page.complaints.clear()
    other.complaints.clear()


def test_the_theme_is_chosen_kept_and_drawn(browse: Browse) -> None:
    page = browse()
    page.wait_for_function(SETTLED)
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    picture = "document.querySelector('canvas').getContext('2d').getImageData(0, 0, 400, 300)"
    pixel = f"[...{picture}.data].reduce((a, b) => a + b)"
    drawn = page.evaluate(pixel)
    page.get_by_label("Theme").select_option("dark")
    assert page.evaluate(ground) != light
    page.wait_for_function(f"() => ({pixel}) !== {drawn}")
    page.reload()
    page.wait_for_selector("main h1")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
