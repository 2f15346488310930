"""How sure an accuracy of several images a photograph is, from the formula to the tables and the command."""

from __future__ import annotations

import csv
import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cema.bench.compare import compare
from cema.bench.config import DIGITS_PAIR, BenchConfig, BenchFile, ModelPair
from cema.bench.execute import RunContext, Scorer
from cema.bench.plots import average_error, write_plots
from cema.bench.protocols import Condition, make_schedule
from cema.bench.runner import make_plan
from cema.bench.standard_error import binomial_error, clustered_error
from cema.bench.tables import AVERAGE, summarise, write_csv, write_markdown

Cell = Callable[..., dict[str, Any]]
Cema = Callable[..., "subprocess.CompletedProcess[str]"]
GROUP = ("d", "m", "f", "reset", 3)
MODEL = "bench_models:brightness_12"

outcomes = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=60)


def sandwich(correct: np.ndarray, origins: np.ndarray) -> float:
    """Regress on a constant; bread, meat and bread of the cluster-robust variance, in points."""
    x, y = np.ones((len(correct), 1)), correct.astype(np.float64)
    beta = np.linalg.lstsq(x, y, rcond=None)[0]
    residuals = y - x @ beta
    meat = np.zeros((1, 1))
    groups = sorted(set(origins.tolist()))
    for group in groups:
        score = x[origins == group].T @ residuals[origins == group]
        meat += np.outer(score, score)
    bread = np.linalg.inv(x.T @ x)
    variance = bread @ meat @ bread * len(groups) / (len(groups) - 1)
    return 100.0 * math.sqrt(variance[0, 0])


@given(outcomes)
def test_it_is_the_cluster_robust_error_of_a_regression_on_a_constant(found: list[tuple[bool, int]]) -> None:
    correct, origins = np.array([c for c, _ in found]), np.array([o for _, o in found])
    error = clustered_error(correct, origins)
    if len(set(origins.tolist())) == 1:
        assert error is None
    else:
        assert error == pytest.approx(sandwich(correct, origins), abs=1e-9)


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=2, max_size=12))
def test_of_equal_numbers_it_is_the_error_of_the_mean_of_photographs(found: list[list[bool]]) -> None:
    correct = np.array(found)
    means = correct.mean(1)
    expected = 100.0 * means.std(ddof=1) / math.sqrt(len(means))
    origins = np.repeat(np.arange(len(found)) * 3 + 5, 4)
    assert clustered_error(correct.ravel(), origins) == pytest.approx(expected, abs=1e-9)
    order = np.random.default_rng(0).permutation(correct.size)
    assert clustered_error(correct.ravel()[order], origins[order]) == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.booleans(), min_size=2, max_size=40), st.integers(1, 5))
def test_copies_of_an_image_make_nothing_surer(found: list[bool], copies: int) -> None:
    correct, origins = np.array(found), np.arange(len(found))
    expected = binomial_error(100.0 * correct.mean(), len(found) - 1)
    assert clustered_error(correct, origins) == pytest.approx(expected, abs=1e-9)
    copied = clustered_error(np.tile(correct, copies), np.tile(origins, copies))
    assert copied == pytest.approx(expected, abs=1e-9)


def test_it_is_what_accuracy_varies_by_from_one_choice_of_photographs_to_another() -> None:
    rng = np.random.default_rng(0)
    chances = rng.beta(0.5, 0.5, (2000, 80))
    correct = rng.random((2000, 80, 10)) < chances[..., None]
    spread = 100.0 * correct.mean((1, 2)).std(ddof=1)
    origins = np.repeat(np.arange(80), 10)
    errors = [clustered_error(run.ravel(), origins) or 0.0 for run in correct]
    assert math.sqrt(np.mean(np.square(errors))) == pytest.approx(spread, rel=0.05)
    # As if all images were independent it would be half of that.
    assert binomial_error(100.0 * correct.mean(), 800) < 0.55 * spread


