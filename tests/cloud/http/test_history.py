"""What the server sees is added up over time, and read by operators."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from bundle_offer import migrated, sha256
from cloud_client import Cloud, auth
from cloud_support import StillEngine, make_samples, serving, write_config

from cema.cloud.config import CloudConfig
from cema.cloud.http.history import bin_width
from cema.cloud.http.history_noted import HistoryNotes
from cema.cloud.http.reports_noted import MOST_IMAGES, report_measures
from cema.cloud.store.history import MOST_MEASURES, DomainChange, HistoryNote
from cema.cloud.store.reports import DeviceReports, Reported
from cema.cloud.store.sqlite import SqliteStore
from cema.formats.draw import HEADER, Draw, encode_draws
from cema.formats.report import DeviceReport, Served, encode_report
from cema.formats.sample import CONTENT_TYPE, encode_samples


def sums(told: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Return the sums of each measure of an answer."""
    return {
        name: tuple(sum(one for one in columns[part] if one is not None) for part in ("count", "total"))  # type: ignore[misc]
        for name, columns in told["measures"].items()
    }


def read(cloud: Cloud, **query: float) -> dict[str, Any]:
    told: dict[str, Any] = cloud.http.get(
        "/v1/cohorts/north/history", params=query, headers=auth(cloud.operator)
    ).json()
    return told


def report(number: int, boot: str = "a", **more: Any) -> DeviceReport:
    return DeviceReport(boot=boot * 16, number=number, serving=Served(version=0), **more)


def test_traffic_samples_and_reports_are_in_the_history_after_the_end(tmp_path: Path) -> None:
    config = CloudConfig.load(write_config(tmp_path))
    engine = StillEngine(config)
    token = engine.devices.add("cam", cohort="north")
    operator = engine.devices.add("ops", cohort=None, role="operator")
    samples = make_samples(4)
    frame = encode_samples(samples)
    north = "/v1/cohorts/north"
    started = time.time()
    _, files = migrated(engine)
    with serving(engine) as url, httpx2.Client(base_url=url, headers=auth(token)) as http:
        headers = {"Content-Type": CONTENT_TYPE}
        drawn = {HEADER: encode_draws({1: Draw(0.1, False), 2: Draw(0.1, True)})}
        for more in (drawn, drawn):  # sent again, nothing is new
            assert http.post(f"{north}/samples", content=frame, headers=headers | more).status_code == 200
        assert http.post(f"{north}/samples", content=b"garbage", headers=headers).status_code == 400
        for number, selected in ((1, 10), (2, 14), (3, 19)):
            told = report(
                number,
                selection={"selected": selected, "below": 5 * selected},
                thresholds={"low": 0.25, "high": 1.5},
            )
            assert http.post(f"{north}/reports", content=encode_report(told)).status_code == 204
            engine_write(engine, number)
        norm = files["norm.bin"]
        found = http.get(f"{north}/bundles/{sha256(norm)}", headers={"Range": "bytes=1-2"})
        assert found.status_code == 206
        assert http.get(f"{north}/bundles/{sha256(norm)}").status_code == 200
        answer = http.get(f"{north}/history", headers=auth(operator))
        assert answer.headers["cache-control"] == "no-store"
    with closing(config.open_store()) as store:
        assert isinstance(store, SqliteStore)
        bins = store.history("north", started - 10, time.time() + 10, 86_400)
    measures = {name: pair for each in bins for name, pair in each.measures.items()}
    chosen = [samples[i].entropy for i in (0, 2, 3)]
    assert measures.pop("entropy") == (3, pytest.approx(sum(chosen)))
    assert measures.pop("samples") == (4, 4)
    assert measures.pop("bytes.up") == (3, 2 * len(frame) + len(b"garbage"))
    assert measures.pop("bytes.down") == (2, 2 + len(norm))
    assert measures.pop("threshold.low")[1] / 3 == 0.25
    assert measures.pop("threshold.high") == (3, 4.5)
    assert measures == {"selection.selected": (9, 9), "selection.below": (45, 45)}


def engine_write(engine: StillEngine, number: int) -> None:
    """Wait until a report is in the store, so that the next one is another."""
    assert isinstance(engine.store, SqliteStore)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        known = engine.store.reports(["cam"]).get("cam")
        if known is not None and known.report.number == number:
            return
        time.sleep(0.02)
    raise AssertionError("the report was not written")


