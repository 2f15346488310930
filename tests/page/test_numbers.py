"""The pure functions of the page, run by the browser that the page runs in, against Python's own arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

Browse = Callable[..., Any]
NARROW = "\u202f"


@pytest.fixture
def call(browse: Browse) -> Iterator[Callable[..., Any]]:
    page = browse()

    def call(module: str, name: str, *arguments: Any) -> Any:
        script = "async ([module, name, given]) => (await import(`cema/${module}`))[name](...given)"
        return page.evaluate(script, [module, name, list(arguments)])

    return call


def test_numbers_are_told_as_people_read_them(call: Callable[..., Any]) -> None:
    cases = [
        ("count", [12_345], "12,345"),
        ("count", [None], "–"),
        ("percent", [0.8941], f"89.4{NARROW}%"),
        ("percent", [1, 0], f"100{NARROW}%"),
        ("bytes", [999], f"999{NARROW}B"),
        ("bytes", [1_234_000], f"1.2{NARROW}MB"),
        ("bytes", [999_999], f"1.0{NARROW}MB"),
        ("bytes", [0], f"0{NARROW}B"),
        ("money", [0.84, "EUR"], f"0.84{NARROW}EUR"),
        ("money", [0.0012, "USD"], f"0.0012{NARROW}USD"),
        ("money", [None, None], "–"),
        ("duration", [59.4], f"59{NARROW}s"),
        ("duration", [59.6], f"1{NARROW}min"),
        ("duration", [7200], f"2{NARROW}h"),
        ("duration", [200_000], "2 days"),
        ("ago", [100, 103], "just now"),
        ("ago", [100, 400], f"5{NARROW}min ago"),
        ("ago", [None, 400], "never"),
        ("ago", [1000, 400], f"in 10{NARROW}min"),
        ("version", [0], "source"),
        ("version", [3], "v3"),
        ("version", [None], "–"),
        ("plural", [1, "device"], "1 device"),
        ("plural", [2, "device"], "2 devices"),
        ("actor", ["token:ann"], "ann (token)"),
        ("actor", ["os:root"], "root (command line)"),
        ("actor", ["odd"], "odd"),
        ("short", [0.00001234], "1.2e-5"),
        ("short", [3.14159], "3.14"),
        ("machine", [0], "1970-01-01T00:00:00.000Z"),
        ("machine", [1e300], ""),
        ("unbroken", ["on 89 % ± 2 of all"], "on 89\u00a0%\u00a0±\u00a02 of all"),
    ]
    for name, arguments, expected in cases:
        assert call("format.js", name, *arguments) == expected, (name, arguments)


def test_wilsons_interval_is_that_of_the_formula(call: Callable[..., Any]) -> None:
    for total, count in ((0, 5), (5, 5), (31, 64), (900, 1024)):
        z, share = 1.959964, total / count
        middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
        spread = z / (1 + z**2 / count) * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
        assert call("stats.js", "wilson", total, count) == pytest.approx(
            [max(0, middle - spread), min(1, middle + spread)]
        )


def test_wider_bins_keep_every_sum(call: Callable[..., Any]) -> None:
    rng = np.random.default_rng(0)
    count = [None if value < 2 else int(value) for value in rng.integers(0, 9, 97)]
    total = [None if value is None else value / 2 for value in count]
    history = {
        "since": 1005,
        "until": 1975,
        "seconds": 10,
        "at": [1000 + 10 * k for k in range(97)],
        "measures": {"m": {"count": count, "total": total}},
        "versions": [],
        "domains": [],
    }
    wide = call("stats.js", "coarsen", history, 4)
    assert wide["seconds"] == 40
    assert sum(value or 0 for value in wide["measures"]["m"]["count"]) == sum(value or 0 for value in count)
    assert sum(value or 0 for value in wide["measures"]["m"]["total"]) == pytest.approx(
        sum(value or 0 for value in total)
    )
    assert wide["at"] == sorted(wide["at"])
    readable = call("stats.js", "readable", history, "m", {"least": 30, "fewest": 10})
    assert len(readable["at"]) < 20
    assert all(at % readable["seconds"] == 0 for at in readable["at"])


def test_thinning_keeps_the_ends_and_the_extremes_of_each_part(call: Callable[..., Any]) -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=5000).tolist()
    values[1234], values[4321] = 99.0, -99.0
    thin = call("stats.js", "thin", list(range(5000)), [values, values], 200)
    assert 100 < len(thin["at"]) <= 203
    assert thin["at"][0] == 0
    assert thin["at"][-1] == 4999
    assert thin["at"] == sorted(set(thin["at"]))
    assert {99.0, -99.0} <= set(thin["lines"][0])
    assert thin["lines"][0] == [values[at] for at in thin["at"]] == thin["lines"][1]


def test_gaps_stacks_and_nearest_places(call: Callable[..., Any]) -> None:
    assert call("stats.js", "gapped", [0, 10, 50], [[1, 2, 3]], 35) == {
        "at": [0, 10, 30, 50],
        "lines": [[1, 2, None, 3]],
    }
    assert call("stats.js", "stacked", [[1, None], [2, 3]]) == [[1, 0], [3, 3]]
    assert [call("stats.js", "nearest", [0, 10, 20], at) for at in (-5, 4, 6, 25)] == [0, 0, 1, 2]
    assert call("stats.js", "means", {"count": [2, None, 0], "total": [1, None, 0]}) == [0.5, None, None]


def test_addresses_name_views(call: Callable[..., Any]) -> None:
    cases = {
        "": {"view": "overview"},
        "#/": {"view": "overview"},
        "#/c/a%2Fb": {"view": "cohort", "cohort": "a/b"},
        "#/c/a/devices": {"view": "devices", "cohort": "a"},
        "#/c/a/d/x%20y": {"view": "device", "cohort": "a", "device": "x y"},
        "#/c/a/acts": {"view": "acts", "cohort": "a"},
        "#/c/a/other": {"view": "unknown"},
        "#/c/%E0%A4%A": {"view": "cohort", "cohort": "%E0%A4%A"},
    }
    for hash_, expected in cases.items():
        assert call("main.js", "route", hash_) == expected
