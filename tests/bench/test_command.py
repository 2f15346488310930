"""`cema bench` as a person types it: real data, real models, real processes."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from cema.bench.config import DIGITS_PAIR, BenchConfig, ModelPair
from cema.bench.execute import RunContext
from cema.bench.plots import write_plots
from cema.bench.protocols import PROTOCOLS, sequence
from cema.bench.runner import make_plan
from cema.bench.tables import summarise
from cema.bench.visits import visits_of
from cema.cli.app import app
from cema.data.digits import load_digits
from cema.errors import CemaError

Cema = Callable[..., "subprocess.CompletedProcess[str]"]

SMALL = ("--data", "digits", "--corruptions", "gaussian_noise", "--severities", "3", "--samples", "128")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, cema_bench: Cema) -> tuple[Path, str]:
    """Run a small benchmark and return its folder and what it printed."""
    out = tmp_path_factory.mktemp("bench") / "out"
    done = cema_bench(*SMALL, "--methods", "source,bn,tent", "--html", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


def results_of(out: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    return results


def test_every_method_has_its_cell(finished: tuple[Path, str]) -> None:
    results = results_of(finished[0])
    assert [cell["method"] for cell in results["cells"]] == ["source", "bn", "tent"]
    for cell in results["cells"]:
        assert cell["model"] == "digits-cnn"
        assert cell["foundation"] == "digits-cnn-foundation"
        assert (cell["dataset"], cell["corruption"], cell["severity"]) == ("digits", "gaussian_noise", 3)
        assert (cell["protocol"], cell["seed"], cell["samples"]) == ("reset", 0, 128)
        assert 50 < cell["accuracy"] == 100 * cell["correct"] / 128
        assert cell["seconds"] > 0
    source, _, tent = results["cells"]
    assert (source["uploads"], source["bytes_up"], source["forwards"]) == (0, 0, 128)
    assert (tent["uploads"], tent["backwards"]) == (128, 128)
    assert tent["bytes_up"] > 128
    assert results["settings"]["seeds"] == [0]
    assert len(results["settings"]["pair"][0]["model_digest"]) == 64
    assert results["settings"]["pair"][0]["methods"]["tent"]["lr"] > 0
    assert {"python", "packages", "processor", "cores"} <= results["environment"].keys()


def test_nothing_of_this_machine_is_in_the_results(finished: tuple[Path, str]) -> None:
    assert str(finished[0].parent) not in (finished[0] / "results.json").read_text()


def test_tables_csv_and_json_agree(finished: tuple[Path, str]) -> None:
    out, printed = finished
    cells = {cell["method"]: cell for cell in results_of(out)["cells"]}
    rows = list(csv.DictReader((out / "tables.csv").read_text().splitlines()))
    text = (out / "tables.md").read_text()
    for method, cell in cells.items():
        mine = [row for row in rows if row["method"] == method]
        assert [row["corruption"] for row in mine] == ["gaussian_noise", "average"]
        assert all(float(row["accuracy"]) == pytest.approx(cell["accuracy"], abs=1e-4) for row in mine)
        assert all(float(row["bytes_up"]) == cell["bytes_up"] for row in mine)
        shown = f"{cell['accuracy']:.1f}"
        assert f"| {method} | " in text
        assert shown in text
        assert shown in printed
    for name in ("accuracy.png", "accuracy.svg", "uploads.png", "uploads.svg"):
        assert (out / name).stat().st_size > 1000


def test_the_report_has_the_numbers_of_the_tables(finished: tuple[Path, str]) -> None:
    page = (finished[0] / "report.html").read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S)
    found = json.loads(data)
    blocks = found["blocks"] if isinstance(found, dict) else found
    cells = {cell["method"]: cell for cell in results_of(finished[0])["cells"]}
    (bars,) = (block["bars"] for block in blocks if block["kind"] == "bars")
    assert {bar["name"]: bar["value"] for bar in bars} == {
        name: pytest.approx(cell["accuracy"] / 100) for name, cell in cells.items()
    }
    assert all(bar["low"] <= bar["value"] <= bar["high"] for bar in bars)
    accuracy, uploads = (block["rows"] for block in blocks if block["kind"] == "table")
    assert [row[:2] for row in accuracy] == [[name, cell["accuracy"]] for name, cell in cells.items()]
    assert [row[2] for row in uploads] == [cell["uploads"] for cell in cells.values()]


def test_the_source_row_is_the_model_itself(finished: tuple[Path, str], bench_cache: Path) -> None:
    """Score the model by hand on the images that the benchmark should have used."""
    import torch

    from cema.data.dataset import open_dataset
    from cema.models.registry import resolve

    data = open_dataset("digits", cache=bench_cache, limit=128).corrupted("gaussian_noise", 3)
    model = resolve("digits-cnn")
    with torch.inference_mode():
        predicted = model.module(torch.from_numpy(model.preprocessing(data.images))).argmax(1).numpy()
    right = int((predicted == data.labels).sum())
    assert results_of(finished[0])["cells"][0]["correct"] == right


def test_the_same_command_does_nothing_twice(finished: tuple[Path, str], cema_bench: Cema) -> None:
    out = finished[0]
    before = results_of(out)
    done = cema_bench(*SMALL, "--methods", "source,bn,tent", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "found 3 cells" in done.stdout
    assert "3 of these runs are finished, 0 are left" in done.stdout
    assert results_of(out) == before


def test_other_settings_are_refused_and_further_methods_added(
    finished: tuple[Path, str], cema_bench: Cema
) -> None:
    out = finished[0]
    before = (out / "cells.jsonl").read_bytes()
    refused = cema_bench(*SMALL, "--methods", "tent", "--set", "tent.lr=0.5", "--out", str(out))
    assert refused.returncode == 1
    assert "setting of lr" in refused.stderr
    assert "--out" in refused.stderr
    assert (out / "cells.jsonl").read_bytes() == before
    done = cema_bench(*SMALL, "--methods", "onda", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert [cell["method"] for cell in results_of(out)["cells"]] == ["source", "bn", "onda", "tent"]


def test_a_benchmark_differs_from_itself_by_nothing(finished: tuple[Path, str]) -> None:
    path = str(finished[0] / "results.json")
    done = CliRunner().invoke(app, ["bench", "compare", path, path])
    assert done.exit_code == 0, done.output
    assert "+0.0±" in done.stdout
    assert "0 of " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--methods", "tentt"], "did you mean tent"),
        (["--corruptions", "fogg"], "did you mean fog"),
        (["--protocol", "none"], "continual, continual-correlated, correlated, gradual"),
        (["--preset", "none"], "cifar10-c, digits-c, imagenet-c-cnn, imagenet-c-transformer"),
        (["--severities", "high"], "--severities"),
        (["--severities", "7"], "1 to 5"),
        (["--data", "no-such-folder", "--model", "digits-cnn"], "--foundation"),
        (["--data", "no-such.npz", "--model", "digits-cnn", "--foundation", "digits-cnn"], "no-such.npz"),
        (["--model", "no-such-model", "--foundation", "digits-cnn"], "no-such-model"),
        (["--set", "tent.rate=1"], "there are lr"),
        (["--set", "lr=1"], "METHOD.SETTING=VALUE"),
        (["--device", "tpu9"], "tpu9"),
        (["--config", "none.toml"], "none.toml"),
        (["compare", "a.json", "b.json"], "a.json"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    data = [] if "--data" in arguments or "compare" in arguments else ["--data", "digits"]
    # `cema.cli.main` prints such an error as one line; see tests/cli.
    error = CliRunner().invoke(app, ["bench", *data, *arguments]).exception
    assert isinstance(error, CemaError)
    assert expected in str(error)
    assert "\n" not in str(error)
    assert not list(tmp_path.iterdir())


def test_the_help_names_every_option() -> None:
    done = CliRunner().invoke(app, ["bench", "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    options = "preset config data model foundation weights foundation-weights methods corruptions severities protocol"
    options += " samples visits batch-size seeds device jobs set out quick edges delay rates show-settings"
    assert all(f"--{option}" in done.stdout for option in options.split())
    assert "compare" in done.stdout


def test_settings_are_shown_as_a_file_to_edit(tmp_path: Path) -> None:
    command = ["bench", "--data", "digits", "--show-settings"]
    done = CliRunner().invoke(app, [*command, "--set", "tent.lr=0.125"])
    assert done.exit_code == 0, done.output
    shown = tomllib.loads(done.stdout)["settings"]
    assert shown["tent"]["lr"] == 0.125
    assert "edge_lr" in shown["cema"]["adapt"]
    (tmp_path / "bench.toml").write_text(done.stdout)
    again = CliRunner().invoke(app, [*command, "--config", str(tmp_path / "bench.toml")])
    assert tomllib.loads(again.stdout)["settings"] == shown


MANY = (*SMALL, "--methods", "source,bn", "--seeds", ",".join(map(str, range(12))), "--jobs", "2")


def test_a_killed_benchmark_continues_where_it_stopped(
    tmp_path: Path, cema_bench: Cema, bench_command: Callable[..., list[str]]
) -> None:
    out = tmp_path / "out"
    log = (tmp_path / "log").open("wb")
    with log, subprocess.Popen(bench_command(*MANY, "--out", str(out)), stdout=log, stderr=log) as process:
        wait_for_lines(process, out / "cells.jsonl", 3)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    # Its workers notice, and go.
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
    kept = whole_lines(out / "cells.jsonl")
    assert 3 <= len(kept) < 24
    assert not (out / "results.json").exists()
    done = cema_bench(*MANY, "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"found {len(kept)} cells" in done.stdout
    assert f"{24 - len(kept)} are left" in done.stdout
    # What was there is as it was, and nothing was done twice.
    assert whole_lines(out / "cells.jsonl")[: len(kept)] == kept
    cells = results_of(out)["cells"]
    assert len(cells) == 24
    assert {(cell["method"], cell["seed"]) for cell in cells} == {
        (m, s) for m in ("source", "bn") for s in range(12)
    }
    # The order of a stream makes no difference to a model that never changes.
    assert len({cell["accuracy"] for cell in cells if cell["method"] == "source"}) == 1
    assert "±" in (out / "tables.md").read_text()


def whole_lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def wait_for_lines(process: subprocess.Popen[bytes], path: Path, count: int) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        if path.is_file() and len(whole_lines(path)) >= count:
            return
        time.sleep(0.02)  # no event tells that a file has grown
    raise AssertionError("no cells were written within three minutes")


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, bench_command: Callable[..., list[str]]) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(
        bench_command(*MANY, "--out", str(out)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=False,
        start_new_session=True,
    ) as process:
        wait_for_lines(process, out / "cells.jsonl", 1)
        os.killpg(process.pid, signal.SIGINT)
        printed = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 130
    assert "the same command goes on" in printed
    assert "Traceback" not in printed


def test_a_worker_that_dies_costs_its_run_only(
    tmp_path: Path, cema_bench: Cema, bench_command: Callable[..., list[str]]
) -> None:
    out = tmp_path / "out"
    arguments = [*SMALL, "--methods", "source,cotta", "--seeds", "0,1,2,3", "--jobs", "1", "--out", str(out)]
    with subprocess.Popen(
        bench_command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        wait_for_lines(process, out / "cells.jsonl", 1)
        for child in psutil.Process(process.pid).children():
            if "spawn_main" in " ".join(child.cmdline()):
                child.kill()
        printed = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 1
    assert "1 runs failed" in printed
    assert "ended with status -9" in printed
    assert len(results_of(out)["cells"]) == 7
    done = cema_bench(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "found 7 cells" in done.stdout
    assert len(results_of(out)["cells"]) == 8


@pytest.mark.parametrize("protocol", [name for name in PROTOCOLS if name != "reset"])
def test_every_protocol_runs(tmp_path: Path, bench_cache: Path, protocol: str) -> None:
    visits = 3 if sequence(protocol) == "recurring" else 1
    config = BenchConfig(
        data="digits",
        pair=(DIGITS_PAIR,),
        methods=("source", "tent"),
        corruptions=("gaussian_noise", "contrast"),
        severities=(2,),
        samples=96,
        batch_size=16,
        edges=2,
        protocol=protocol,
        visits=3,
    )
    plan = make_plan(config, cache=bench_cache)
    context = RunContext(plan.config, bench_cache)
    cells = [{**cell, "run": run.key} for run in plan.runs for cell in context.execute(run)]
    severities = {1, 2} if protocol == "gradual" else {2}
    assert {(cell["corruption"], cell["severity"]) for cell in cells} == {
        (name, severity) for name in ("gaussian_noise", "contrast") for severity in severities
    }
    for method in ("source", "tent"):
        mine = [cell for cell in cells if cell["method"] == method]
        assert sum(cell["samples"] for cell in mine) == 2 * 96 * visits
        assert sum(cell["uploads"] for cell in mine) == (2 * 96 * visits if method == "tent" else 0)
    assert all(cell["batch_size"] == 16 and cell["edges"] == 2 for cell in cells)
    names = {path.stem for path in write_plots(tmp_path, summarise(cells), cells)}
    assert ("stream" in names) == (protocol != "correlated" and visits == 1)
    assert ("visits" in names) == (visits > 1)


def test_a_recurring_stream_is_told_by_visit(tmp_path: Path, cema_bench: Cema) -> None:
    common = ("--data", "digits", "--corruptions", "snow,spatter", "--severities", "3", "--samples", "80")
    common += ("--methods", "source,tent", "--jobs", "1", "--set", "tent.lr=0.3", "--batch-size", "32")
    out, once = tmp_path / "out", tmp_path / "once"
    done = cema_bench(*common, "--protocol", "recurring", "--visits", "3", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "recurring (3 visits)" in done.stdout
    results = results_of(out)
    assert results["settings"]["visits"] == 3
    cells = {(cell["method"], cell["corruption"]): cell for cell in results["cells"]}
    for cell in cells.values():
        assert (cell["samples"], cell["images"], len(cell["visits"])) == (240, 80, 3)
        assert np.mean(cell["visits"]) == pytest.approx(cell["accuracy"])
    # A model that never changes sees the same images at each visit.
    assert all(len(set(cells["source", name]["visits"])) == 1 for name in ("snow", "spatter"))
    # The first visits are the continual stream.
    assert cema_bench(*common, "--protocol", "continual", "--out", str(once)).returncode == 0
    for cell in results_of(once)["cells"]:
        assert cells[cell["method"], cell["corruption"]]["visits"][0] == cell["accuracy"]
    # At such a rate Tent collapses, and both tables say so.
    worse = [
        a > b
        for name in ("snow", "spatter")
        for a, b in zip(cells["source", name]["visits"], cells["tent", name]["visits"], strict=True)
    ]
    assert sum(worse) >= 4
    assert f"{sum(worse)} of 6" in done.stdout
    assert f"| {sum(worse)} of 6 |" in (out / "tables.md").read_text()
    rows = list(csv.DictReader((out / "visits.csv").read_text().splitlines()))
    mine = [row for row in rows if (row["method"], row["corruption"]) == ("tent", "spatter")]
    assert [float(row["accuracy"]) for row in mine] == pytest.approx(cells["tent", "spatter"]["visits"])
    assert [float(row["source"]) for row in mine] == pytest.approx(cells["source", "spatter"]["visits"])
    assert "below source" in (once / "tables.md").read_text()


def test_a_method_that_does_not_apply_has_no_visits(bench_cache: Path) -> None:
    name = "bench_models:layer_norm"
    config = BenchConfig(
        data="digits",
        pair=(ModelPair(model=name, foundation=name),),
        methods=("bn",),
        corruptions=("clean",),
        samples=32,
        protocol="recurring",
        visits=2,
    )
    plan = make_plan(config, cache=bench_cache)
    (cell,) = RunContext(plan.config, bench_cache).execute(plan.runs[0])
    assert (cell["samples"], cell["images"]) == (64, 32)
    assert cell["accuracy"] is cell["visits"] is None
    (table,) = visits_of([cell])
    assert table.rows["bn"].means == ()


def test_a_method_that_does_not_apply_says_why(
    tmp_path: Path, bench_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "bench_models:layer_norm"
    config = BenchConfig(
        data="digits",
        pair=(ModelPair(model=name, foundation=name),),
        methods=("source", "bn", "onda", "tent"),
        corruptions=("clean",),
        samples=32,
    )
    plan = make_plan(config, cache=bench_cache)
    assert plan.config.severities == (0,)
    context = RunContext(plan.config, bench_cache)
    cells = {run.method: context.execute(run)[0] for run in plan.runs}
    for method in ("bn", "onda"):
        assert cells[method]["accuracy"] is None
        assert cells[method]["uploads"] is None
        assert cells[method]["samples"] == 32
        assert "BatchNorm" in cells[method]["note"]
    assert cells["tent"]["accuracy"] is not None
    assert "note" not in cells["tent"]


def test_clean_images_for_corrupted_data(tmp_path: Path, bench_cache: Path) -> None:
    digits = load_digits()
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    images = np.repeat(digits.test_images[:20], 3, axis=3)
    np.save(folder / "labels.npy", np.tile(digits.test_labels[:20], 5))
    np.save(folder / "fog.npy", np.tile(images, (5, 1, 1, 1)))
    config = BenchConfig(data=str(folder), pair=(DIGITS_PAIR,), methods=("eata",), severities=(1,))
    plan = make_plan(config, cache=bench_cache)
    assert plan.config.corruptions == ("fog",)
    without = RunContext(plan.config, bench_cache).execute(plan.runs[0])[0]
    assert without["accuracy"] is None
    assert "source images" in without["note"]
    plan = make_plan(msgspec.structs.replace(config, source_data="digits"), cache=bench_cache)
    assert RunContext(plan.config, bench_cache).execute(plan.runs[0])[0]["accuracy"] is not None


def test_every_method_has_a_row_on_both_architectures(tmp_path: Path, cema_bench: Cema) -> None:
    """Run all methods, CEMA with a delay, on the convolutional pair and on a Transformer pair."""
    from cema.methods.registry import METHODS

    out = tmp_path / "out"
    arguments = ["--preset", "digits-c", "--quick", "--samples", "64", "--corruptions", "contrast"]
    done = cema_bench(*arguments, "--severities", "5", "--delay", "1", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    cells = {(cell["model"], cell["method"]): cell for cell in results_of(out)["cells"]}
    assert {method for _, method in cells} == set(METHODS)
    missing = {key for key, cell in cells.items() if cell["accuracy"] is None}
    assert missing == {("digits-vit", name) for name in ("bn", "bn-prior", "onda")}
    assert all("BatchNorm" in cells[key]["note"] for key in missing)
    assert cells["digits-cnn", "cema"]["delay"] == 1
    assert "n/a" in (out / "tables.md").read_text()


def test_data_and_weights_of_ones_own(tmp_path: Path, cema_bench: Cema) -> None:
    """Run an archive of images and a file of weights, from a TOML file beside them."""
    from importlib import resources

    digits = load_digits()
    np.savez(tmp_path / "mine.npz", x=digits.test_images[:40], y=digits.test_labels[:40])
    weights = resources.files("cema.models") / "weights" / "digits-cnn.safetensors"
    (tmp_path / "w.safetensors").write_bytes(weights.read_bytes())
    (tmp_path / "bench.toml").write_text(
        'data = "mine.npz"\nmethods = ["source"]\ncorruptions = ["clean", "fog"]\nseverities = [1]\n'
        '[[pair]]\nmodel = "digits-cnn"\nweights = "w.safetensors"\nfoundation = "digits-cnn-foundation"\n'
    )
    done = cema_bench("--config", str(tmp_path / "bench.toml"), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    results = results_of(tmp_path / "out")
    assert [cell["corruption"] for cell in results["cells"]] == ["clean", "fog"]
    assert results["cells"][0]["dataset"] == f"mine@{results['settings']['data_digest'][:8]}"
    assert results["cells"][0]["samples"] == 40
    assert results["cells"][0]["accuracy"] > 90
    assert str(tmp_path) not in json.dumps(results)


def test_whose_severities_and_what_size_can_be_said(tmp_path: Path, cema_bench: Cema) -> None:
    options = ("--methods", "source", "--out", str(tmp_path / "out"))
    for constants, worse in (("imagenet", 0), ("cifar", 1)):
        done = cema_bench(*SMALL, *options[:2], "--out", str(tmp_path / str(worse)), "--constants", constants)
        assert done.returncode == 0, done.stdout + done.stderr
    hard, mild = (results_of(tmp_path / str(i)) for i in range(2))
    assert hard["cells"][0]["accuracy"] < mild["cells"][0]["accuracy"]
    assert mild["settings"]["constants"] == "cifar"
    again = cema_bench(*SMALL, *options[:2], "--out", str(tmp_path / "1"), "--constants", "imagenet")
    assert again.returncode != 0, "another benchmark's folder"
    done = cema_bench(*SMALL, *options, "--constants", "mnist")
    assert done.returncode != 0
    assert "expected cifar or imagenet" in " ".join((done.stdout + done.stderr).split())
    done = cema_bench(*SMALL, *options, "--side", "-1")
    assert "side: expected at least 0" in " ".join((done.stdout + done.stderr).split())
