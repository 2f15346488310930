"""What a device tells the cloud of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from edge_device import Device
from edge_support import Answer, Cloud, FakeTime, images, make_update

from cema.edge.agent import EdgeAgent
from cema.edge.config import EdgeConfig
from cema.edge.serving import ServingLog
from cema.formats.bundle import Bundle
from cema.formats.report import DeviceReport, Refused, Served, decode_report, encode_report
from cema.ondevice.selection.config import SelectionConfig

Make = Callable[..., EdgeConfig]


@pytest.fixture
def device(bundle: Bundle, cloud: Cloud, quick_path: Path) -> Iterator[Device]:
    device = Device(bundle, cloud, quick_path / "device", FakeTime())
    yield device
    device.stop()


def test_each_version_is_counted_apart() -> None:
    log = ServingLog(0)
    log.note(0, np.array([1.0, 2.0]), guarded=False)
    log.installed(4)
    log.note(4, np.array([0.5]), guarded=False)
    log.note(4, np.array([9.0, 9.0]), guarded=True)
    log.note(0, np.array([6.0]), guarded=False)  # a call that began before the swap
    log.note(3, np.array([6.0]), guarded=False)  # long gone
    log.installed(4)
    assert log.read() == (
        Served(version=4, predicted=3, guarded=2, entropy=0.5),
        Served(version=0, predicted=3, entropy=3.0),
    )
    log.installed(5)
    assert log.read() == (Served(version=5), Served(version=4, predicted=3, guarded=2, entropy=0.5))


def test_a_report_goes_with_the_first_poll_and_then_once_a_minute(device: Device, cloud: Cloud) -> None:
    assert cloud.reports is not None
    device.poll()
    device.poll(5)
    assert [report.number for report in cloud.reports] == [1]
    device.time.seconds += 60
    device.poll()
    assert [report.number for report in cloud.reports] == [1, 2]
    assert len({report.boot for report in cloud.reports}) == 1
    device.restart()
    device.poll()
    assert (cloud.reports[-1].number, len({report.boot for report in cloud.reports})) == (1, 2)


def test_another_version_and_a_refusal_are_reported_with_the_next_poll(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey
) -> None:
    assert cloud.reports is not None
    device.poll()
    cloud.publish(make_update(bundle, key, 3))
    device.poll(2)
    assert [report.serving.version for report in cloud.reports] == [0, 3]
    stranger = Ed25519PrivateKey.from_private_bytes(bytes(32))
    cloud.publish(make_update(bundle, stranger, 4))
    device.poll(3)
    assert cloud.reports[2].refused == Refused(version=4, reason="unknown_key")
    assert (len(cloud.reports), cloud.reports[2].serving.version) == (3, 3)


def test_reports_that_are_lost_leave_a_gap_and_hold_nothing_up(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cloud.reports is not None
    device.poll()
    url, device.link._url = device.link._url, "http://127.0.0.1:9"
    device.poll(2)
    device.time.seconds += 60
    device.poll(2)
    device.link._url = url
    cloud.publish(make_update(bundle, key, 3))
    device.time.seconds += 60
    device.poll(2)
    numbers = [report.number for report in cloud.reports]
    assert numbers[0] == 1
    assert numbers[1] >= 3, "the number tells that one was lost"
    assert device.active.version == 3


def test_a_cloud_that_takes_none_is_asked_again_in_an_hour(device: Device, cloud: Cloud) -> None:
    cloud.reports = None
    device.poll()
    cloud.reports = []
    device.time.seconds += 3000
    device.poll()
    assert cloud.reports == []
    device.time.seconds += 700
    device.poll()
    assert [report.number for report in cloud.reports] == [2]


def test_none_are_sent_where_they_are_switched_off(bundle: Bundle, cloud: Cloud, quick_path: Path) -> None:
    device = Device(bundle, cloud, quick_path / "device", FakeTime(), report_seconds=0.0)
    device.poll(3)
    device.stop()
    assert cloud.reports == []


def test_an_agent_reports_what_it_predicted(make_config: Make, cloud: Cloud) -> None:
    assert cloud.reports is not None
    with EdgeAgent(make_config(cloud)) as agent:
        prediction = agent.predict(images(20, 3))
        assert agent._facts().serving == Served(
            version=0, predicted=20, entropy=float(prediction.entropy.sum()) / 20
        )
        assert agent._facts().counts["predicted"] == 20
        cloud.script.append(Answer())
        assert cloud.wait_for(lambda: bool(cloud.reports))
    assert cloud.reports[0].counts.keys() == agent._facts().counts.keys()


def test_an_agent_reports_what_its_selection_made_of_images_and_its_thresholds(make_config: Make) -> None:
    config = make_config()
    with EdgeAgent(config) as agent:
        prediction = agent.predict(images(64, 3))
        facts, status = agent._facts(), agent.status()
        assert facts.thresholds == {"low": status.selection["e_min"], "high": status.selection["e_max"]}
        below = int((prediction.entropy <= facts.thresholds["low"]).sum())
        assert facts.selection["selected"] == int(prediction.selected.sum())
        assert facts.selection.get("below", 0) == below
        assert sum(facts.selection.values()) == 64
        first = dict(facts.selection)
    with EdgeAgent(config) as agent:  # over restarts
        agent.predict(images(10, 4))
        assert sum(agent._facts().selection.values()) == 74
        assert all(agent._facts().selection[name] >= number for name, number in first.items())


class Silent:
    """A rule that selects nothing and does not say why."""

    def __init__(self, classes: int) -> None:
        self.calls = 0

    def select(self, logits: np.ndarray, entropy: np.ndarray) -> np.ndarray:
        self.calls += len(entropy)
        return np.zeros(len(entropy), bool)

    def state(self) -> dict[str, int]:
        return {"calls": self.calls}

    def load_state(self, state: Mapping[str, int]) -> None:
        self.calls = state["calls"]

    def describe(self) -> dict[str, float]:
        return {"calls": float(self.calls)}


class Moody(Silent):
    """One that says odd things of it."""

    def left_out(self) -> dict[str, int]:
        return {"I did not like it!": 3, "below": 2}


class Endless(Silent):
    """One with a threshold that JSON has no number for."""

    def describe(self) -> dict[str, float]:
        return {"e_min": 0.25, "e_max": np.inf}


def test_a_threshold_that_is_no_number_is_left_out_of_a_report(make_config: Make) -> None:
    rule = SelectionConfig(rule=f"{__name__}:Endless")
    with EdgeAgent(msgspec.structs.replace(make_config(), selection=rule)) as agent:
        agent.predict(images(5, 3))
        thresholds = dict(agent._facts().thresholds)
    report = DeviceReport(boot="0" * 16, number=1, serving=Served(version=0), thresholds=thresholds)
    assert decode_report(encode_report(report)).thresholds == {"low": 0.25}


@pytest.mark.parametrize(
    ("name", "expected"), [("Moody", {"below": 2, "other": 3}), ("Silent", {"other": 5})]
)
def test_what_a_rule_of_one_s_own_says_fits_in_a_report(
    make_config: Make, name: str, expected: dict[str, int]
) -> None:
    rule = SelectionConfig(rule=f"{__name__}:{name}")
    config = msgspec.structs.replace(make_config(), selection=rule)
    with EdgeAgent(config) as agent:
        agent.predict(images(5, 3))
        facts = agent._facts()
        assert (dict(facts.selection), dict(facts.thresholds)) == (expected, {})
        report = DeviceReport(boot="0" * 16, number=1, serving=facts.serving, selection=dict(facts.selection))
        assert decode_report(encode_report(report)) == report
