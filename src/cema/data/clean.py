"""Data sets of clean images, corrupted when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from cema.data.base import Family, LabelledImages, Progress, check_condition
from cema.data.cache import cached_corruptions
from cema.data.class_order import FolderClasses
from cema.data.corruptions import Constants

__all__ = ["CleanDataset"]


@dataclass(frozen=True, eq=False, kw_only=True)
class CleanDataset:
    """Clean images; every corruption is made of them, and kept on disk.

    Attributes
    ----------
    name, digest, classes, family, logits, cropped
        As in `cema.data.base.Dataset`.
    images : LabelledImages
        The clean ones.
    constants : {"cifar", "imagenet"}
        Which of the published severities are meant: those for 32 pixels or those for 224.
    cache : Path, optional
        The folder that keeps corrupted images, by default that of `cema.data.cache.cache_folder`.
    seed : int
        With the pixels and the corruption, what the random part follows from.
    folder_classes : FolderClasses, optional
        Of images in class folders, what decides which logits these are scored on.
    one_size : callable, optional
        Returns the clean images in one size, where `images` may have several or is slow to read; its argument is how
        many threads may share the work.
    """

    name: str
    digest: str
    classes: int
    family: Family
    images: LabelledImages
    constants: Constants
    cache: Path | None = None
    seed: int = 0
    logits: tuple[int, ...] | None = None
    cropped: bool = False
    folder_classes: FolderClasses | None = None
    one_size: Callable[[int], Sequence[np.ndarray] | np.ndarray] | None = None
    corruptions: None = field(default=None, init=False)

    def clean(self) -> LabelledImages:
        """Return the clean images."""
        return self.images

    def corrupted(
        self, corruption: str, severity: int, *, processes: int = 1, progress: Progress | None = None
    ) -> LabelledImages:
        """Return the images under a corruption; see `cema.data.Dataset.corrupted`."""
        check_condition(corruption, severity, self.constants)
        clean = self.images.images if self.one_size is None else self.one_size(processes)
        made = cached_corruptions(
            clean,
            corruption,
            severity,
            seed=self.seed,
            constants=self.constants,
            folder=self.cache,
            processes=processes,
            progress=progress,
        )
        return replace(self.images, images=made)
