"""The stream of each edge, written where its process can map it; the labels stay with whoever scores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cema.data.class_order import FolderClasses
from cema.data.digits import load_digits
from cema.data.folder import LabelledFolder
from cema.data.photographs import Photographs
from cema.demo.segments import DIGITS_SEGMENTS, PHOTOGRAPH_SEGMENTS, RandomView, Segment, Stream
from cema.demo.settings import DemoSettings
from cema.errors import ConfigError
from cema.models.spec import Model

__all__ = ["EdgeStream", "make_streams"]


@dataclass(frozen=True)
class EdgeStream:
    """One edge's stream.

    Attributes
    ----------
    names : tuple of str, (S,)
        The segments.
    bounds : tuple of int, (S + 1,)
        Where each segment begins, and where the last one ends.
    path : Path
        uint8 images, NHWC, as `.npy`.
    labels : ndarray of int64, (N,)
        The true labels.
    """

    names: tuple[str, ...]
    bounds: tuple[int, ...]
    path: Path
    labels: NDArray[np.int64]


def make_streams(
    settings: DemoSettings, edge: Model, foundation: Model, folder: Path, console: Console
) -> list[EdgeStream]:
    """Draw a stream per edge and write it below `folder`.

    Every edge sees the same segments; order and draws of the corruptions are its own.

    Raises
    ------
    ConfigError
        If the images do not go with the model's classes.
    ImageError
        If an image cannot be read; the message names the file.
    """
    images, labels, segments, view = _source(settings, edge, foundation)
    length = -(-settings.samples // len(segments))
    made = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        for i in range(settings.edges):
            stream = Stream(images, labels, segments, length=length, seed=settings.seed, edge=i, view=view)
            task = progress.add_task(f"drawing the stream of edge-{i}", total=len(stream))

            def show(done: int, _total: int, task: Any = task) -> None:
                progress.update(task, completed=done)

            path = folder / f"stream-{i}.npy"
            stream.save(path, processes=1 if settings.images is None else os.cpu_count() or 1, progress=show)
            bounds = tuple(range(0, len(stream) + 1, length))
            made.append(EdgeStream(tuple(s.name for s in segments), bounds, path, stream.labels))
    return made


def _source(
    settings: DemoSettings, edge: Model, foundation: Model
) -> tuple[
    Sequence[NDArray[np.uint8]] | NDArray[np.uint8], NDArray[np.int64], tuple[Segment, ...], RandomView | None
]:
    if settings.images is None:
        digits = load_digits()
        if edge.classes != 10:
            raise ConfigError(
                f"{edge.name} has {edge.classes} classes, but the embedded digits have 10: labels would not mean the "
                "same; choose a model for digits, or give --images"
            )
        return digits.test_images, digits.test_labels, DIGITS_SEGMENTS, None
    photographs = LabelledFolder(settings.images)
    classes = FolderClasses.of(photographs, settings.images)
    columns, _ = classes.columns(edge.classes, edge.labels, edge.name)
    shape = foundation.preprocessing
    side = max(shape.height, shape.width, edge.preprocessing.height, edge.preprocessing.width)
    # A camera has one resolution, and one file holds all images: each is cut to the larger model's square.
    squares = Photographs(photographs.files, side=side, kept=1.0)
    return squares, columns[photographs.labels], PHOTOGRAPH_SEGMENTS, RandomView()
