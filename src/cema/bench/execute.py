"""One run: an adapter goes along a stream and is scored."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cema.bench.config import BenchConfig
from cema.bench.plan import Run, load_pair
from cema.bench.prefetch import prefetch
from cema.bench.protocols import CLEAN, Condition, Schedule, make_schedule
from cema.bench.standard_error import clustered_error
from cema.data.base import IMAGENET_SIDE
from cema.data.class_order import class_columns
from cema.data.dataset import open_dataset
from cema.errors import CemaError
from cema.methods.base import MethodContext, NotApplicable
from cema.methods.registry import make_adapter

if TYPE_CHECKING:
    from cema.data.base import Dataset, LabelledImages
    from cema.methods.base import Adapter
    from cema.models.spec import Model

__all__ = ["CURVE_POINTS", "CURVE_SAMPLES", "SOURCE_IMAGES", "Progress", "RunContext", "Scorer"]

#: Points of a cell's accuracy over the stream, at most, and samples that each is the mean of, at least.
CURVE_POINTS = 20
CURVE_SAMPLES = 50

#: Images that ``source_data`` is cut down to: as many as EATA takes.
SOURCE_IMAGES = 2000

# Conditions whose images are at hand: those of a stream over all corruptions.
_SETS = 20

Progress = Callable[[int, int], object]


class Scorer:
    """The score of one run, batch by batch.

    Parameters
    ----------
    schedule : Schedule
        The stream.
    origins : ndarray of int64 (N,), optional
        Which photograph each image was cut from, where one gave several.
    """

    def __init__(self, schedule: Schedule, origins: NDArray[np.int64] | None = None) -> None:
        self._schedule = schedule
        self._origins = origins
        self._correct = np.zeros(len(schedule), bool)
        self._counts = np.zeros((schedule.batches, 4), np.int64)
        self._seconds = np.zeros(schedule.batches)

    def book(
        self, batch: int, correct: NDArray[np.bool_], counts: tuple[int, int, int, int], seconds: float
    ) -> None:
        """Take note of a batch: who was right, uploads, bytes, forwards and backwards, and the time it took."""
        self._correct[self._schedule.places(batch)] = correct
        self._counts[batch] = counts
        self._seconds[batch] = seconds

    def cells(self) -> list[dict[str, Any]]:
        """Return one cell per condition of the stream, with the accuracy of each visit where there were several.

        With origins, also how sure its accuracy is.

        What a batch cost is shared among the conditions in it by their samples; the shares are rounded so that they
        add up to what the whole stream cost.
        """
        schedule = self._schedule
        shares = np.stack(
            [
                np.bincount(schedule.condition[schedule.places(b)], minlength=len(schedule.conditions))
                / (schedule.bounds[b + 1] - schedule.bounds[b])
                for b in range(schedule.batches)
            ]
        )
        counts = [_round_shares(column @ shares, int(column.sum())) for column in self._counts.T]
        seconds = self._seconds @ shares
        cells = []
        for index, condition in enumerate(schedule.conditions):
            places = np.flatnonzero(schedule.condition == index)
            visits = np.split(places, np.flatnonzero(np.diff(schedule.visit[places])) + 1)
            right = int(self._correct[places].sum())
            cells.append(
                {
                    "corruption": condition.corruption,
                    "severity": condition.severity,
                    "samples": len(places),
                    "correct": right,
                    "accuracy": 100.0 * right / len(places),
                    **self._certainty(places),
                    "uploads": counts[0][index],
                    "bytes_up": counts[1][index],
                    "forwards": counts[2][index],
                    "backwards": counts[3][index],
                    "seconds": round(float(seconds[index]), 4),
                    "curve": _curve(self._correct, visits),
                }
            )
            if len(visits) > 1:
                cells[-1]["images"] = len(np.unique(schedule.sample[places]))
                cells[-1]["visits"] = [100.0 * int(self._correct[v].sum()) / len(v) for v in visits]
        return cells

    def _certainty(self, places: NDArray[np.int64]) -> dict[str, Any]:
        """Return from how many photographs the images at some places are, and the standard error over these."""
        if self._origins is None:
            return {}
        origins = self._origins[self._schedule.sample[places]]
        return {
            "photographs": len(np.unique(origins)),
            "standard_error": clustered_error(self._correct[places], origins),
        }


def _round_shares(shares: NDArray[np.float64], total: int) -> list[int]:
    """Round to whole numbers that add up: those with the largest remainders are rounded up."""
    whole = np.floor(shares + 1e-9).astype(np.int64)
    missing = total - int(whole.sum())
    for index in np.argsort(whole - shares, kind="stable")[:missing]:
        whole[index] += 1
    return [int(n) for n in whole]


def _curve(correct: NDArray[np.bool_], visits: Sequence[NDArray[np.int64]]) -> list[list[float]]:
    """Return accuracy in percent over the stream: where in it each part of the cell's samples ends, and its mean.

    No part reaches from one visit into another, so that there are at least as many as visits.
    """
    most = CURVE_POINTS // len(visits)
    counts = [max(1, min(most, len(places) // CURVE_SAMPLES)) for places in visits]
    parts = [
        part for places, count in zip(visits, counts, strict=True) for part in np.array_split(places, count)
    ]
    return [[int(part[-1]) + 1, round(100.0 * float(correct[part].mean()), 2)] for part in parts]


@dataclass
class RunContext:
    """Where runs happen: the data and the models, each loaded once.

    Attributes
    ----------
    config : BenchConfig
        What is measured.
    cache : Path or None
        Where corrupted images are kept.
    """

    config: BenchConfig
    cache: Path | None
    _dataset: Dataset | None = None
    _source: Dataset | None = None
    _pairs: dict[int, tuple[Model, Model]] = field(default_factory=dict)
    _memo: dict[int, dict[Hashable, object]] = field(default_factory=dict)
    _sets: dict[Condition, LabelledImages] = field(default_factory=dict)

    @property
    def dataset(self) -> Dataset:
        """The data."""
        if self._dataset is None:
            self._dataset = self._open(self.config.data, self.config.samples, crops=self.config.crops)
        return self._dataset

    @property
    def source(self) -> Dataset | None:
        """What was named for clean images; None for the data themselves."""
        if self._source is None and self.config.source_data is not None:
            self._source = self._open(self.config.source_data, SOURCE_IMAGES)
        return self._source

    def _open(self, spec: str, limit: int | None, *, crops: int = 1) -> Dataset:
        config = self.config
        return open_dataset(
            spec,
            cache=self.cache,
            limit=limit,
            wnids=None if config.wnids is None else Path(config.wnids),
            side=IMAGENET_SIDE if config.side is None else config.side,
            constants=config.constants,
            crops=crops,
        )

    def images(
        self, condition: Condition, *, processes: int = 1, progress: Progress | None = None
    ) -> LabelledImages:
        """Return the images under a condition, made and kept on disk if they are not there yet."""
        name, severity = condition.corruption, condition.severity
        found = self._sets.pop(condition, None)
        if found is None and name == CLEAN:
            found = self.dataset.clean()
        elif found is None:
            found = self.dataset.corrupted(name, severity, processes=processes, progress=progress)
        # The latest are at the end; consecutive runs want the same ones.
        self._sets[condition] = found
        while len(self._sets) > _SETS:
            del self._sets[next(iter(self._sets))]
        return found

    def execute(self, run: Run, progress: Progress | None = None) -> list[dict[str, Any]]:
        """Let a method go along a stream.

        Parameters
        ----------
        run : Run
            Which.
        progress : callable, optional
            Called with the samples done and all samples.

        Returns
        -------
        list of dict
            One cell per condition, as ``results.json`` has them. Where the method does not apply, accuracy and costs
            are None, and a note says why.
        """
        sets = {condition: self.images(condition) for condition in dict.fromkeys(run.segments)}
        first = sets[run.segments[0]]
        schedule = make_schedule(
            self.config.protocol,
            run.segments,
            first.labels,
            batch=self.config.batch_size,
            seed=run.seed,
            edges=self.config.edges,
            concentration=self.config.concentration,
        )
        scorer = Scorer(schedule, first.origins)
        try:
            adapter = self._adapter(run)
            sets = {condition: self._scored(found, run) for condition, found in sets.items()}
            self._go(adapter, schedule, sets, scorer, progress)
            cells = scorer.cells()
        except NotApplicable as error:
            unscored = Scorer(schedule, first.origins).cells()
            cells = [{**_nothing(cell), "note": " ".join(str(error).split())} for cell in unscored]
        return [{**self._labels(run), **cell} for cell in cells]

    def _adapter(self, run: Run) -> Adapter:
        if run.pair not in self._pairs:
            self._pairs[run.pair] = load_pair(self.config.pair[run.pair], cropped=self.dataset.cropped)
        edge, foundation = self._pairs[run.pair]
        context = MethodContext(
            foundation=foundation,
            source_images=self._source_images(),
            device=self.config.device,
            dtype=self.config.dtype,
            seed=run.seed,
            batch=self.config.batch_size,
            codec=self.config.codec,
            edges=self.config.edges,
            memo=self._memo.setdefault(run.pair, {}),
        )
        return make_adapter(run.method, edge, run.settings, context)

    def _scored(self, data: LabelledImages, run: Run) -> LabelledImages:
        """Return images with the logits of a run's models for labels, where they lie in class folders."""
        edge, _ = self._pairs[run.pair]
        columns, _ = class_columns(self.dataset, edge.classes, edge.labels, edge.name)
        return data if columns is None else replace(data, labels=columns[data.labels])

    def _source_images(self) -> Any:
        if self.source is not None:
            return self.source.clean().images
        try:
            return self.dataset.clean().images
        except CemaError:  # a published set of corrupted images has no clean ones
            return ()

    def _go(
        self,
        adapter: Adapter,
        schedule: Schedule,
        sets: dict[Condition, LabelledImages],
        scorer: Scorer,
        progress: Progress | None,
    ) -> None:
        def load(batch: int) -> tuple[list[NDArray[np.uint8]], NDArray[np.int64]]:
            places = schedule.places(batch)
            found = [
                (sets[schedule.conditions[c]], int(i))
                for c, i in zip(schedule.condition[places], schedule.sample[places], strict=True)
            ]
            # Copies: what is mapped from a file is read here, and not when the method first looks at it.
            images = [np.array(data.images[i]) for data, i in found]
            return images, np.array([data.labels[i] for data, i in found])

        columns = None if self.dataset.logits is None else np.array(self.dataset.logits)
        for batch, (images, labels) in enumerate(prefetch(load, schedule.batches)):
            began = time.perf_counter()
            outcome = adapter.step(images, edge=int(schedule.edge[batch]))
            seconds = time.perf_counter() - began
            logits = outcome.logits if columns is None else outcome.logits[:, columns]
            counts = (outcome.uploads, outcome.bytes_up, outcome.forwards, outcome.backwards)
            scorer.book(batch, logits.argmax(1) == labels, counts, seconds)
            if progress is not None:
                progress(schedule.places(batch).stop, len(schedule))

    def _labels(self, run: Run) -> dict[str, Any]:
        facts = run.facts
        names = ("method", "model", "foundation", "dataset", "protocol", "seed", "batch_size", "edges")
        return {name: facts[name] for name in names} | {"delay": run.settings.get("delay", 0)}


def _nothing(cell: dict[str, Any]) -> dict[str, Any]:
    """Return a cell without what was not measured."""
    kept = ("corruption", "severity", "samples", "photographs", "images")
    return {name: value if name in kept else None for name, value in cell.items()} | {"curve": []}