def test_the_history_is_told_by_columns(cloud: Cloud) -> None:
    store = cloud.store
    assert isinstance(store, SqliteStore)
    now = int(time.time()) // 60 * 60
    store.note_history(
        [
            HistoryNote("north", now - 120, {"agreement.source": (4, 2), "loss.kl": (1, 0.5)}),
            HistoryNote("north", now - 60, {"agreement.source": (8, 6)}),
            HistoryNote("south", now - 60, {"agreement.source": (1, 1)}),
        ],
        [DomainChange("north", now - 90, 2.5), DomainChange("north", now - 80)],
    )
    cloud.publish(1, b"one", trace={"kind": "rollback", "published_at": now - 100})
    told = read(cloud, since=now - 600, until=now, points=10)
    assert (told["cohort"], told["since"], told["until"], told["seconds"]) == ("north", now - 600, now, 60)
    assert told["at"] == [now - 120, now - 60]
    assert told["measures"] == {
        "agreement.source": {"count": [4, 8], "total": [2, 6]},
        "loss.kl": {"count": [1, None], "total": [0.5, None]},
    }
    assert told["versions"] == [{"version": 1, "at": now - 100, "kind": "rollback"}]
    assert told["domains"] == [{"at": now - 90, "distance": 2.5}, {"at": now - 80, "distance": None}]
    (wide,) = read(cloud, since=0, until=now, points=1)["measures"]["agreement.source"]["count"]
    assert wide == 12
    assert read(cloud, since=0, until=5) | {"seconds": 0} == {
        "cohort": "north", "since": 0, "until": 5, "seconds": 0, "at": [], "measures": {},
        "versions": [], "domains": [],
    }  # fmt: skip
    day = read(cloud)
    assert day["until"] - day["since"] == 86_400
    assert day["until"] == pytest.approx(time.time(), abs=60)


def test_true_labels_from_outside_are_added(cloud: Cloud) -> None:
    body = msgspec.json.encode({"measures": {"labelled.adapted": [8, 6], "labelled.frozen": [8, 2.5]}})
    where = "/v1/cohorts/north/measures"
    for _ in range(3):
        assert cloud.http.post(where, content=body, headers=auth(cloud.admin)).status_code == 204
    refused = cloud.http.post(where, content=body, headers=auth(cloud.operator))
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_an_administrator")
    assert sums(read(cloud)) == {"labelled.adapted": (24, 18), "labelled.frozen": (24, 7.5)}


def test_an_answer_holds_no_more_measures_than_a_bin(cloud: Cloud) -> None:
    store = cloud.store
    assert isinstance(store, SqliteStore)
    now = int(time.time())
    notes = [HistoryNote("north", now - 10 * bin, {"samples": (1, 1)}) for bin in range(1, 60)]
    notes += [
        HistoryNote(
            "north", now - 10 * bin, {f"labelled.{bin}-{i}": (1, 1) for i in range(MOST_MEASURES - 1)}
        )
        for bin in range(1, 60)
    ]
    store.note_history(notes)
    told = read(cloud)["measures"]
    assert len(told) == MOST_MEASURES
    assert sum(count or 0 for count in told["samples"]["count"]) == 59


def test_a_width_is_one_that_is_kept() -> None:
    for span in (60, 3600, 86_400, 31 * 86_400, 10**9):
        for points in (1, 30, 300, 2000):
            for age in (0, 3000, 7200, 30 * 86_400):
                width = bin_width(span, points, age)
                assert width % 10 == 0
                assert span / width <= points
                assert age <= 3600 or width >= 60
                assert age <= 25 * 3600 or width >= 900


def test_reports_of_one_start_are_compared() -> None:
    def told(known: DeviceReport | None, now: DeviceReport, cohort: str = "north") -> dict[str, Any]:
        before = {} if known is None else {"cam": DeviceReports("cam", cohort, 1.0, 1, 0, known)}
        return dict(report_measures(Reported("north", "cam", 2.0, now), before))

    first = report(1, selection={"selected": 5, "below": 7})
    second = report(
        2, selection={"selected": 8, "below": 7, "no_such": 4}, thresholds={"low": 0.1, "high": 0.9}
    )
    thresholds = {"threshold.low": (1, 0.1), "threshold.high": (1, 0.9)}
    assert told(first, second) == {"selection.selected": (3, 3)} | thresholds
    assert told(None, second) == thresholds, "how much of it is new nobody knows"
    assert told(report(1, "b", selection={"selected": 5}), second) == thresholds
    assert told(first, second, "south") == thresholds
    assert told(second, first) == {}, "it was overtaken"
    assert told(report(1), second) == thresholds, "an older program said nothing"
    assert told(first, report(2, selection={"selected": 5 + MOST_IMAGES + 1, "below": 3})) == {}
    assert told(None, report(1, thresholds={"low": -1.0, "high": 1e9})) == {}


class Kept:
    """A store that keeps what it is given."""

    def __init__(self) -> None:
        self.notes: list[HistoryNote] = []

    def note_history(self, notes: list[HistoryNote], changes: object = ()) -> None:
        self.notes += notes

    def history(self) -> None:
        raise NotImplementedError

    domain_changes = published = fetched = history


def test_many_threads_add_and_nothing_is_lost() -> None:
    kept = Kept()
    notes = HistoryNotes(kept)  # type: ignore[arg-type]
    start = threading.Barrier(5)

    def add() -> None:
        start.wait(20)
        for _ in range(500):
            notes.add("north", {"samples": (1, 2)})

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    start.wait(20)
    for _ in range(20):
        notes.write()
    for thread in threads:
        thread.join(20)
    notes.write()
    found = [note.measures["samples"] for note in kept.notes]
    assert (sum(one[0] for one in found), sum(one[1] for one in found)) == (2000, 4000)
