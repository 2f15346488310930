"""The table of speeds: its programs run, and say what the table expects."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from cema.adapt.norm import AdaptiveBatchNorm, normalising

FOLDER = Path(__file__).parents[2] / "benchmarks" / "speed"


def program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_table_is_printed_and_written(tmp_path: Path) -> None:
    command = [sys.executable, FOLDER / "bench.py", "--only", "start", "--before", "none", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--out", tmp_path], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "bench.json").read_text())
    rows = {row["name"]: row for row in document["rows"]}
    assert len(rows) == 2
    for row in rows.values():
        bound, value = float(row["goal"].split()[1]), row["value"]
        assert row["met"] is (value <= bound)
        assert row["lowest"] <= value <= row["highest"]
    assert document["machine"]["cores"] >= 1
    assert document["failed"] == {}


def test_unknown_programs_are_named(tmp_path: Path) -> None:
    command = [sys.executable, FOLDER / "bench.py", "--only", "stepp"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "stepp" in done.stderr
    assert "step-digits" in done.stderr


def test_every_row_is_measured_once_by_a_program_that_is_there() -> None:
    rows = program("speed_rows")
    assert len({row.key for row in rows.ROWS}) == len({row.name for row in rows.ROWS}) == len(rows.ROWS)
    assert all((FOLDER / found.file).exists() for found in rows.PROGRAMS)
    told = "".join((FOLDER / found.file).read_text() for found in rows.PROGRAMS)
    for row in rows.ROWS:
        start = row.key.rpartition(".")[0] if row.key.startswith("step.") else row.key
        assert start.split(".")[0] in told, row.key


def test_the_textbook_renormalises_as_the_product_does() -> None:
    torch.manual_seed(0)
    textbook = program("step_textbook")
    layers = [nn.BatchNorm2d(3).double() for _ in range(2)]
    for layer in layers:
        layer.running_mean = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64)
        layer.running_var = torch.tensor([0.5, 1.5, 2.0], dtype=torch.float64)
    written, product = textbook.Renormalised(layers[0]), AdaptiveBatchNorm(layers[1])
    written.learning = True
    inputs = [torch.linspace(-2, 3, 5 * 3 * 16, dtype=torch.float64).reshape(5, 3, 4, 4) for _ in range(2)]
    inputs = [x.sin().requires_grad_() for x in inputs]
    weights = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    (written(inputs[0]) * weights).sum().backward()
    with normalising([product], "renorm"):
        (product(inputs[1]) * weights).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-9, atol=1e-9)
    for name in ("weight", "bias"):
        one, other = (getattr(layer, name).grad for layer in layers)
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
