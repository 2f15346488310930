"""Alerts and the dashboard: checked by Prometheus, and asked of a real one that scrapes a real cloud."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from cloud_process import eventually
from cloud_support import StillEngine, make_samples, serving, write_config
from programs import free_port, listens, running
from tools import tool

from cema._util.proportion import Weighted
from cema.cloud.config import CloudConfig
from cema.cloud.http.metrics_list import METRICS
from cema.cloud.store.agreements import JUDGED, AgreementCount
from cema.cloud.store.base import PublishedUpdate
from cema.cloud.store.draws import RandomCount
from cema.cloud.store.reports import Reported
from cema.formats.report import DeviceReport, Served

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
DAY = 86_400.0
ENDINGS = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("_sum", "_count"),
}
SERVED = {f"{metric.name}{ending}" for metric in METRICS for ending in ENDINGS[metric.kind]}
LABELS = {label for metric in METRICS for label in metric.labels} | {"job", "instance", "le"}


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((DEPLOY / "grafana" / "cema.json").read_text())["panels"]
    return found


def queries() -> list[str]:
    """Return the queries of the dashboard, as Grafana asks them with all chosen."""
    found = [target["expr"] for panel in panels() for target in panel.get("targets", ())]
    for name, value in {"$instance": ".*", "$cohort": ".*", "$__rate_interval": "1m"}.items():
        found = [query.replace(name, value) for query in found]
    return found


def promtool(*arguments: str) -> str:
    done = subprocess.run(
        [tool("promtool"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=PROMETHEUS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_takes_the_rules_and_their_tests_pass() -> None:
    assert f"SUCCESS: {len(alerts())} rules found" in promtool("check", "rules", "alerts.yml")
    assert "SUCCESS" in promtool("test", "rules", "alerts.test.yml")


def test_every_alert_comes_in_a_test() -> None:
    tests = (PROMETHEUS / "alerts.test.yml").read_text()
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names) >= 20
    for name in names:
        assert f'alertname="{name}"' in tests or f"alertname: {name}\n" in tests, name


def test_every_alert_says_what_it_is_and_how_bad() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["annotations"]["description"].endswith(".")


def test_the_page_for_operators_has_every_alert_with_its_severity() -> None:
    page = (DEPLOY.parent / "docs" / "operating.md").read_text()
    rows = re.findall(r"^\| (\w+) \| `(Cema\w+)` \|", page, re.MULTILINE)
    assert sorted(rows) == sorted((rule["labels"]["severity"], rule["alert"]) for rule in alerts())


def test_alerts_and_dashboard_know_no_metric_and_no_label_that_is_not_served() -> None:
    for text in [rule["expr"] for rule in alerts()] + queries():
        named = set(re.findall(r"\bcema_\w+", text))
        assert named <= SERVED, text
        assert named or "up{" in text
        labels = {
            name for names in re.findall(r"\{([^}]*)\}", text) for name in re.findall(r"(\w+)\s*=", names)
        }
        grouped = {
            name.strip()
            for names in re.findall(r"(?:by|on|ignoring|without) \(([^)]*)\)", text)
            for name in names.split(",")
        }
        assert labels | grouped <= LABELS, text


def test_the_dashboard_is_what_its_program_writes() -> None:
    program = DEPLOY / "grafana" / "dashboard.py"
    spec = importlib.util.spec_from_file_location("dashboard", program)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert json.loads((program.parent / "cema.json").read_text()) == module.dashboard(), f"run {program}"


def test_the_dashboard_is_laid_out_without_overlaps_and_its_queries_have_a_source() -> None:
    board = json.loads((DEPLOY / "grafana" / "cema.json").read_text())
    identities = [panel["id"] for panel in board["panels"]]
    assert len(set(identities)) == len(identities)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert [target["refId"] for target in panel["targets"]] == [
                chr(ord("A") + i) for i in range(len(panel["targets"]))
            ]
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    used = {name for panel in board["panels"] for name in re.findall(r"\$\{?(\w+)", json.dumps(panel))}
    assert used - {"__rate_interval"} == variables.keys()


class Watched:
    """A real Prometheus that scrapes a real cloud, and what it answers."""

    def __init__(self, url: str) -> None:
        self.http = httpx2.Client(base_url=url, timeout=30)

    def ask(self, query: str) -> list[Any]:
        response = self.http.get("/api/v1/query", params={"query": query})
        assert response.status_code == 200, f"{query}: {response.text}"
        found: list[Any] = response.json()["data"]["result"]
        return found


def fill(engine: StillEngine) -> str:
    """Give a cloud some of all that it tells about; return the token of an operator."""
    store, now, payload = engine.store, time.time(), b"payload"
    engine.devices.add("camera", cohort="north")
    store.put("north", make_samples(2), device="camera", now=now, max_backlog=9)
    store.put_report("north", {"ready": True}, now=now)
    update = PublishedUpdate(1, hashlib.sha256(payload).hexdigest(), b"{}", payload, now, now + 30 * DAY)
    counts = [AgreementCount(1, model, 400, 300) for model in JUDGED]
    epoch = store.claim("north").epoch
    store.commit_step("north", 0, b"", update, epoch=epoch, now=now, measured=counts)
    at_random = [RandomCount(1, model, Weighted.of([(0.5, True), (0.5, False)])) for model in JUDGED]
    store.measured_draws("north", [], at_random, now=now)
    told = DeviceReport(
        boot="0" * 16,
        number=1,
        serving=Served(version=1, predicted=9),
        counts={"predicted": 9, "selected": 3},
    )
    store.note_reports([Reported("north", "camera", now, told)])
    return engine.devices.add("prometheus", cohort=None, role="operator")


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    program, folder = tool("prometheus"), tmp_path_factory.mktemp("watched")
    engine = StillEngine(CloudConfig.load(write_config(folder)))
    with serving(engine) as url:
        (folder / "cema.token").write_text(fill(engine))
        text = (PROMETHEUS / "prometheus.yml").read_text()
        for old, new in {
            "127.0.0.1:8080": url.removeprefix("http://"),
            "/etc/prometheus/cema.token": str(folder / "cema.token"),
            "30s": "1s",
            "20s": "1s",
            "  - alerts.yml": f"  - {PROMETHEUS / 'alerts.yml'}",
        }.items():
            assert old in text
            text = text.replace(old, new)
        (folder / "prometheus.yml").write_text(text)
        promtool("check", "config", str(folder / "prometheus.yml"))
        port = free_port()
        command = [
            program,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with running(command, lambda: listens(port), folder / "prometheus.log"):
            made = Watched(f"http://127.0.0.1:{port}")
            # A rate takes two scrapes.
            eventually(lambda: made.ask("count_over_time(cema_store_bytes[1m]) >= 3"))
            yield made
            made.http.close()


def test_prometheus_reaches_the_cloud_with_the_token_of_the_file(watched: Watched) -> None:
    (up,) = watched.ask('up{job="cema"}')
    assert up["value"][1] == "1"
    targets = watched.http.get("/api/v1/targets").json()["data"]["activeTargets"]
    assert [target["lastError"] for target in targets] == [""]


def test_every_query_of_the_dashboard_has_an_answer(watched: Watched) -> None:
    assert len(queries()) >= 30
    for query in queries():
        assert watched.ask(query), f"no data: {query}"


def test_every_alert_can_be_asked_and_none_that_is_critical_comes_of_a_cloud_that_is_well(
    watched: Watched,
) -> None:
    for rule in alerts():
        watched.ask(rule["expr"])
        # Its parts have series: an alert about what is not there never comes.
        named = re.findall(r"(cema_\w+)(\{[^}]*\})?", rule["expr"])
        for name, labels in named:
            if "status=" not in labels:  # no request has failed
                assert watched.ask(f"{name}{labels}"), f"{rule['alert']}: no series {name}{labels}"
    eventually(lambda: all(rule["health"] == "ok" for rule in loaded(watched)))
    assert len(loaded(watched)) == len(alerts())
    active = {rule["name"] for rule in loaded(watched) if rule["state"] != "inactive"}
    assert not active & {rule["alert"] for rule in alerts() if rule["labels"]["severity"] == "critical"}


def loaded(watched: Watched) -> list[dict[str, Any]]:
    groups = watched.http.get("/api/v1/rules").json()["data"]["groups"]
    return [rule for group in groups for rule in group["rules"]]
