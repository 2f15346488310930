#!/usr/bin/env python3
"""Write cema.json, the dashboard for Grafana, beside this file: import that one.

A dashboard as Grafana saves it has thousands of lines. What differs between its panels is here: rows of panels, each
with its queries. The suite runs every query against a real Prometheus that scrapes a real cloud.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).with_name("cema.json")
WIDTH, HEIGHT = 24, 8
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
# The variables at the top of the page choose what every query is about.
CLOUD = 'job="cema", instance=~"$instance"'
COHORT = f'{CLOUD}, cohort=~"$cohort"'


class Query(NamedTuple):
    """A query, and the legend of its series."""

    expression: str
    legend: str


class Panel(NamedTuple):
    """A panel: its title, what it says, its queries, the unit of its values, and its kind."""

    title: str
    text: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: str = "timeseries"


def gauge(metric: str, legend: str = "{{cohort}}", *, only: str = "", of: str = COHORT) -> Query:
    """Return the query of a gauge."""
    return Query(f"{metric}{{{of}{only}}}", legend)


def rate(metric: str, legend: str, *, only: str = "", of: str = COHORT, by: str = "cohort") -> Query:
    """Return the query of a counter's increase per second."""
    return Query(f"sum by ({by}) (rate({metric}{{{of}{only}}}[$__rate_interval]))", legend)


def ratio(above: Query, below: Query) -> Query:
    """Return the query of a share, with the first one's legend."""
    return Query(f"{above.expression} / {below.expression}", above.legend)


def latency(quantile: float) -> Query:
    """Return the query of how long that share of the requests takes at most."""
    buckets = rate("cema_http_request_seconds_bucket", "", of=CLOUD, by="le, route")
    return Query(f"histogram_quantile({quantile}, {buckets.expression})", "{{route}}")


