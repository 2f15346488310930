"""The folder of results: durable, resumable, and never of two minds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from cema.bench.config import BenchConfig, ModelPair
from cema.bench.execute import Scorer
from cema.bench.plan import Pair, Run, make_runs
from cema.bench.protocols import Condition, make_schedule, streams
from cema.bench.results import CELLS, ResultsFolder, read_results, write_results
from cema.errors import ConfigError, FormatError


def plan(settings: dict[str, Any] | None = None, digest: str = "e", **changes: Any) -> list[Run]:
    models = ModelPair(model="m", foundation="f")
    config = BenchConfig(
        **(
            {"data": "digits", "pair": (models,), "corruptions": ("fog", "snow"), "severities": (3,)}
            | changes
        )
    )
    pair = Pair(models, digest, "f", {"source": {}, "tent": settings or {"lr": 0.1}}, 10)
    return make_runs(config, [pair], "digits", "d")


def cells_of(run: Run) -> list[dict[str, Any]]:
    return [{"method": run.method, "corruption": s.corruption, "accuracy": 1.0} for s in run.segments]


def test_a_finished_run_is_there_when_opened_again(tmp_path: Path) -> None:
    runs = plan()
    with ResultsFolder(tmp_path / "out") as folder:
        assert folder.check(runs) == set()
        folder.add(runs[0], cells_of(runs[0]))
    with ResultsFolder(tmp_path / "out") as folder:
        assert folder.check(runs) == {runs[0].key}
        assert [cell["run"] for cell in folder.cells()] == [runs[0].key]


def test_cells_are_named_so_that_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    with ResultsFolder(tmp_path) as folder:
        run = plan()[0]
        folder.add(run, cells_of(run))
        folder.finished["before"] = {"facts": {"dataset": "old"}, "cells": cells_of(run)}
        assert [cell["dataset"] for cell in folder.cells()] == ["digits@d", "old"]
        assert [cell["dataset"] for cell in folder.cells({("digits", "d"): "digits"})] == ["digits", "old"]


def test_a_torn_line_is_cut_off_and_its_run_done_again(tmp_path: Path) -> None:
    runs = plan()
    with ResultsFolder(tmp_path) as folder:
        for run in runs[:2]:
            folder.add(run, cells_of(run))
    whole = (tmp_path / CELLS).read_bytes()
    for cut in (1, 20, len(whole.splitlines()[1])):
        (tmp_path / CELLS).write_bytes(whole[:-cut])
        with ResultsFolder(tmp_path) as folder:
            assert folder.check(runs) == {runs[0].key}
            folder.add(runs[1], cells_of(runs[1]))
        assert (tmp_path / CELLS).read_bytes() == whole


def test_what_is_no_line_of_ours_is_refused_with_its_number(tmp_path: Path) -> None:
    with ResultsFolder(tmp_path) as folder:
        folder.add(plan()[0], [])
    whole = (tmp_path / CELLS).read_text()
    for line in ("hello\n", '{"key": "a", "facts": {}, "cells": []}\n'):
        (tmp_path / CELLS).write_text(whole + line)
        with pytest.raises(ConfigError, match="line 2"):
            ResultsFolder(tmp_path)


def test_two_cannot_write_at_once(tmp_path: Path) -> None:
    with ResultsFolder(tmp_path), pytest.raises(ConfigError, match="another benchmark"):
        ResultsFolder(tmp_path)
    with ResultsFolder(tmp_path):
        pass


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="out"):
        ResultsFolder(tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"settings": {"lr": 0.2}}, r"tent on fog 3.*setting of lr"),
        ({"samples": 5}, r"samples \(None there, 5 now\)"),
        ({"batch_size": 1}, r"batch_size \(64 there, 1 now\)"),
        ({"crops": 10}, r"crops \(1 there, 10 now\)"),
        ({"digest": "other"}, "model_digest"),
    ],
)
def test_the_same_cells_measured_otherwise_are_refused(
    tmp_path: Path, changes: dict[str, Any], difference: str
) -> None:
    with ResultsFolder(tmp_path) as folder:
        for run in plan():
            folder.add(run, cells_of(run))
    with ResultsFolder(tmp_path) as folder, pytest.raises(ConfigError, match=f"{difference}.*another --out"):
        folder.check(plan(**changes))


def test_what_is_replaced_stays_replaced_also_when_it_is_stopped_half_way(tmp_path: Path) -> None:
    old, new = plan(), plan(settings={"lr": 0.2})
    with ResultsFolder(tmp_path) as folder:
        for run in old:
            folder.add(run, cells_of(run))
    kept = {run.key for run in old} & {run.key for run in new}
    with ResultsFolder(tmp_path) as folder:
        assert folder.check(new, replace=True) == kept == folder.finished.keys()
        first = next(run for run in new if run.key not in kept)
        folder.add(first, cells_of(first))
    with ResultsFolder(tmp_path) as folder:
        assert first.key in folder.finished
        assert len(folder.cells()) == len(old), "the old line of the same cell does not count"
        assert folder.check(new, replace=True) == kept | {first.key}
        for run in new:
            if run.key not in folder.finished:
                folder.add(run, cells_of(run))
    with ResultsFolder(tmp_path) as folder:
        assert folder.check(new) == {run.key for run in new} == folder.finished.keys()


@pytest.mark.parametrize(
    "changes", [{"seeds": (1,)}, {"corruptions": ("frost",)}, {"severities": (5,)}, {"protocol": "continual"}]
)
def test_further_cells_are_welcome(tmp_path: Path, changes: dict[str, Any]) -> None:
    with ResultsFolder(tmp_path) as folder:
        for run in plan():
            folder.add(run, cells_of(run))
    with ResultsFolder(tmp_path) as folder:
        assert folder.check(plan(**changes)) == set()
        assert folder.check(plan()) == {run.key for run in plan()}


def test_the_key_is_of_everything_that_decides(tmp_path: Path) -> None:
    keys = [
        {run.key for run in plan(**changes)}
        for changes in (
            {},
            {"settings": {"lr": 0.3}},
            {"digest": "x"},
            {"samples": 3},
            {"seeds": (4,)},
            {"edges": 2},
            {"device": "cuda"},
            {"dtype": "bfloat16"},
        )
    ]
    assert all(len(group) == 4 for group in keys)
    # Source has no settings: its two runs are the same under other ones of Tent.
    assert len(set().union(*keys)) == 8 * 4 - 2


def test_results_are_written_whole_and_read_back(tmp_path: Path) -> None:
    results = {"cema": "1", "settings": {"a": [1]}, "cells": [{"accuracy": None}, {"accuracy": 1.5}]}
    write_results(tmp_path / "results.json", results)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert read_results(tmp_path / "results.json") == results
    # A line for each cell.
    assert '  {"accuracy": 1.5}\n' in (tmp_path / "results.json").read_text()


@pytest.mark.parametrize("text", ["", "[]", '{"cells": 3}', "{}"])
def test_what_is_no_result_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(FormatError, match=r"r\.json"):
        read_results(tmp_path / "r.json")
    with pytest.raises(FormatError, match="no such file"):
        read_results(tmp_path / "none.json")


def test_a_tally_by_hand() -> None:
    segments = streams("continual", ["fog", "snow"], [3])[0]
    schedule = make_schedule("continual", segments, [0] * 5, batch=4, seed=0)
    scorer = Scorer(schedule)
    for batch, correct in enumerate(([True] * 4, [False], [True, False, True, False], [True])):
        scorer.book(batch, np.array(correct), (batch, 10 * batch, 100, 0), 0.5)
    fog, snow = scorer.cells()
    assert (fog["corruption"], fog["severity"], fog["samples"], fog["correct"]) == ("fog", 3, 5, 4)
    assert (fog["accuracy"], snow["accuracy"]) == (80.0, 60.0)
    assert (fog["uploads"], fog["bytes_up"], fog["forwards"], fog["seconds"]) == (1, 10, 200, 1.0)
    assert (snow["uploads"], snow["bytes_up"]) == (5, 50)
    assert (fog["curve"], snow["curve"]) == ([[5, 80.0]], [[10, 60.0]])


def test_each_visit_is_scored_by_itself() -> None:
    segments = streams("recurring", ["fog", "snow"], [3], visits=3)[0]
    schedule = make_schedule("recurring", segments, [0] * 4, batch=4, seed=0)
    scorer = Scorer(schedule)
    for batch, right in enumerate((4, 0, 3, 1, 2, 2)):
        scorer.book(batch, np.arange(4) < right, (1, 10, 4, 0), 0.5)
    fog, snow = scorer.cells()
    assert fog["visits"] == [100.0, 75.0, 50.0]
    assert snow["visits"] == [0.0, 25.0, 50.0]
    assert (fog["accuracy"], snow["accuracy"]) == (75.0, 25.0)
    assert (fog["samples"], fog["images"], fog["uploads"], fog["bytes_up"]) == (12, 4, 3, 30)
    # A point for each visit, at its end in the stream.
    assert fog["curve"] == [[4, 100.0], [12, 75.0], [20, 50.0]]
    once = make_schedule("continual", segments[:2], [0] * 4, batch=4, seed=0)
    assert not {"visits", "images"} & Scorer(once).cells()[0].keys()


def test_no_point_of_a_curve_is_of_two_visits() -> None:
    segments = streams("recurring", ["fog", "snow"], [3], visits=8)[0]
    schedule = make_schedule("recurring", segments, [0] * 300, batch=300, seed=0)
    scorer = Scorer(schedule)
    for batch in range(16):
        scorer.book(batch, np.full(300, batch % 4 == 0), (0, 0, 0, 0), 0.0)
    fog, _ = scorer.cells()
    # Twenty points are two for each of eight visits.
    assert [accuracy for _, accuracy in fog["curve"]] == [100.0, 100.0, 0.0, 0.0] * 4


def test_the_number_of_visits_counts_where_there_are_any() -> None:
    def keys(**changes: Any) -> list[str]:
        return [run.key for run in plan(**changes)]

    assert keys() == keys(visits=3)
    assert keys(protocol="continual") == keys(protocol="continual", visits=3)
    assert not set(keys(protocol="recurring")) & set(keys(protocol="recurring", visits=3))
    assert all("visits" not in run.facts for run in plan())
    assert keys(protocol="recurring") == keys(protocol="recurring", concentration=0.5)
    for protocol in ("recurring-correlated", "continual-correlated", "mixed-correlated", "correlated"):
        assert not set(keys(protocol=protocol)) & set(keys(protocol=protocol, concentration=0.5))


def test_other_visits_of_the_same_cells_are_refused(tmp_path: Path) -> None:
    with ResultsFolder(tmp_path) as folder:
        for run in plan(protocol="recurring"):
            folder.add(run, cells_of(run))
    with (
        ResultsFolder(tmp_path) as folder,
        pytest.raises(ConfigError, match=r"visits \(10 there, 3 now\)"),
    ):
        folder.check(plan(protocol="recurring", visits=3))


def test_a_curve_has_few_points_of_many_samples() -> None:
    segments = streams("continual", ["fog", "snow"], [3])[0]
    for count, points in ((40, 1), (120, 2), (1000, 20), (5000, 20)):
        schedule = make_schedule("continual", segments, [0] * count, batch=count, seed=0)
        scorer = Scorer(schedule)
        for batch in range(2):
            scorer.book(batch, np.arange(count) < count // 2, (0, 0, 0, 0), 0.0)
        fog, snow = scorer.cells()
        assert len(fog["curve"]) == len(snow["curve"]) == points
        assert (fog["curve"][-1][0], snow["curve"][-1][0]) == (count, 2 * count)
        assert np.mean([accuracy for _, accuracy in fog["curve"]]) == pytest.approx(50.0, abs=1.0)


def test_what_a_mixed_batch_cost_is_shared_and_adds_up() -> None:
    segments = tuple(Condition(name, 3) for name in ("fog", "snow", "frost"))
    schedule = make_schedule("mixed", segments, [0] * 7, batch=5, seed=1)
    scorer = Scorer(schedule)
    for batch in range(schedule.batches):
        size = int(schedule.bounds[batch + 1] - schedule.bounds[batch])
        scorer.book(batch, np.ones(size, bool), (3, 1001, size, 0), 0.1)
    cells = scorer.cells()
    assert sum(cell["uploads"] for cell in cells) == 3 * schedule.batches
    assert sum(cell["bytes_up"] for cell in cells) == 1001 * schedule.batches
    # Every sample costs one pass, so the shares are exact.
    assert [cell["forwards"] for cell in cells] == [7, 7, 7]
    assert all(cell["accuracy"] == 100.0 for cell in cells)


def test_a_configuration_survives_the_way_to_a_worker() -> None:
    import pickle

    config = BenchConfig(
        data="digits", pair=(ModelPair(model="m", foundation="f"),), settings={"a": {"b": 1}}
    )
    assert pickle.loads(pickle.dumps(config)) == config
    assert msgspec.to_builtins(config)["codec"]["codec"] == "auto"
