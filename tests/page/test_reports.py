"""Reports are one file, show their blocks in a browser without a server, and hold hostile text as text."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import complaints
from hypothesis import given, settings
from hypothesis import strategies as st
from page_scene import HOSTILE

from cema.page import reports
from cema.page.assets import assets
from cema.page.reports import report_html, write_report

COUNT = 400
SERIES: dict[str, Any] = {
    "kind": "series",
    "title": "Rolling accuracy",
    "x": {"name": "images"},
    "y": {"name": "accuracy", "share": True},
    "at": list(range(0, COUNT * 50, 50)),
    "lines": [
        {
            "name": "Adapted",
            "values": [0.8 - 0.3 * (k % 100 < 10) for k in range(COUNT)],
            "style": "main",
            "low": [0.75] * COUNT,
            "high": [0.85] * COUNT,
        },
        {"name": "Frozen", "values": [0.8 - 0.4 * (k > 100) for k in range(COUNT)], "style": "other"},
    ],
    "versions": [{"at": 5600, "version": 1}, {"at": 10_500, "version": 2}],
    "domains": [{"at": 0, "name": "clean"}, {"at": 5000, "name": "fog"}, {"at": 10_000, "name": "dust"}],
}
BLOCKS: list[dict[str, Any]] = [
    {"kind": "text", "text": ["Two devices on a stream that drifts.", "Numbers are on the whole stream."]},
    {
        "kind": "facts",
        "facts": [
            {"name": "Adapted", "value": "78.2 %", "note": "± 0.4"},
            {"name": "Images", "value": 20_000},
        ],
    },
    SERIES,
    {
        "kind": "bars",
        "title": "Methods",
        "y": {"name": "accuracy", "share": True},
        "bars": [
            {"name": "CEMA", "value": 0.78, "low": 0.76, "high": 0.8, "main": True},
            {"name": "source", "value": 0.55},
        ],
    },
    {
        "kind": "table",
        "title": "Devices",
        "columns": [{"name": "device"}, {"name": "images", "digits": 0}],
        "rows": [["b", 2], ["a", 10], ["c", None]],
    },
    {"kind": "of a newer CEMA", "title": "Not known here"},
]


class Elements(HTMLParser):
    """Counts the elements of a page, and keeps the text of its data."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts = 0
        self.elements = 0
        self.data = ""
        self._inside = False

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements += 1
        self.scripts += tag == "script"
        self._inside = ("id", "data") in attrs

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.data += data

    def handle_endtag(self, tag: str) -> None:
        self._inside = False


def parsed(content: bytes) -> Elements:
    elements = Elements()
    elements.feed(content.decode())
    elements.close()
    return elements


PLAIN = parsed(report_html("title", [{"kind": "text", "text": "text"}]))
PIECES = st.sampled_from(
    ["</script>", "<!--", "-->", "<script>", "{{data}}", "{{entry}}", "&lt;", "\u2028", "]]>", '"', "\\", "'"]
)
TEXTS = st.lists(PIECES | st.text(st.characters(exclude_categories=["Cs"])), max_size=6).map("".join)


@settings(max_examples=150, deadline=None)
@given(title=TEXTS, text=TEXTS)
def test_no_text_changes_the_elements_of_a_report_and_all_of_it_comes_back(title: str, text: str) -> None:
    found = parsed(report_html(title, [{"kind": "text", "text": text}]))
    assert (found.scripts, found.elements) == (PLAIN.scripts, PLAIN.elements)
    assert json.loads(found.data) == {"title": title, "blocks": [{"kind": "text", "text": text}]}


def test_what_is_not_known_must_be_null() -> None:
    with pytest.raises(ValueError, match="JSON"):
        report_html("title", [{"kind": "facts", "facts": [{"name": "a", "value": float("nan")}]}])


def test_a_report_holds_every_module_that_it_needs() -> None:
    held = {assets()[name].bare_name for name in reports._MODULES}
    for name in reports._MODULES:
        text = assets()[name].body.decode()
        needed = {
            line.split('"')[1] for line in text.splitlines() if line.startswith("import ") and '"' in line
        }
        assert needed <= held, name


def opened(chromium: Any, path: Path, look: str = "light") -> Any:
    page = chromium.new_page(color_scheme=look, viewport={"width": 1100, "height": 900})
    page.reported = complaints(page)
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("main h1")
    return page


def test_a_report_opens_from_a_file_and_asks_for_nothing_else(
    chromium: Any, tmp_path: Path, shots: Path | None
) -> None:
    write_report(tmp_path / "report.html", "Demo", BLOCKS)
    page = opened(chromium, tmp_path / "report.html")
    assert page.locator("h1").inner_text() == "Demo"
    assert page.locator("h2").all_inner_texts() == ["Rolling accuracy", "Methods", "Devices"]
    assert page.locator(".chart canvas").count() == 1
    assert page.locator(".chart .legend b").all_inner_texts()[:2] == ["80.0\u202f%", "40.0\u202f%"]
    assert page.locator("table.bars td.number").all_inner_texts() == [
        "78.0\u202f%\n76.0\u202f% to 80.0\u202f%",
        "55.0\u202f%",
    ]
    rows = page.locator("table.sorted tbody tr td:first-child")
    page.get_by_role("button", name="images").click()
    assert rows.all_inner_texts() == ["a", "b", "c"]
    page.get_by_role("button", name="device").click()
    assert rows.all_inner_texts() == ["a", "b", "c"]
    page.get_by_role("button", name="device").click()
    assert rows.all_inner_texts() == ["c", "b", "a"]
    assert page.reported == []
    assert [url for url in page.asked if not url.startswith("data:")] == [(tmp_path / "report.html").as_uri()]
    if shots:
        page.screenshot(path=str(shots / "report.png"), full_page=True)
    page.close()


def test_hostile_text_in_a_report_is_shown_as_text(chromium: Any, tmp_path: Path) -> None:
    def hostile(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                name: inner if name in {"kind", "style"} else hostile(inner) for name, inner in value.items()
            }
        if isinstance(value, list):
            return [hostile(inner) for inner in value]
        return value + HOSTILE + "</script>" if isinstance(value, str) else value

    write_report(tmp_path / "report.html", "Demo" + HOSTILE, hostile(BLOCKS))
    page = opened(chromium, tmp_path / "report.html", "dark")
    assert page.locator("h1").inner_text() == "Demo" + HOSTILE
    assert page.evaluate("window.attacked") is None
    assert page.locator("main img").count() == 0
    assert page.reported == []
    page.close()


def test_a_hundred_thousand_points_are_thinned_and_keep_their_extremes(chromium: Any, tmp_path: Path) -> None:
    values = [0.7] * 100_000
    values[77_777] = 0.05
    series = {
        "kind": "series",
        "y": {"share": True},
        "at": list(range(100_000)),
        "lines": [{"name": "Accuracy", "values": values}],
    }
    write_report(tmp_path / "report.html", "Long", [series])
    page = opened(chromium, tmp_path / "report.html")
    page.get_by_text("Show as a table").click()
    assert page.locator(".as-table tbody tr").count() <= 50
    assert "lowest 5.0\u202f%" in page.locator("figcaption .unseen").inner_text()
    assert page.reported == []
    page.close()
