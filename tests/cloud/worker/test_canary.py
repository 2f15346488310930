"""What canary devices' reports make of a version."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cema._util.proportion import proportion
from cema.cloud.rollout_config import RolloutConfig, StopConfig
from cema.cloud.store.offers import Rollout
from cema.cloud.store.reports import DeviceReports
from cema.cloud.worker.canary import Judgement, by_hash, canaries, judge
from cema.formats.report import DeviceReport, Refused, Served

DEVICES = ("a", "b", "c", "d")
CONFIG = RolloutConfig(mode="canary", wait=100.0, least=64)


def told(device: str, version: int = 5, refused: Refused | None = None, **served: float) -> DeviceReports:
    serving = Served(version=version, **({"predicted": 100, "entropy": 0.5} | served))  # type: ignore[arg-type]
    report = DeviceReport(boot="0" * 16, number=1, serving=serving, refused=refused)
    return DeviceReports(device, "north", 50.0, 1, 0, report)


def judged(
    *reports: DeviceReports,
    now: float = 200.0,
    config: RolloutConfig = CONFIG,
    agreement: dict[str, tuple[int, int]] | None = None,
    before: tuple[int, int] | None = (1000, 900),
    ran: dict[str, int | None] | None = None,
    devices: tuple[str, ...] = DEVICES,
) -> Judgement:
    rollout = Rollout(
        version=5, mode="canary", began=0.0, before=4, devices=devices, needed=len(devices),
        entropy=dict.fromkeys(devices, 0.5), agreement=agreement or {},
    )  # fmt: skip
    return judge(
        rollout,
        config,
        reports={each.device: each for each in reports},
        ran=ran or {},
        before=proportion(*before) if before else None,
        now=now,
    )


def test_it_is_released_once_half_of_them_have_done_well_for_long_enough() -> None:
    well = told("a"), told("b")
    assert judged(*well) == Judgement("release", ("a", "b"), {})
    assert judged(*well, now=99.0).decision == "wait"
    assert judged(*well, now=-5.0).decision == "release", "a clock that was set back keeps nobody waiting"
    assert judged(told("a")).decision == "wait", "one of four is too few"
    assert judged(told("a"), told("b", predicted=63)).decision == "wait", "too few images"
    assert judged(told("a"), told("b", version=4)).decision == "wait", "it runs the version before"
    assert judged().decision == "wait"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (told("c", guarded=51), "guarded 51% of 100 images"),
        (told("c", entropy=0.76), "mean entropy 0.76 nats, 0.50 before"),
        (
            told("c", version=4, refused=Refused(version=5, reason="golden_mismatch")),
            "refused it: golden_mismatch",
        ),
    ],
)
def test_one_device_of_four_that_does_badly_spoils_it(bad: DeviceReports, reason: str) -> None:
    found = judged(told("a"), told("b"), bad, now=10.0)
    assert (found.decision, found.reasons) == ("take_back", {"c": reason})


def test_what_is_within_bounds_spoils_nothing() -> None:
    fine = told("c", guarded=50), told("c", entropy=0.75), told("c", refused=Refused(version=4, reason="old"))
    for each in fine:
        assert judged(told("a"), told("b"), each).decision == "release"
    off = RolloutConfig(
        mode="canary", wait=100.0, stop_if=StopConfig(guarded=1.0, entropy=0.0, agreement=1.0, refused=False)
    )
    bad = told("c", guarded=100, refused=Refused(version=5, reason="old"))
    assert (
        judged(told("a"), told("b", entropy=9.0), bad, config=off, agreement={"a": (99, 0)}).decision
        == "release"
    )


def test_agreement_spoils_it_only_where_chance_does_not_explain_it() -> None:
    well = told("a"), told("b")
    assert judged(*well, agreement={"a": (100, 60)}).reasons == {
        "a": "agreement 60% of 100 samples, 90% before"
    }
    assert judged(*well, agreement={"a": (15, 0)}).decision == "release", "too few samples"
    assert judged(*well, agreement={"a": (100, 82)}).decision == "release", "less than 10 points"
    assert judged(*well, agreement={"a": (40, 31)}, before=(100, 90)).decision == "release", (
        "the intervals meet"
    )
    assert judged(*well, agreement={"a": (100, 0)}, before=None).decision == "release", (
        "nothing to compare with"
    )


def test_one_hostile_device_among_many_does_not_hold_all_others_up() -> None:
    many = tuple(f"d{i}" for i in range(10))
    reports = [told(name) for name in many[1:]]
    hostile = told("d0", guarded=100)
    assert judged(hostile, *reports, devices=many).decision == "release"
    second = told("d1", entropy=2.0)
    assert judged(hostile, second, *reports[1:], devices=many).decision == "take_back"


def test_devices_that_report_nothing_count_by_their_samples() -> None:
    ran: dict[str, int | None] = {"a": 5, "b": 5, "c": 4}
    assert judged(agreement={"a": (3, 3), "b": (1, 1)}, ran=ran).heard == ("a", "b")
    assert judged(ran=ran).heard == (), "a version that a sample names is nothing without a sample since"


@given(st.sets(st.text("abc123", min_size=1), max_size=30), st.floats(0.01, 1.0))
def test_the_same_devices_are_chosen_each_time(names: set[str], share: float) -> None:
    chosen = canaries("north", names, share)
    assert set(chosen) <= names
    assert len(chosen) >= min(1, len(names))
    assert share * len(names) <= len(chosen) < share * len(names) + 1
    assert chosen == canaries("north", sorted(names, reverse=True), share)
    assert by_hash("north", names) == by_hash("north", reversed(by_hash("north", names)))
    # Nobody leaves because others come.
    assert set(canaries("north", names - set(chosen[-1:]), share)) >= set(chosen[:-1][: len(chosen) - 2])
