"""The examples run from outside the package, and pass the suites that a stranger runs on his own classes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np
import pytest

from cema.adapt.config import AdaptConfig
from cema.cloud.config import CloudConfig
from cema.cloud.worker.rounds import open_cohort
from cema.edge.agent import EdgeAgent
from cema.edge.config import EdgeConfig
from cema.models.registry import resolve
from cema.ondevice.selection.base import NotesChanges
from cema.ondevice.selection.config import SelectionConfig
from cema.testing.datasets import DatasetSuite
from cema.testing.learners import LearnerSuite
from cema.testing.methods import MethodSuite
from cema.testing.selectors import SelectorSuite

EXAMPLES = Path(__file__).parents[2] / "examples"
METHOD = f"{EXAMPLES}/own_method.py:InfoMax"
RULE = f"{EXAMPLES}/own_selector.py:LeastSure"
DATA = f"{EXAMPLES}/own_dataset.py:Shapes"
ALGORITHM = f"{EXAMPLES}/own_learner.py:ManySteps"


class TestOwnMethod(MethodSuite):
    __test__ = True
    method = METHOD
    settings: ClassVar[dict[str, float]] = {"lr": 0.05}


class TestOwnSelector(SelectorSuite):
    __test__ = True
    config = SelectionConfig(rule=RULE, options={"share": 0.2, "memory": 64})

    def test_a_rule_need_not_note_changes(self) -> None:
        assert not isinstance(self.make(), NotesChanges)


class TestOwnLearner(LearnerSuite):
    __test__ = True
    config = AdaptConfig(
        algorithm=ALGORITHM, options={"replays": 2}, fresh=8, replayed=12, replay_from=16, capacity=40
    )

    def test_steps_are_numbered_and_counted(self) -> None:
        learner = self.make()
        # Replay waits for 16 samples: from the second batch on there are two steps more.
        assert [self.feed(learner, step).step for step in range(3)] == [1, 4, 7]
        assert learner.steps == 7


class TestOwnDataset(DatasetSuite):
    __test__ = True

    def spec(self, folder: Path) -> str:
        return DATA


def test_the_examples_are_short() -> None:
    for path in EXAMPLES.glob("own_*.py"):
        assert len(path.read_text().splitlines()) < 60, path.name
    algorithm, _ = (EXAMPLES / "cema_in_100_lines.py").read_text().split("if __name__")
    assert len([line for line in algorithm.splitlines() if line.strip()]) <= 100


def test_method_model_selector_and_learner_run_through_the_benchmark(tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = {
        "cema.rule": RULE,
        "cema.options": '{"share": 0.5}',
        "cema.adapt.algorithm": ALGORITHM,
        "cema.adapt.options": '{"replays": 2}',
        "cema.adapt.replay_from": "32",
        f"{METHOD}.lr": "0.01",
    }
    command = [
        *(sys.executable, "-m", "cema", "bench", "--data", "digits", "--cache", str(tmp_path / "cache")),
        *("--model", f"{EXAMPLES}/own_model.py:build", "--foundation", "digits-cnn-foundation"),
        *("--methods", f"source,{METHOD},cema", "--corruptions", "fog", "--severities", "5"),
        *("--samples", "256", "--jobs", "1", "--out", str(out)),
        *(part for name, value in settings.items() for part in ("--set", f"{name}={value}")),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cells = {cell["method"]: cell for cell in json.loads((out / "results.json").read_text())["cells"]}
    assert cells.keys() == {"source", METHOD, "cema"}
    assert cells[METHOD]["uploads"] == 256
    assert 64 < cells["cema"]["uploads"] < 192
    assert cells[METHOD]["correct"] > cells["source"]["correct"] > 26


def test_a_device_selects_by_a_rule_of_ones_own(recorded: Path) -> None:
    config = msgspec.structs.replace(
        EdgeConfig.load(recorded / "edge.toml"),
        cloud=None,
        selection=SelectionConfig(rule=RULE, options={"share": 0.25}),
    )
    images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), np.uint8)
    with EdgeAgent(config) as agent:
        selected = agent.predict(images).selected
        assert selected.sum() == 16
        status = agent.status()
        assert status.e_max is None
        threshold = status.selection["threshold"]
    with EdgeAgent(config) as agent:  # goes on where it was
        assert agent.status().selection["threshold"] == threshold


def test_a_cloud_learns_with_an_algorithm_of_ones_own(recorded: Path) -> None:
    config = CloudConfig.load(recorded / "cloud.toml")
    cohort = msgspec.structs.replace(
        config.cohort[0],
        adapt=msgspec.structs.replace(config.cohort[0].adapt, algorithm=ALGORITHM, options={"replays": 2}),
    )
    store = config.open_store()
    worker = open_cohort(store, config, cohort)
    steps = worker.learner.steps
    assert type(worker.learner).__name__ == "ManySteps"
    assert worker.run_once()
    assert worker.learner.steps == steps + 3
    store.close()


@pytest.mark.parametrize(("corruption", "least"), [("fog", 0.43)])
def test_a_hundred_lines_are_the_products_row(corruption: str, least: float) -> None:
    command = [sys.executable, str(EXAMPLES / "cema_in_100_lines.py"), corruption, "5"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    percent = [float(word.strip("%,")) / 100 for word in printed if "%" in word]
    mine, my_share, row, share = percent
    assert mine > least
    assert mine == pytest.approx(row, abs=0.02)
    assert my_share == pytest.approx(share, abs=0.03)


def test_an_own_model_is_the_same_at_every_call() -> None:
    first, second = (resolve(f"{EXAMPLES}/own_model.py:build") for _ in range(2))
    for key, value in first.module.state_dict().items():
        assert value.equal(second.module.state_dict()[key])


def test_a_data_set_of_ones_own_runs_through_the_benchmark(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [
        *(sys.executable, "-m", "cema", "bench", "--data", DATA, "--cache", str(tmp_path / "cache")),
        *("--model", "digits-cnn", "--foundation", "digits-cnn-foundation", "--methods", "source"),
        *("--corruptions", "fog", "--severities", "5", "--samples", "64", "--jobs", "1", "--out", str(out)),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (cell,) = json.loads((out / "results.json").read_text())["cells"]
    assert (cell["dataset"].partition("@")[0], cell["samples"]) == ("shapes", 64)
