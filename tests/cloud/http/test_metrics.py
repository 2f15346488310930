"""The metrics: what is served, from when on, and what a scrape costs the store."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from cloud_client import Cloud, auth
from cloud_support import StillEngine, make_samples, serving, write_config
from prometheus_client.parser import text_string_to_metric_families

from cema._util.proportion import Weighted
from cema.cloud.config import CloudConfig
from cema.cloud.http.metrics import Metrics
from cema.cloud.http.metrics_list import METRICS
from cema.cloud.http.readiness import Readiness
from cema.cloud.store.activity import Poll
from cema.cloud.store.agreements import AgreementCount
from cema.cloud.store.base import Store
from cema.cloud.store.control import Pause
from cema.cloud.store.counts import COUNTERS, PREFIXES, series_of
from cema.cloud.store.devices import DeviceRegister
from cema.cloud.store.draws import RandomCount
from cema.cloud.store.fleet import Expire, NewDevice
from cema.cloud.store.offers import Offer, Rollout
from cema.cloud.store.reports import Reported
from cema.formats.report import DeviceReport, Served

DAY = 86_400.0


def scraped(cloud: Cloud) -> dict[str, float]:
    """Return every series by what it is written as."""
    text = cloud.get("/metrics", token=cloud.operator).text
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


def test_metrics_count_what_happened(cloud: Cloud) -> None:
    samples = make_samples(3)
    cloud.send(samples)
    cloud.send(samples[:1])
    cloud.store.count("north", {"updates.gated": 2, "steps.count": 5, "steps.seconds": 1.5})
    cloud.publish(1, b"payload")
    cloud.http.get("/no/such/place")
    response = cloud.get("/metrics", token=cloud.operator)
    assert response.status_code == 200
    values = dict(line.rsplit(" ", 1) for line in response.text.splitlines() if not line.startswith("#"))
    assert float(values['cema_samples_total{cohort="north",verdict="stored"}']) == 3
    assert float(values['cema_samples_total{cohort="north",verdict="duplicate"}']) == 1
    stored, again = (
        f'cema_image_bytes_total{{cohort="north",verdict="{v}"}}' for v in ("stored", "duplicate")
    )
    assert float(values[stored]) == sum(len(s.image) for s in samples)
    assert float(values[again]) == len(samples[0].image)
    assert float(values['cema_backlog_samples{cohort="north"}']) == 3
    assert float(values['cema_update_version{cohort="north"}']) == 1
    assert float(values['cema_updates_total{cohort="north",outcome="gated"}']) == 2
    assert float(values['cema_step_seconds_count{cohort="north"}']) == 5
    assert float(values['cema_step_seconds_sum{cohort="north"}']) == 1.5
    route = 'method="POST",route="/v1/cohorts/{cohort}/samples",status="200"'
    assert float(values[f"cema_http_request_seconds_count{{{route}}}"]) == 2
    assert 'route="unmatched",status="404"' in response.text


def test_the_metrics_that_are_served_are_those_that_are_described(cloud: Cloud) -> None:
    """docs/reference/metrics.md is made of the descriptions."""
    cloud.ready()
    cloud.send(make_samples(1))
    cloud.publish(1, b"payload")
    cloud.store.count("north", {f"{prefix}x": 1 for prefix in PREFIXES} | {"steps.count": 1})
    epoch, counts = cloud.store.claim("north").epoch, [AgreementCount(1, "running", 4, 3)]
    cloud.store.commit_step("north", 0, b"", epoch=epoch, now=1.0, measured=counts)
    at_random = [RandomCount(1, "running", Weighted.of([(0.5, True)]))]
    cloud.store.measured_draws("north", [], at_random, now=1.0)
    with cloud.store.database.write() as connection:
        connection.execute("UPDATE cohorts SET committed_at = 1.0")
    text = cloud.get("/metrics", token=cloud.operator).text
    served = {}
    for family in text_string_to_metric_families(text):
        labels = set().union(*(sample.labels for sample in family.samples)) - {"le"}
        if not family.name.endswith("_created"):  # when a histogram began: beside it in this format
            served[family.name] = (family.type, labels, family.documentation)
    expected = {metric.name: (metric.kind, set(metric.labels), metric.text) for metric in METRICS}
    assert {name: served.get(name) for name in expected} == expected
    assert served.keys() == expected.keys()


def test_invented_methods_are_one_label(cloud: Cloud) -> None:
    for i in range(5):
        cloud.http.request(f"BREW{i}", "/healthz")
    cloud.http.request("DELETE", "/healthz")
    text = cloud.get("/metrics", token=cloud.operator).text
    assert "BREW" not in text
    assert 'cema_http_request_seconds_count{method="other",route="/healthz",status="405"} 5.0' in text
    assert 'cema_http_request_seconds_count{method="DELETE",route="/healthz",status="405"} 1.0' in text


def test_two_applications_share_no_metrics(cloud: Cloud, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    other = StillEngine(CloudConfig.load(write_config(tmp_path / "second")))
    cloud.send(make_samples(1))
    token = other.devices.add("ops", cohort=None, role="operator")
    with serving(other) as url:
        text = httpx2.get(url + "/metrics", headers=auth(token)).text
    assert "POST" not in text


def test_status_and_metrics_tell_the_agreement_with_the_foundation_model(cloud: Cloud) -> None:
    assert cloud.get("/v1/cohorts/north/status").json()["agreement"] == {}
    counts = [AgreementCount(1, "running", 400, 360), AgreementCount(1, "source", 400, 200)]
    epoch = cloud.store.claim("north").epoch
    cloud.store.commit_step("north", 0, b"", epoch=epoch, now=time.time(), measured=counts)
    agreement = cloud.get("/v1/cohorts/north/status").json()["agreement"]
    assert list(agreement) == ["running", "source"]
    assert (agreement["running"]["share"], agreement["running"]["samples"]) == (0.9, 400)
    assert agreement["running"]["low"] < 0.9 < agreement["running"]["high"]
    text = cloud.get("/metrics", token=cloud.operator).text
    assert 'cema_agreement_share{cohort="north",model="source"} 0.5' in text
    assert 'cema_agreement_samples{cohort="north",model="running"} 400.0' in text
    assert 'cema_agreement_standard_error{cohort="north",model="running"} 0.015' in text


def test_every_series_of_a_counter_is_there_from_the_start(cloud: Cloud) -> None:
    """A rate over a series that appears with its first count does not see that count."""
    found = scraped(cloud)
    named = {metric.name: metric.labels for metric in METRICS}
    for series in COUNTERS.values():
        labels = {"cohort": "north"}
        if series.label is not None:
            (of,) = set(named[series.metric]) - {"cohort"}
            labels[of] = series.label
        written = ",".join(f'{name}="{value}"' for name, value in labels.items())
        assert found[f"{series.metric}_total{{{written}}}"] == 0
    assert found['cema_uploads_limited_total{cohort="south",limit="bytes_per_day"}'] == 0


def test_a_counter_of_another_store_is_told_too(cloud: Cloud) -> None:
    cloud.store.count("north", {"evicted.of_my_own": 3, "mine": 1})
    assert scraped(cloud)['cema_samples_evicted_total{cohort="north",reason="of_my_own"}'] == 3
    assert series_of("mine") is None


def test_samples_that_were_deleted_are_no_verdicts(cloud: Cloud) -> None:
    cloud.store.count("north", {"samples.deleted": 3, "samples.expired": 2, "samples.labelled": 4})
    found = scraped(cloud)
    assert found['cema_samples_evicted_total{cohort="north",reason="deleted"}'] == 3
    assert found['cema_samples_evicted_total{cohort="north",reason="expired"}'] == 2
    assert found['cema_labels_total{cohort="north"}'] == 4
    verdicts = {name for name in found if name.startswith('cema_samples_total{cohort="north"')}
    assert verdicts == {
        f'cema_samples_total{{cohort="north",verdict="{name}"}}' for name in ("stored", "duplicate")
    }


def test_devices_are_counted_by_how_they_are(cloud: Cloud) -> None:
    now = time.time()
    add = cloud.engine.devices.add_all
    add([NewDevice(f"d{i}", "north", "device", f"token {i}") for i in range(6)], now=now - 3 * DAY)
    cloud.engine.devices.act("d5", Expire(at=now - 1))
    cloud.engine.devices.act("d4", Expire(at=now + 13 * DAY))
    for version in (1, 2, 3):
        cloud.publish(version, b"payload %d" % version)
    seen = {"d0": 10.0, "d1": 7200.0, "d2": 20.0, "d3": 2 * DAY, "d5": 10.0}
    cloud.store.note_polls([Poll("north", name, now - ago, 3) for name, ago in seen.items()])
    reports = {
        "d0": (3, None),
        "d1": (2, "the disk is full"),
        "d2": (1, None),
        "d3": (0, "nobody asks"),
        "d5": (3, "x"),
    }
    for name, (version, problem) in reports.items():
        report = DeviceReport(
            boot="0" * 16,
            number=1,
            serving=Served(version=version, predicted=1),
            counts={"predicted": 100, "selected": 7, "invented": 5},
            problem=problem,
        )
        cloud.store.note_reports([Reported("north", name, now - seen[name], report)])
    found = {
        name.replace('cohort="north"', "").replace("{,", "{").replace("{}", ""): value
        for name, value in scraped(cloud).items()
        if 'cohort="north"' in name
    }
    # Beside those, `cam` was added just now and was not heard of; `d5` has no good token.
    assert found["cema_registered_devices"] == 6
    assert (found['cema_seen_devices{within="1h"}'], found['cema_seen_devices{within="1d"}']) == (2, 3)
    assert found["cema_silent_devices"] == 2  # d3, and d4, which never said anything
    assert found["cema_expiring_devices"] == 1
    assert found["cema_problem_devices"] == 1
    serving = {name: found[f'cema_serving_devices{{version="{name}"}}'] for name in SERVING}
    assert serving == {"newest": 1, "previous": 1, "older": 1, "source": 0, "unknown": 0}
    assert found['cema_reported_counts{count="predicted"}'] == 400
    assert found['cema_reported_counts{count="selected"}'] == 28
    assert not [name for name in found if "invented" in name or "d0" in name]


SERVING = ("newest", "previous", "older", "source", "unknown")


def test_what_a_device_said_of_another_cohort_says_nothing_of_the_version_here(cloud: Cloud) -> None:
    now = time.time()
    told = DeviceReport(boot="0" * 16, number=1, serving=Served(version=1, predicted=1))
    cloud.store.note_reports([Reported("south", "cam", now, told)])
    assert scraped(cloud)['cema_serving_devices{cohort="north",version="unknown"}'] == 1
    cloud.send(make_samples(1))
    assert scraped(cloud)['cema_serving_devices{cohort="north",version="source"}'] == 1


def test_a_worker_that_is_not_ready_and_what_waits_are_told(cloud: Cloud) -> None:
    found = scraped(cloud)
    assert found['cema_worker_ready{cohort="north"}'] == 0
    assert found['cema_backlog_age_seconds{cohort="north"}'] == 0
    assert 'cema_seconds_since_worker_report{cohort="north"}' not in found
    assert found["cema_backlog_max_samples"] == 20
    assert found["cema_store_max_bytes"] == 4_194_304
    cloud.store.put("north", make_samples(1), device="cam", now=time.time() - 60, max_backlog=9)
    cloud.store.put_report("north", {"ready": True}, now=time.time() - 30)
    found = scraped(cloud)
    assert found['cema_worker_ready{cohort="north"}'] == 1
    assert 60 <= found['cema_backlog_age_seconds{cohort="north"}'] < 90
    assert 30 <= found['cema_seconds_since_worker_report{cohort="north"}'] < 60


def test_rollouts_and_acts_are_told_while_they_last(cloud: Cloud) -> None:
    found = scraped(cloud)
    assert [found[f'cema_rollout_open{{cohort="north",mode="{mode}"}}'] for mode in ("manual", "canary")] == [
        0,
        0,
    ]
    assert found['cema_publishing{cohort="north",state="on"}'] == 1
    update, epoch = cloud.publish(1, b"payload"), cloud.store.claim("north").epoch
    rollout = Rollout(version=1, mode="canary", began=time.time() - 60, devices=("cam",), needed=1)
    cloud.store.commit_step("north", 0, b"", epoch=epoch, now=1.0, offer=Offer(rollout=rollout))
    cloud.store.act("north", Pause(), actor="a test", now=time.time())
    found = scraped(cloud)
    assert [found[f'cema_rollout_open{{cohort="north",mode="{mode}"}}'] for mode in ("manual", "canary")] == [
        0,
        1,
    ]
    assert 60 <= found['cema_rollout_age_seconds{cohort="north"}'] < 90
    assert found['cema_publishing{cohort="north",state="on"}'] == 0
    assert found['cema_publishing{cohort="north",state="paused"}'] == 1
    assert found['cema_update_expiry_seconds{cohort="north"}'] == pytest.approx(
        update.expires - time.time(), abs=60
    )
    assert 'cema_update_expiry_seconds{cohort="south"}' not in found


def test_requests_in_progress_are_counted(cloud: Cloud) -> None:
    assert scraped(cloud)["cema_http_requests_in_progress"] == 1  # the scrape itself
    assert scraped(cloud)["cema_http_requests_in_progress"] == 1


def test_errors_are_counted_by_their_code(cloud: Cloud) -> None:
    before = scraped(cloud)
    assert before['cema_http_errors_total{code="store_full"}'] == 0
    cloud.http.get("/no/such/place")
    cloud.post(b"no frame")
    cloud.get("/v1/cohorts/north/updates/latest?wait=long")
    after = scraped(cloud)
    grown = {name for name in after if name.startswith("cema_http_errors") and after[name] > before[name]}
    codes = ("not_found", "malformed", "invalid_request")
    assert grown == {f'cema_http_errors_total{{code="{code}"}}' for code in codes}


def test_a_scrape_reads_what_is_known_of_all_devices_once(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()

    def counted(name: str) -> Callable[..., Any]:
        real = getattr(cloud.store, name)

        def call(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return real(*arguments, **options)

        return call

    for name in ("activity", "reports", "agreement_over_time", "random_agreement_over_time"):
        monkeypatch.setattr(cloud.store, name, counted(name))
    scraped(cloud)
    # Of two cohorts, each in two tries: there are not so many samples.
    assert calls == {"activity": 1, "reports": 1, "agreement_over_time": 4, "random_agreement_over_time": 4}
    calls.clear()
    scraped(cloud)
    assert calls == {"activity": 1, "reports": 1}  # no worker has done anything since
    cloud.publish(1, b"payload")
    calls.clear()
    scraped(cloud)
    assert calls == {"activity": 1, "reports": 1, "agreement_over_time": 2, "random_agreement_over_time": 2}


def test_a_store_with_nothing_but_what_it_must_have_has_metrics_too(cloud: Cloud) -> None:
    cloud.send(make_samples(3))

    def only(protocol: type, of: object) -> Any:
        return SimpleNamespace(
            **{name: getattr(of, name) for name in vars(protocol) if not name.startswith("_")}
        )

    plain = only(Store, cloud.store)
    plain.devices = lambda cohorts: only(DeviceRegister, cloud.store.devices(cohorts))
    metrics = Metrics(plain, ["north"], cloud.engine.config.limits, Readiness(cloud.engine))
    text = metrics.render()[0].decode()
    assert 'cema_samples_total{cohort="north",verdict="stored"} 3.0' in text
    assert 'cema_registered_devices{cohort="north"} 1.0' in text
    assert 'cema_seen_devices{cohort="north",within="1h"} 0.0' in text
    assert "cema_rollout_open" not in text
    assert "cema_publishing" not in text
