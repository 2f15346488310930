"""A benchmark from start to end: plan, images, runs, tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from rich.console import Console

from cema.bench.config import QUICK_SAMPLES, BenchConfig, check_names
from cema.bench.execute import RunContext
from cema.bench.html import REPORT, write_html
from cema.bench.hyperparameters import check_methods
from cema.bench.plan import Pair, Run, describe_pair, make_runs, with_class_order
from cema.bench.plots import write_plots
from cema.bench.progress import ProgressDisplay, print_wide
from cema.bench.protocols import CLEAN, sequence
from cema.bench.results import RESULTS, ResultsFolder, data_name, environment, write_results
from cema.bench.tables import console_table, summarise, write_csv, write_markdown
from cema.bench.visits import visits_csv, visits_markdown, visits_of, visits_table
from cema.bench.workers import Failed, Prepare, Task, Workers, available_cores
from cema.data.base import known_corruptions
from cema.data.corruptions import Constants
from cema.errors import CemaError
from cema.models.device import why_unusable

if TYPE_CHECKING:
    from cema.data.base import Dataset
    from cema.data.class_order import FolderClasses

__all__ = ["Plan", "make_plan", "run_benchmark"]


@dataclass(frozen=True)
class Plan:
    """What a configuration comes to.

    Attributes
    ----------
    config : BenchConfig
        With methods and corruptions named.
    dataset : Dataset
        The data.
    pairs : tuple of Pair
        The models, with every method's settings.
    runs : tuple of Run
        In the order of the tables.
    source_digest : str or None
        Digest of the clean images that were named beside the data.
    notes : tuple of str
        How the classes of the data are scored on the models' logits.
    """

    config: BenchConfig
    dataset: Dataset
    pairs: tuple[Pair, ...]
    runs: tuple[Run, ...]
    source_digest: str | None
    notes: tuple[str, ...] = ()


def make_plan(config: BenchConfig, *, cache: Path | None = None, quick: bool = False) -> Plan:
    """Open data and models, and find out what there is to run.

    Parameters
    ----------
    config : BenchConfig
        What is asked for.
    cache : Path, optional
        Where corrupted images are kept; None for the user's cache.
    quick : bool
        Take fewer samples and corruptions, where their number is not asked for.

    Raises
    ------
    CemaError
        If data, models, methods, corruptions or settings are not to be had; nothing was measured then.
    """
    from cema.methods.registry import METHODS  # noqa: PLC0415 - with torch, which only a benchmark that runs needs

    methods = config.methods or tuple(METHODS)
    check_methods([*methods, *config.settings])
    samples = config.samples or (QUICK_SAMPLES if quick else None)
    config = msgspec.structs.replace(config, methods=methods, samples=samples)
    _check_device(config.device)
    context = RunContext(config, cache)
    dataset, source = context.dataset, context.source
    constants: Constants = getattr(dataset, "constants", "imagenet")
    config = config.settled(dataset.corruptions, constants=constants, quick=quick)
    described = [describe_pair(pair, config, dataset.family, methods) for pair in config.pair]
    ordered = [with_class_order(pair, dataset) for pair in described]
    pairs = tuple(pair for pair, _ in ordered)
    source_digest = None if source is None else source.digest
    runs = make_runs(config, pairs, dataset.name, dataset.digest, source_digest)
    notes = tuple(dict.fromkeys(said for _, said in ordered if said))
    return Plan(config, dataset, pairs, tuple(runs), source_digest, notes)


def run_benchmark(
    config: BenchConfig,
    out: Path,
    console: Console,
    *,
    jobs: int | None = None,
    cache: Path | None = None,
    quick: bool = False,
    replace: bool = False,
    html: bool = False,
) -> dict[str, Any]:
    """Run a benchmark, or what is left of it, and write its tables.

    Parameters
    ----------
    config, cache, quick
        As for `make_plan`.
    out : Path
        The folder of results. Runs that it holds are not done again.
    console : Console
        Where progress and tables are shown.
    jobs : int, optional
        How many runs go on at a time; by default one for each core, and one on an accelerator.
    replace : bool
        Measure again what `out` holds as measured with other settings or other code.
    html : bool
        Write ``report.html``, too.

    Returns
    -------
    dict
        What ``results.json`` holds.

    Raises
    ------
    CemaError
        If the benchmark cannot begin, images cannot be made, or runs failed: then with all others finished and written.
    """
    plan = make_plan(config, cache=cache, quick=quick)
    jobs = jobs or (available_cores() if plan.config.device == "cpu" else 1)
    with ResultsFolder(out) as folder:
        finished = folder.check(plan.runs, replace=replace)
        _announce(console, plan, folder, len(finished))
        left = [run for run in plan.runs if run.key not in finished]
        failures: list[Failed] = []
        if left:
            with (
                Workers(plan.config, cache, min(jobs, len(left))) as workers,
                ProgressDisplay(console, jobs) as display,
            ):
                _prepare(workers, display, left, jobs)
                display.begin_runs(plan.runs, finished, folder.cells())
                failures = _measure(workers, display, left, folder)
        results = _collect(plan, folder)
    _write(out, results, console, html=html)
    if failures:
        raise CemaError(_explain(failures, out))
    return results


def _announce(console: Console, plan: Plan, folder: ResultsFolder, finished: int) -> None:
    config = plan.config
    shown_name = data_name(config.data, plan.dataset.name, plan.dataset.digest)
    visits = f" ({config.visits} visits)" if sequence(config.protocol) == "recurring" else ""
    console.print(
        f"{shown_name}, {config.protocol}{visits}: {len(config.methods)} methods, {len(config.corruptions)} "
        f"corruptions at {len(config.severities)} severities, {len(config.pair)} pairs of models, "
        f"{len(plan.runs)} runs",
        highlight=False,
        soft_wrap=True,
    )
    for line in (*plan.notes, *_warnings(plan)):
        # Folders may have names that are no UTF-8; the console could not write these.
        line = line.encode("utf-8", "backslashreplace").decode()  # noqa: PLW2901
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if folder.finished:
        cells = sum(len(record["cells"]) for record in folder.finished.values())
        console.print(
            f"found {cells} cells in {folder.path}: {finished} of these runs are finished, "
            f"{len(plan.runs) - finished} are left",
            highlight=False,
            soft_wrap=True,
        )


def _warnings(plan: Plan) -> list[str]:
    """Say what of the data is not used, and when they cannot tell methods apart."""
    said = []
    folders: FolderClasses | None = getattr(plan.dataset, "folder_classes", None)
    if folders is not None and folders.passed_over:
        said.append(f"warning: passed over in {plan.dataset.name}: {folders.passed_over}")
    dataset, config = plan.dataset, plan.config
    if dataset.corruptions and config.corruptions[0] != CLEAN:  # published: nothing is made here
        images = dataset.corrupted(config.corruptions[0], config.severities[0])
    else:
        images = dataset.clean()
    if len(np.unique(images.labels)) == 1:
        said.append(
            f"warning: all {len(images)} images are of one class. Their accuracy means little: a model that always "
            "answers this class scores 100, and adaptation drives models to just that. Add images of other classes"
        )
    return said


def _prepare(workers: Workers, display: ProgressDisplay, runs: Sequence[Run], jobs: int) -> None:
    """Make the images that the runs want, each set once, before the first run."""
    conditions = [
        condition
        for condition in dict.fromkeys(segment for run in runs for segment in run.segments)
        if condition.corruption != CLEAN
    ]
    if not conditions:
        return
    display.begin_images(conditions)
    # With fewer sets than processes, each set is shared among several more.
    tasks = [Prepare(condition, max(1, jobs // len(conditions))) for condition in conditions]

    def progress(task: Task, done: int, total: int) -> None:
        assert isinstance(task, Prepare)  # noqa: S101 - nothing else was given
        display.images(task.condition, done, total)

    for outcome in workers.run(tasks, progress=progress, idle=display.refresh):
        if isinstance(outcome, Failed):
            raise CemaError(outcome.message)
        progress(outcome.task, 1, 1)


def _measure(
    workers: Workers, display: ProgressDisplay, runs: Sequence[Run], folder: ResultsFolder
) -> list[Failed]:
    """Do the runs and keep each one's cells as it finishes; return those that failed."""
    by_key = {run.key: run for run in runs}
    failures = []

    def progress(task: Task, done: int, total: int) -> None:
        assert isinstance(task, Run)  # noqa: S101 - nothing else was given
        display.run(task, done, total)

    for outcome in workers.run(runs, progress=progress, idle=display.refresh):
        assert isinstance(outcome.task, Run)  # noqa: S101 - nothing else was given
        if isinstance(outcome, Failed):
            failures.append(outcome)
            continue
        run = by_key[outcome.task.key]
        folder.add(run, outcome.cells)
        display.finished(run, outcome.cells, outcome.seconds)
    return failures