@pytest.mark.parametrize("protocol", ["reset", "continual", "mixed", "gradual"])
def test_a_cell_has_the_error_over_its_own_photographs(protocol: str) -> None:
    conditions = tuple(Condition(name, 3) for name in (("fog",) if protocol == "reset" else ("fog", "snow")))
    origins = np.tile(np.array([40, 7, 19]), 4)
    schedule = make_schedule(protocol, conditions, [0] * 12, batch=5, seed=2)
    right = np.random.default_rng(3).random((2, 12)) < 0.6
    scorer, plain = Scorer(schedule, origins), Scorer(schedule)
    for batch in range(schedule.batches):
        places = schedule.places(batch)
        correct = right[schedule.condition[places], schedule.sample[places]]
        for each in (scorer, plain):
            each.book(batch, correct, (0, 0, 0, 0), 0.0)
    for index, (cell, without) in enumerate(zip(scorer.cells(), plain.cells(), strict=True)):
        seen = schedule.sample[schedule.condition == index]
        assert cell["photographs"] == len(set(origins[seen].tolist())) == 3
        assert cell["standard_error"] == pytest.approx(sandwich(right[index][seen], origins[seen]))
        rest = {name: value for name, value in cell.items() if name not in {"photographs", "standard_error"}}
        assert rest == without


def of_photographs(cell: Cell, error: float | None, **changes: Any) -> dict[str, Any]:
    return cell(samples=5000, photographs=500, standard_error=error, **changes)


def test_tables_go_by_photographs(cell: Cell, tmp_path: Path) -> None:
    nothing = dict.fromkeys(("accuracy", "uploads", "bytes_up")) | {"note": "no", "curve": []}
    cells = [
        *(of_photographs(cell, e, corruption=n) for n, e in (("fog", 1.5), ("snow", 2.0))),
        *(of_photographs(cell, 1.0, corruption=n, method="bn") for n in ("fog", "snow")),
        *(of_photographs(cell, None, corruption=n, method="eata", **nothing) for n in ("fog", "snow")),
    ]
    (table,) = summarise(cells)
    # 1.96 * sqrt(2) * 2.0 = 5.54; both columns show the same photographs, so that the average is no surer.
    assert table.chance() == (
        "5000 images per cell, cut from 500 photographs: differences below 5.5 points, also in the average, may be "
        "chance (95 %, from standard errors over photographs of 1.0 to 2.0 points)."
    )
    assert (table.rows["source"]["fog"].error, table.rows["source"][AVERAGE].error) == (1.5, 1.75)
    assert table.notes() == [
        "eata: no",
        "standard error of the average over photographs, at most: source 1.75, bn 1.00",
    ]
    write_markdown(tmp_path / "t.md", [table], {"settings": {"data": "d", "protocol": "reset", "seeds": [0]}})
    text = (tmp_path / "t.md").read_text()
    assert table.chance() in text
    assert "* standard error of the average over photographs, at most: source 1.75, bn 1.00" in text
    write_csv(tmp_path / "t.csv", [table])
    assert len([*csv.DictReader((tmp_path / "t.csv").read_text().splitlines())]) == 9
    assert average_error(table, "source") == 1.75, "and not sqrt(1.5 ** 2 + 2.0 ** 2) / 2"
    assert write_plots(tmp_path, [table], cells)


def test_seeds_show_the_same_photographs(cell: Cell) -> None:
    (once,) = summarise([of_photographs(cell, 2.0)])
    (often,) = summarise([of_photographs(cell, 2.0, seed=s) for s in range(9)])
    assert once.chance() == often.chance()


def test_one_photograph_counts_as_one_image(cell: Cell) -> None:
    (table,) = summarise([cell(samples=100, photographs=1, standard_error=None)])
    assert table.rows["source"]["fog"].error == 50.0
    assert "cut from 1 photographs: differences below 138.6 points" in table.chance()
    assert table.notes() == []