NEWEST_MINUS_SOURCE = Query(
    f"cema_agreement_share{{{COHORT}, model='running'}} - ignoring (model) "
    f"cema_agreement_share{{{COHORT}, model='source'}}",
    "{{cohort}}",
)

ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Is all well?",
        (
            Panel(
                "Up",
                "1 while Prometheus reaches the cloud.",
                (gauge("up", "{{instance}}", of=CLOUD),),
                kind="stat",
            ),
            Panel(
                "Checks that fail",
                "Of /readyz.",
                (Query(f"count(cema_ready{{{CLOUD}}} == 0) or vector(0)", "checks"),),
                kind="stat",
            ),
            Panel(
                "CEMA",
                "The version that serves.",
                (gauge("cema_build_info", "{{version}}", of=CLOUD),),
                kind="stat",
            ),
            Panel(
                "Store",
                "What is in use of limits.store_bytes.",
                (
                    ratio(
                        gauge("cema_store_bytes", "{{instance}}", of=CLOUD),
                        gauge("cema_store_max_bytes", of=CLOUD),
                    ),
                ),
                "percentunit",
                "stat",
            ),
        ),
    ),
    (
        "Does it help?",
        (
            Panel(
                "Agreement on selected samples",
                "With the foundation model, before they are learned from. running: the newest version; source: the "
                "model that devices came with; device: what devices answered.",
                (gauge("cema_agreement_share", "{{cohort}} {{model}}"),),
                "percentunit",
            ),
            Panel(
                "Agreement on all that devices see",
                "Estimated from samples that were drawn at random.",
                (gauge("cema_random_agreement_share", "{{cohort}} {{model}}"),),
                "percentunit",
            ),
            Panel(
                "Newest version minus source model",
                "Difference of agreement on selected samples. Below 0 adaptation does harm.",
                (NEWEST_MINUS_SOURCE,),
                "percentunit",
            ),
        ),
    ),
    (
        "Worker and versions",
        (
            Panel("Samples that wait", "For the worker.", (gauge("cema_backlog_samples"),)),
            Panel("Age of the oldest that waits", "", (gauge("cema_backlog_age_seconds"),), "s"),
            Panel("Steps per second", "", (rate("cema_step_seconds_count", "{{cohort}}"),), "ops"),
            Panel(
                "Candidates",
                "What the gate and the signer made of them, per second.",
                (rate("cema_updates_total", "{{cohort}} {{outcome}}", by="cohort, outcome"),),
                "ops",
            ),
            Panel("Newest version", "", (gauge("cema_update_version"),)),
            Panel("Until the newest version ends", "", (gauge("cema_update_expiry_seconds"),), "s"),
            Panel(
                "Worker ready, open rollouts, acts that wait",
                "1 for yes.",
                (
                    gauge("cema_worker_ready", "{{cohort}} ready"),
                    gauge("cema_rollout_open", "{{cohort}} {{mode}} rollout"),
                    gauge("cema_act_waiting", "{{cohort}} act waits"),
                ),
            ),
            Panel(
                "What the worker did",
                "Events per second.",
                (rate("cema_worker_events_total", "{{cohort}} {{event}}", by="cohort, event"),),
                "ops",
            ),
        ),
    ),
    (
        "Devices",
        (
            Panel(
                "Devices",
                "With good tokens: all, heard of in the last hour and day, silent, with a problem, quarantined.",
                (
                    gauge("cema_registered_devices", "{{cohort}} all"),
                    gauge("cema_seen_devices", "{{cohort}} seen in {{within}}"),
                    gauge("cema_silent_devices", "{{cohort}} silent"),
                    gauge("cema_problem_devices", "{{cohort}} with a problem"),
                    gauge("cema_quarantined_devices", "{{cohort}} quarantined"),
                ),
            ),
            Panel(
                "Version that serves",
                "Devices of the last day, by the version that serves there, beside the newest one.",
                (gauge("cema_serving_devices", "{{cohort}} {{version}}"),),
            ),
            Panel(
                "Share of images that were selected, and that the source model predicted",
                "As devices last reported, of their whole lives.",
                tuple(
                    Query(
                        f"cema_reported_counts{{{COHORT}, count='{count}'}} / ignoring (count) "
                        f"(cema_reported_counts{{{COHORT}, count='predicted'}} > 0)",
                        f"{{{{cohort}}}} {count}",
                    )
                    for count in ("selected", "guarded")
                ),
                "percentunit",
            ),
            Panel(
                "Reports",
                "That came and that were lost, per second.",
                (rate("cema_reports_total", "{{cohort}} {{outcome}}", by="cohort, outcome"),),
                "ops",
            ),
        ),
    ),
    (
        "Samples and requests",
        (
            Panel(
                "Samples",
                "Answered at upload, per second.",
                (
                    rate("cema_samples_total", "{{cohort}} {{verdict}}", by="cohort, verdict"),
                    rate(
                        "cema_samples_rejected_total", "{{cohort}} rejected: {{reason}}", by="cohort, reason"
                    ),
                ),
                "ops",
            ),
            Panel(
                "Image bytes",
                "Of samples that were stored, per second.",
                (rate("cema_image_bytes_total", "{{cohort}}", only=", verdict='stored'"),),
                "Bps",
            ),
            Panel(
                "Samples that left the store",
                "Per second.",
                (rate("cema_samples_evicted_total", "{{cohort}} {{reason}}", by="cohort, reason"),),
                "ops",
            ),
            Panel(
                "Uploads refused for a device's limit",
                "Per second.",
                (rate("cema_uploads_limited_total", "{{cohort}} {{limit}}", by="cohort, limit"),),
                "ops",
            ),
            Panel(
                "Requests",
                "Per second, by status.",
                (rate("cema_http_request_seconds_count", "{{status}}", of=CLOUD, by="status"),),
                "reqps",
            ),
            Panel(
                "Errors",
                "Per second, by code.",
                (rate("cema_http_errors_total", "{{code}}", of=CLOUD, by="code"),),
                "reqps",
            ),
            Panel(
                "95 % of the answers take at most",
                "By route, without waiting for news.",
                (latency(0.95),),
                "s",
            ),
            Panel(
                "Requests in progress",
                "With those that wait for news.",
                (gauge("cema_http_requests_in_progress", "{{instance}}", of=CLOUD),),
            ),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana reads it."""
    return {
        "uid": "cema",
        "title": "CEMA",
        "description": "A cloud of CEMA, its cohorts and their devices. Made by deploy/grafana/dashboard.py.",
        "schemaVersion": 38,
        "version": 1,
        "editable": True,
        "refresh": "1m",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "tags": ["cema"],
        "templating": {"list": list(_variables())},
        "annotations": {"list": []},
        "panels": list(_panels()),
    }


def _variables() -> Iterator[dict[str, Any]]:
    yield {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    for name, query in (
        ("instance", 'label_values(cema_build_info{job="cema"}, instance)'),
        ("cohort", f"label_values(cema_update_version{{{CLOUD}}}, cohort)"),
    ):
        yield {
            "name": name,
            "label": name.capitalize(),
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": query, "refId": name},
            "refresh": 2,
            "sort": 1,
            "includeAll": True,
            "multi": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        }


def _panels() -> Iterator[dict[str, Any]]:
    number, y = 0, 0
    for title, panels in ROWS:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
        }
        y += 1
        in_line = min(len(panels), 4)
        height = HEIGHT // 2 if all(panel.kind == "stat" for panel in panels) else HEIGHT
        for i, panel in enumerate(panels):
            number += 1
            width = WIDTH // in_line
            place = {"x": i % in_line * width, "y": y + i // in_line * height, "w": width, "h": height}
            yield _panel(panel, number, place)
        y += -(-len(panels) // in_line) * height


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    by_name = panel.title == "CEMA"
    options: dict[str, Any] = {"tooltip": {"mode": "multi", "sort": "desc"}}
    if panel.kind == "stat":
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "textMode": "name" if by_name else "value"}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": SOURCE,
                "expr": query.expression,
                "legendFormat": query.legend,
            }
            for i, query in enumerate(panel.queries)
        ],
    }


def main() -> None:
    """Write the file."""
    FILE.write_text(json.dumps(dashboard(), indent=1) + "\n")


if __name__ == "__main__":
    main()