def _collect(plan: Plan, folder: ResultsFolder) -> dict[str, Any]:
    """Return what ``results.json`` holds: this benchmark's settings, and all cells that are in the folder."""
    shown_name = data_name(plan.config.data, plan.dataset.name, plan.dataset.digest)
    names = {(plan.dataset.name, plan.dataset.digest): shown_name}
    cells = _in_order(folder.cells(names), plan)
    config: dict[str, Any] = msgspec.to_builtins(plan.config)
    shown = environment(plan.config.device)
    planned = {run.key for run in plan.runs}
    return {
        "cema": shown.pop("cema"),
        "settings": {
            **config,
            # Names and digests identify data and weights; where they lie on this machine is nobody's business.
            "data": shown_name,
            "data_digest": plan.dataset.digest,
            "source_data": None,
            "source_digest": plan.source_digest,
            "wnids": None,
            "pair": [
                {
                    "model": pair.models.model,
                    "model_digest": pair.model,
                    "foundation": pair.models.foundation,
                    "foundation_digest": pair.foundation,
                    "methods": pair.settings,
                }
                for pair in plan.pairs
            ],
        },
        "environment": shown,
        # What these settings do not say: runs that are in the folder from other benchmarks.
        "other_runs": {
            key: folder.finished[key]["facts"] for key in sorted(folder.finished.keys() - planned)
        },
        "cells": cells,
    }