def test_results_are_compared_by_photographs(cell: Cell) -> None:
    names = ("fog", "snow")
    a = [of_photographs(cell, 3.0, corruption=n) for n in names]
    b = [of_photographs(cell, 4.0, corruption=n, accuracy=61.0) for n in names]
    row = compare(a, b).groups[GROUP]["source"]
    assert (row["fog"].points, row["fog"].error, row["fog"].beyond) == (11.0, 5.0, True)
    # The same photographs under both: the error of the mean may be as large as that of each.
    assert row[AVERAGE].error == 5.0
    old = compare([cell(corruption=n) for n in names], [cell(corruption=n, accuracy=61.0) for n in names])
    assert old.groups[GROUP]["source"][AVERAGE].error == pytest.approx(math.sqrt(2 * (25 + 23.79)) / 2)
    both = compare(a, [cell(corruption=n) for n in names]).groups[GROUP]["source"]["fog"]
    assert both.error == pytest.approx(math.sqrt(9 + 25))


@pytest.fixture
def shades(tmp_path: Path) -> Path:
    """Write photographs that the model of brightness is right on, but for one of four."""
    for number, shade in ((1, 10), (4, 40), (7, 70), (9, 20)):
        path = tmp_path / "shades" / str(number) / "a.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (90, 80), (shade,) * 3).save(path)
    return tmp_path / "shades"


def test_as_a_person_types_it(shades: Path, tmp_path: Path, cema_bench: Cema) -> None:
    command = (
        "--data",
        str(shades),
        "--model",
        MODEL,
        "--foundation",
        MODEL,
        "--corruptions",
        "clean,contrast",
    )
    rest = ("--severities", "1", "--out", str(tmp_path / "out"), "--side", "64")
    done = cema_bench(*command, "--methods", "source,eata", *rest, "--crops", "3", "--samples", "10")
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["settings"]["crops"] == 3
    clean = results["cells"][0]
    assert (clean["corruption"], clean["samples"], clean["photographs"]) == ("clean", 10, 4)
    # Of ten images (four photographs, the order of a shuffle) two or three are of the one that is wrong.
    order = np.tile(np.random.default_rng(0).permutation(4), 3)[:10]
    assert clean["correct"] == np.sum(order != 3)
    assert clean["standard_error"] == pytest.approx(sandwich(order != 3, order))
    assert "10 images per cell, cut from 4 photographs: differences below" in done.stdout
    again = cema_bench(*command, "--methods", "source", *rest, "--samples", "10")
    assert again.returncode != 0
    assert "crops (3 there, 1 now)" in " ".join((again.stdout + again.stderr).split())
    refused = cema_bench("--data", "digits", "--crops", "3", "--out", str(tmp_path / "other"))
    assert refused.returncode != 0
    assert "digits has images that are not cut" in " ".join((refused.stdout + refused.stderr).split())


def test_the_key_of_a_file(shades: Path, tmp_path: Path) -> None:
    (tmp_path / "bench.toml").write_text(
        f'data = "shades"\ncrops = 5\nmethods = ["source"]\ncorruptions = ["clean"]\n'
        f'[[pair]]\nmodel = "{MODEL}"\nfoundation = "{MODEL}"\n'
    )
    config = BenchConfig.make(BenchFile.load(tmp_path / "bench.toml"))
    plan = make_plan(config)
    (cell,) = RunContext(plan.config, None).execute(plan.runs[0])
    assert (cell["samples"], cell["photographs"], cell["accuracy"]) == (20, 4, 75.0)
    assert cell["standard_error"] == pytest.approx(25.0), "of four photographs one is wrong"


def test_clean_images_that_are_named_are_not_cut_again(shades: Path, tmp_path: Path) -> None:
    config = BenchConfig(data=str(shades), pair=(DIGITS_PAIR,), source_data="digits", crops=2)
    context = RunContext(config, tmp_path / "cache")
    assert len(context.dataset.clean()) == 8
    assert context.source is not None
    assert len(context.source.clean()) == 2000


def test_a_method_that_does_not_apply_has_no_error(shades: Path, bench_cache: Path) -> None:
    pair = (ModelPair(model="bench_models:layer_norm", foundation="bench_models:layer_norm"),)
    config = BenchConfig(data=str(shades), pair=pair, methods=("bn",), corruptions=("clean",), crops=2)
    plan = make_plan(config, cache=bench_cache)
    (cell,) = RunContext(plan.config, bench_cache).execute(plan.runs[0])
    assert (cell["samples"], cell["photographs"]) == (8, 4)
    assert cell["accuracy"] is cell["standard_error"] is None
    assert "BatchNorm" in cell["note"]
