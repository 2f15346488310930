"""Acts ask before they are sent, say what will happen to how many devices, and tell what came of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from browser import inaccessible
from page_scene import Scene

Browse = Callable[..., Any]
INSIDE = "[document.body, ...document.querySelectorAll('dialog *')].includes(document.activeElement)"
SETTLED = "() => !document.querySelector('.loading') && document.querySelector('main h1')"


def test_a_roll_back_says_what_it_does_and_what_came_of_it(browse: Browse, scene: Scene) -> None:
    page = browse("#/c/yard")
    page.wait_for_function(SETTLED)
    page.get_by_role("button", name="Roll back", exact=True).click()
    dialog = page.get_by_role("dialog", name="Roll back")
    dialog.get_by_label("Version").select_option("9")
    assert dialog.locator(".sentence").inner_text() == (
        "This gives all 120 devices of yard the content of v9 under a new number, "
        "and learning begins anew at the source models."
    )
    assert not inaccessible(page)
    dialog.get_by_role("button", name="Roll back").click()
    dialog.get_by_text("Act 1 is written down.").wait_for()
    dialog.get_by_text("Done: v15").wait_for()
    assert [act["act"] for act in scene.acts] == [{"type": "rollback", "to": 9}]
    dialog.get_by_role("button", name="Close").click()
    assert page.get_by_role("dialog").count() == 0


def test_what_the_cloud_refuses_is_told_with_its_remedy(browse: Browse, scene: Scene) -> None:
    page = browse("#/c/yard")
    page.wait_for_function(SETTLED)
    page.get_by_role("button", name="Pin", exact=True).click()
    dialog = page.get_by_role("dialog", name="Pin a version")
    dialog.get_by_label("Version").select_option("1")
    dialog.get_by_role("button", name="Pin").click()
    refused = dialog.get_by_role("alert")
    assert refused.inner_text().split("\n\n") == [
        "expected a version that is kept, got version 1",
        "choose one of those that versions lists",
    ]
    assert not scene.acts
    dialog.get_by_label("Version").select_option("3")
    dialog.get_by_role("button", name="Pin").click()
    dialog.get_by_text("is written down").wait_for()
    assert page.complaints == [
        "Failed to load resource: the server responded with a status of 409 (Conflict)"
    ]
    page.complaints.clear()


def test_stopping_and_deleting_want_the_cohorts_name(browse: Browse, scene: Scene) -> None:
    page = browse("#/c/yard")
    page.wait_for_function(SETTLED)
    page.get_by_role("button", name="Stop").click()
    dialog = page.get_by_role("dialog", name="Stop")
    send = dialog.get_by_role("button", name="Stop")
    send.click(force=True)
    dialog.get_by_label("Type yard to confirm").fill("Yard")
    send.click(force=True)
    assert not scene.acts
    assert send.get_attribute("title") == "Type yard first."
    dialog.get_by_label("Type yard to confirm").fill("yard")
    send.click()
    dialog.get_by_text("is written down").wait_for()
    assert [act["act"] for act in scene.acts] == [{"type": "stop"}]
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Delete data").click()
    dialog = page.get_by_role("dialog", name="Delete data")
    dialog.get_by_label("Those of one device").check()
    dialog.get_by_label("Device", exact=True).fill("camra-0007")
    dialog.get_by_text("This deletes 0 samples").wait_for()
    dialog.get_by_label("Type yard to confirm").fill("yard")
    send = dialog.get_by_role("button", name="Delete")
    assert send.get_attribute("title") == "No sample of camra-0007 is kept."
    send.click(force=True)
    assert not scene.deletions
    dialog.get_by_label("Device", exact=True).fill("camera-0007")
    dialog.get_by_text(
        "This deletes 431 samples (5.2\u202fMB) of 1 device, camera-0007, of yard for good"
    ).wait_for()
    dialog.get_by_label("Type yard to confirm").fill("yard")
    dialog.get_by_role("button", name="Delete").click()
    dialog.get_by_text("Deletion 1 is written down.").wait_for()
    assert scene.deletions[0]["filter"] == {"device": "camera-0007"}


def test_a_device_shows_its_pin_and_offers_to_end_only_that(browse: Browse, scene: Scene) -> None:
    scene.pinned = {"camera-0007": 9}
    page = browse("#/c/yard/d/camera-0007")
    page.get_by_text("pinned to v9").wait_for()
    assert page.get_by_role("button", name="End its pin").get_attribute("aria-disabled") is None
    page = browse("#/c/yard/d/camera-0008")
    page.wait_for_function(SETTLED)
    page.wait_for_function("() => document.querySelector('[title=\"It is not pinned.\"]')")
    assert page.get_by_text("pinned to").count() == 0


def test_acts_are_reached_and_left_with_the_keyboard(browse: Browse, scene: Scene) -> None:
    page = browse("#/c/yard")
    page.wait_for_function(SETTLED)
    reached = []
    page.evaluate("document.querySelector('main').focus()")
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "document.activeElement.innerText || document.activeElement.getAttribute('aria-label') || ''"
            )
        )
        if reached[-1] == "Delete data":
            break
    start = reached.index("Pause")
    assert reached[start : start + 7] == [
        "Pause",
        "Resume",
        "Canary share",
        "Roll back",
        "Pin",
        "Stop",
        "Delete data",
    ]
    page.get_by_role("button", name="Canary share").focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Share of canary devices")
    dialog.wait_for()
    for _ in range(12):
        page.keyboard.press("Tab")
        # Within the dialog, or in the browser's own bars: never in the page behind it.
        assert page.evaluate(INSIDE)
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    assert page.evaluate("document.activeElement.innerText") == "Canary share"
    page.keyboard.press("Enter")
    dialog.get_by_label("Share of the devices").fill("20")
    dialog.get_by_text("is tried by 20 % of the devices first, about 24 of 120.").wait_for()
    page.keyboard.press("Enter")
    dialog.get_by_text("is written down").wait_for()
    assert [act["act"] for act in scene.acts] == [{"type": "canary", "first": 0.2}]


def test_acts_on_a_device(browse: Browse, scene: Scene) -> None:
    scene.pinned = {"camera-0003": 9}
    page = browse("#/c/yard/d/camera-0003")
    page.wait_for_function(SETTLED)
    for button, send, told in (
        ("Quarantine", "Quarantine", "keeps samples of 1 device, camera-0003, out"),
        ("Release from quarantine", "Release", "learn from samples of 1 device, camera-0003, again"),
        ("Pin a version", "Pin", "gives 1 device, camera-0003, the content of v14"),
        ("End its pin", "End its pin", "gives 1 device, camera-0003, what all others"),
        ("Revoke", "Revoke", "ends the token of 1 device, camera-0003"),
    ):
        page.locator(f"section.acts button:not([aria-disabled]):text-is('{button}')").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_text(told).wait_for()
        dialog.get_by_role("button", name=send, exact=True).click()
        dialog.locator(".outcome").wait_for()
        dialog.get_by_role("button", name="Close").click()
    assert scene.device_acts == [
        ("camera-0003", {"type": kind}) for kind in ("quarantine", "release", "revoke")
    ]
    assert [act["act"] for act in scene.acts] == [
        {"type": "pin", "to": 14, "device": "camera-0003"},
        {"type": "resume", "device": "camera-0003"},
    ]
    page.get_by_text("Revoked").first.wait_for()


def test_operators_are_told_why_they_may_not_act(browse: Browse, scene: Scene) -> None:
    scene.role = "operator"
    page = browse("#/c/yard")
    page.wait_for_function(SETTLED)
    button = page.get_by_role("button", name="Stop")
    assert button.get_attribute("aria-disabled") == "true"
    button.click(force=True)
    assert page.get_by_role("dialog").count() == 0
    assert page.get_by_text("Only an admin may act. You are signed in as operator.").count() == 1


def test_acts_are_listed_with_who_when_and_what_came_of_it(browse: Browse, scene: Scene) -> None:
    scene.act("yard", {"type": "rollback", "to": 4})
    scene.acts[0]["actor"] = "os:root"
    page = browse("#/c/yard/acts")
    row = page.locator("table.record tbody tr").first
    row.wait_for()
    cells = [text.split("\n")[0] for text in row.locator("th, td").all_inner_texts()]
    assert cells[:3] == ["1", "Roll back to v4", "root (command line)"]
    assert cells[4].startswith("Done: v15")