def _in_order(cells: list[dict[str, Any]], plan: Plan) -> list[dict[str, Any]]:
    """Sort cells as tables show them, whenever and in whatever order they were measured."""
    from cema.methods.registry import METHODS  # noqa: PLC0415 - loaded by then; see make_plan

    methods = {name: index for index, name in enumerate(METHODS)}
    corruptions = {name: index for index, name in enumerate((CLEAN, *known_corruptions()))}
    pairs = {(pair.models.model, pair.models.foundation): index for index, pair in enumerate(plan.pairs)}

    def place(cell: dict[str, Any]) -> tuple[Any, ...]:
        pair = (cell["model"], cell["foundation"])
        return (
            cell["dataset"],
            cell["protocol"],
            pairs.get(pair, len(pairs)),
            pair,
            cell["severity"],
            methods.get(cell["method"], len(methods)),
            corruptions.get(cell["corruption"], len(corruptions)),
            cell["corruption"],
            cell["seed"],
        )

    return sorted(cells, key=place)


def _write(out: Path, results: dict[str, Any], console: Console, *, html: bool) -> None:
    write_results(out / RESULTS, results)
    tables, visits = summarise(results["cells"]), visits_of(results["cells"])
    for table in tables:
        print_wide(console, console_table(table))
        console.print(table.chance(), highlight=False, soft_wrap=True)
    for one in visits:
        print_wide(console, visits_table(one))
        console.print(one.legend, highlight=False, soft_wrap=True)
    write_markdown(out / "tables.md", tables, results, visits_markdown(visits))
    write_csv(out / "tables.csv", tables)
    if visits:
        visits_csv(out / "visits.csv", visits)
    write_plots(out, tables, results["cells"])
    if html:
        write_html(out / REPORT, tables, results)
    console.print(f"results, tables and plots: {out}", highlight=False, soft_wrap=True)


def _explain(failures: Sequence[Failed], out: Path) -> str:
    first = failures[0]
    assert isinstance(first.task, Run)  # noqa: S101 - only runs are measured
    segment = first.task.segments[0]
    return (
        f"{len(failures)} runs failed and are not in {out}; the same command tries them again. The first was "
        f"{first.task.method} on {segment.corruption} {segment.severity}: {first.message}"
    )


def _check_device(device: str) -> None:
    if reason := why_unusable(device):
        check_names("device", [device], ["cpu", "cuda"])
        reason = reason.partition("\n")[0]
        raise CemaError(f"device {device} cannot be used by this torch ({reason}); use --device cpu")
