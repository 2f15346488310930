"""What new uploads look like, and when that changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cema.environment import Environment, InputAverage

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

__all__ = ["Surroundings"]


class Surroundings:
    """The input statistics of the newest uploads of one environment.

    Parameters
    ----------
    window : int
        Uploads to remember.
    limit : float
        When the latest of a batch are farther than this from what is remembered
        (:meth:`cema.environment.InputAverage.distance`), the environment has changed; 0 switches this off.
    batch : int
        Uploads in a full batch; from less than half of one nothing is concluded.

    Attributes
    ----------
    changes : int
        How often the environment has changed.
    """

    def __init__(self, *, window: int, limit: float, batch: int) -> None:
        self.changes = 0
        self._window, self._limit, self._batch = window, limit, batch
        self._batches: list[np.ndarray] = []
        self._mixed = False

    def observe(self, rows: np.ndarray) -> bool:
        """Take in the statistics of a batch of new uploads, in their order.

        Parameters
        ----------
        rows : ndarray of float32 (N, F)
            From :func:`cema.environment.input_statistics`.

        Returns
        -------
        bool
            Whether to forget everything before this batch: because it shows a change, or because the one before it
            did and may have begun in the old environment.
        """
        changed = self._differs(rows)
        anew = changed or self._mixed
        if anew:
            self._batches.clear()
        self._mixed = changed
        self.changes += changed
        self._batches.append(np.asarray(rows, np.float32))
        while sum(map(len, self._batches[1:])) >= self._window:
            self._batches.pop(0)
        return anew

    def environment(self) -> Environment | None:
        """Return what these uploads look like; None for fewer than tell how widely they lie."""
        if not self._batches:
            return None
        rows = np.concatenate(self._batches)
        return Environment.of(rows) if len(rows) >= rows.shape[1] + 3 else None

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        """Return the statistics as tensors, and counts, for `load`."""
        import torch  # noqa: PLC0415 - everything else here is numpy's

        tensors = {f"inputs.{i}": torch.from_numpy(rows.copy()) for i, rows in enumerate(self._batches)}
        shapes = [list(rows.shape) for rows in self._batches]
        return tensors, {"changes": self.changes, "mixed": self._mixed, "shapes": shapes}

    def load(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.changes, self._mixed = values["changes"], values["mixed"]
        self._batches = [tensors[f"inputs.{i}"].numpy().copy() for i in range(len(values["shapes"]))]

    def _differs(self, rows: np.ndarray) -> bool:
        known = self.environment()
        if not self._limit or known is None or 2 * len(rows) < self._batch:
            return False
        latest = InputAverage(rows.shape[1])
        for row in rows:
            latest.observe(row)
        return latest.distance(known, known.precision()) > self._limit
