"""A device reports odd numbers and names of what it did, and an admin of one cohort adds odd measures.

Stopped by bounds on what is believed (docs/protocol.md, 2.4 and 2.9): numbers are finite, more images than a device can
see are left out, and the history keeps names that it knows. REFUSED: operators still read the overview and the history,
in which every number is finite and no honest one is lost, and an honest device gets through.

    python attacks/hostile_reports.py
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import httpx2

from _cloud import Service, service
from _edge import COHORT
from _parts import check, eventually, main

MOST_BYTES = 2**20
HTTP = httpx2.Client(trust_env=False, timeout=20)
NUMBERS = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "1e308",
    "-1",
    "-1e308",
    "9007199254740991",
    "1.5",
    "null",
    "[]",
)


def report(number: int, *, boot: str = "a" * 16, **more: Any) -> dict[str, Any]:
    return {"format": "cema.report/1", "boot": boot, "number": number, "serving": {"version": 0}} | more


def send(cloud: Service, path: str, body: str, token: str) -> int:
    answer = HTTP.post(
        f"{cloud.url}/v1/cohorts/{COHORT}/{path}",
        content=body.encode(),
        headers={"Authorization": f"Bearer {token}"},
    )
    check(answer.status_code in (204, 400, 403, 413), f"{path} is answered {answer.status_code}: {body[:80]}")
    return answer.status_code


def numbers(told: object) -> Iterator[float]:
    """Return all numbers in an answer."""
    if isinstance(told, dict):
        told = list(told.values())
    if isinstance(told, list):
        for each in told:
            yield from numbers(each)
    elif isinstance(told, float | int):
        yield float(told)


def reads(cloud: Service, operator: str) -> dict[str, Any]:
    """Read what operators read; return the measures of the history."""
    found: dict[str, Any] = {}
    for path in (
        "/v1/overview",
        f"/v1/cohorts/{COHORT}/devices?order=trouble",
        f"/v1/cohorts/{COHORT}/history",
    ):
        answer = cloud.get(path, token=operator)
        check(answer.status_code == 200, f"{path} is answered {answer.status_code}")
        check(len(answer.content) < MOST_BYTES, f"{path} has {len(answer.content)} bytes")
        found = json.loads(answer.content)
        check(all(math.isfinite(number) for number in numbers(found)), f"{path} has a number that is none")
    measures: dict[str, Any] = found["measures"]
    return measures


def attack(cloud: Service, *, bodies: Iterable[tuple[str, str, str]]) -> None:
    """Send what is hostile, each with a path and the role that sends it, and then what is honest."""
    operator = cloud.add("reader", None, role="operator")
    tokens = {role: cloud.add(f"evil-{role}", COHORT, role=role) for role in ("device", "admin")}  # type: ignore[arg-type]
    before = total(reads(cloud, operator), "threshold.low")
    for path, role, body in bodies:
        send(cloud, path, body, tokens[role])
    token = cloud.add("honest", COHORT)
    status = send(cloud, "reports", json.dumps(report(1, thresholds={"low": 0.25})), token)
    check(status == 204, f"an honest report is answered {status}")
    cloud.takes_honest_samples()

    def written() -> bool:
        cloud.notes.reports.write()
        cloud.notes.history.write()
        return total(reads(cloud, operator), "threshold.low") > before

    eventually(written, "an honest report is not in the history")
    measures = reads(cloud, operator)
    check("samples" in measures, "honest samples are not in the history")
    check(len(measures) <= 96, f"{len(measures)} measures are told")


def total(measures: dict[str, Any], name: str) -> float:
    return sum(count or 0 for count in measures.get(name, {"count": []})["count"])


def odd_numbers() -> Iterator[tuple[str, str, str]]:
    """Put each odd number everywhere in a report where there is one."""
    whole = json.dumps(
        report(
            777,
            boot="b" * 16,
            serving={"version": 777, "predicted": 777, "guarded": 777, "entropy": 777},
            counts={"predicted": 777},
            selection={"selected": 777, "below": 777},
            thresholds={"low": 777, "high": 777},
            sent_at=777,
        )
    )
    parts = whole.split("777")
    for odd in NUMBERS:
        for at in range(1, len(parts)):
            told = "777".join(parts[:at]) + odd + "777".join(parts[at:])
            yield "reports", "device", told
        yield "reports", "device", odd.join(parts)


def odd_names() -> Iterator[tuple[str, str, str]]:
    for name in (
        "",
        "a" * 41,
        "__proto__",
        "constructor",
        "labelled.adapted",
        "../..",
        "<img src=x>",
        "\x00",
        "é",
    ):
        yield (
            "reports",
            "device",
            json.dumps(report(1, boot="c" * 16, selection={name: 5}, thresholds={name: 0.5})),
        )
    for count in (16, 17, 60):
        names = {f"{'abcdefghij'[n % 10]}{'_' * (n // 10)}": n for n in range(count)}
        for number in (1, 2):
            told = report(number, boot=f"{count:016x}", selection={k: v * number for k, v in names.items()})
            yield "reports", "device", json.dumps(told)
    yield "reports", "device", "[" * 4000
    yield "reports", "device", json.dumps(report(1)) + " " * 5000


def falling_counters() -> Iterator[tuple[str, str, str]]:
    """Let counters rise by all there is, fall and rise again, within one start and over many."""
    for number, seen in enumerate((0, 2**53 - 1, 0, 2**53 - 1, 5, 3, 2**31), 1):
        selection = dict.fromkeys(
            ("selected", "below", "above", "redundant", "budget", "near_duplicate"), seen
        )
        yield "reports", "device", json.dumps(report(number, boot="d" * 16, selection=selection))
        yield "reports", "device", json.dumps(report(2**53 - number, boot="e" * 16, selection=selection))
        yield "reports", "device", json.dumps(report(1, boot=f"{number:016x}", selection=selection))


def odd_measures() -> Iterator[tuple[str, str, str]]:
    for odd in NUMBERS:
        for pair in (f"[{odd}, {odd}]", f"[{odd}, 0]", f"[1, {odd}]"):
            for _ in range(2):
                yield "measures", "admin", f'{{"measures": {{"labelled.adapted": {pair}}}}}'
    for name in (
        "samples",
        "agreement.source",
        "labelled.",
        "labelled.A",
        "labelled.a b",
        "labelled." + "a" * 41,
    ):
        yield "measures", "admin", json.dumps({"measures": {name: [8, 8]}})


def many_names() -> Iterator[tuple[str, str, str]]:
    """Fill the bins with names, over so long that they are several."""
    for number in range(40):
        names = {f"labelled.{number}-{n}": [1, 1] for n in range(16)}
        yield "measures", "admin", json.dumps({"measures": names})
        time.sleep(0.01)


VARIANTS = {
    "odd-numbers": partial(attack, bodies=list(odd_numbers())),
    "odd-names": partial(attack, bodies=list(odd_names())),
    "falling-counters": partial(attack, bodies=list(falling_counters())),
    "odd-measures": partial(attack, bodies=list(odd_measures())),
    "many-names": lambda cloud: attack(cloud, bodies=many_names()),
}

if __name__ == "__main__":
    sys.exit(main(VARIANTS, service))
