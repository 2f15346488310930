"""Comparing two benchmarks, against what a hand calculates."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from cema.bench.compare import compare
from cema.bench.results import data_name, with_joined_names
from cema.bench.tables import AVERAGE
from cema.errors import FormatError

Cell = Callable[..., dict[str, Any]]
GROUP = ("d", "m", "f", "reset", 3)


def test_one_seed_is_two_binomials(cell: Cell) -> None:
    found = compare([cell(accuracy=50.0, samples=100)], [cell(accuracy=60.0, samples=400)])
    difference = found.groups[GROUP]["source"]["fog"]
    assert difference.points == 10.0
    # 0.5 * 0.5 / 100 + 0.6 * 0.4 / 400 = 0.0025 + 0.0006
    assert difference.error == pytest.approx(100 * math.sqrt(0.0031))
    assert not difference.beyond
    assert difference.seeds == 1


def test_seeds_add_what_they_vary_by(cell: Cell) -> None:
    a = [cell(seed=s, accuracy=p, samples=10_000) for s, p in enumerate([50.0, 50.0, 50.0])]
    b = [cell(seed=s, accuracy=p, samples=10_000) for s, p in enumerate([51.0, 53.0, 55.0])]
    difference = compare(a, b).groups[GROUP]["source"]["fog"]
    assert difference.points == 3.0
    assert difference.seeds == 3
    # Differences 1, 3, 5 have variance 4; binomials in squared points: 50 * 50 / 10000 and 53 * 47 / 10000.
    assert difference.error == pytest.approx(math.sqrt(4 / 3 + 0.25 + 0.2491))
    assert difference.beyond


def test_the_average_has_the_error_of_a_mean(cell: Cell) -> None:
    names = ("fog", "snow")
    a = [cell(corruption=n, accuracy=50.0) for n in names]
    b = [cell(corruption=n, accuracy=p) for n, p in zip(names, (60.0, 50.0), strict=True)]
    average = compare(a, b).groups[GROUP]["source"][AVERAGE]
    assert average.points == 5.0
    # Variances in squared points: 25 + 24 and 25 + 25.
    assert average.error == pytest.approx(math.sqrt(49 + 50) / 2)


def test_further_visits_show_the_same_images(cell: Cell) -> None:
    a = [cell(accuracy=50.0, samples=1000, images=100, visits=[50.0] * 10)]
    b = [cell(accuracy=60.0, samples=400)]
    assert compare(a, b).all()[0].error == pytest.approx(100 * math.sqrt(0.0031))
    assert compare(b, a).all()[0].error == pytest.approx(100 * math.sqrt(0.0031))


def test_a_benchmark_does_not_differ_from_itself(cell: Cell) -> None:
    cells = [cell(seed=s, corruption=n) for s in range(2) for n in ("fog", "snow")]
    found = compare(cells, cells)
    assert all(d.points == 0.0 and not d.beyond for d in found.all())
    assert (found.only_in_a, found.only_in_b) == (0, 0)


def test_only_cells_of_the_same_thing_are_compared(cell: Cell) -> None:
    a = [cell(), cell(method="tent"), cell(method="bn", accuracy=None)]
    b = [cell(), cell(severity=5), cell(method="bn")]
    found = compare(a, b)
    assert list(found.groups) == [GROUP]
    assert list(found.groups[GROUP]) == ["source"]
    assert (found.only_in_a, found.only_in_b) == (1, 2)


def test_nothing_in_common_says_what_each_has(cell: Cell) -> None:
    with pytest.raises(FormatError, match=r"(?s)no cell in common.*method source.*method tent"):
        compare([cell()], [cell(method="tent")])


def results(cell: dict[str, Any], digest: str) -> dict[str, Any]:
    return {"settings": {"data": cell["dataset"], "data_digest": digest}, "cells": [cell]}


def joined(a: dict[str, Any], b: dict[str, Any]) -> int:
    try:
        return len(compare(a["cells"], with_joined_names(b, a)).all())
    except FormatError:
        return 0


def test_files_of_one_name_are_not_compared(cell: Cell) -> None:
    first, second = (
        results(cell(dataset=data_name("digits.npz", "digits", digest)), digest)
        for digest in ("0" * 64, "1" * 64)
    )
    own = results(cell(dataset=data_name("digits", "digits", "2" * 64)), "2" * 64)
    assert joined(first, first) == 1
    assert (joined(first, second), joined(first, own), joined(own, second)) == (0, 0, 0)


def test_results_of_before_are_compared_by_their_digest(cell: Cell) -> None:
    now = results(cell(dataset=data_name("mine.npz", "mine", "0" * 64)), "0" * 64)
    before, other = results(cell(dataset="mine"), "0" * 64), results(cell(dataset="mine"), "1" * 64)
    assert (joined(before, now), joined(now, before), joined(before, before)) == (1, 1, 1)
    assert (joined(other, now), joined(now, other)) == (0, 0)


def test_a_cell_without_a_seed_is_named() -> None:
    with pytest.raises(FormatError, match="method"):
        compare([{"accuracy": 1.0}], [])
