"""What new uploads look like, and when that changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cema.ondevice.drift import Domain, InputAverage

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

__all__ = ["ChangeDetector"]


class ChangeDetector:
    """The input statistics of the newest uploads of one domain, and whether new ones show another domain.

    Parameters
    ----------
    window : int
        Uploads to remember.
    limit : float
        When the latest of a batch are farther than this from what is remembered
        (:meth:`cema.ondevice.drift.InputAverage.distance`), the domain has changed; 0 switches this off.
    batch : int
        Uploads in a full batch; from less than half of one nothing is concluded.

    Attributes
    ----------
    changes : int
        How often the domain has changed.
    """

    def __init__(self, *, window: int, limit: float, batch: int) -> None:
        self.changes = 0
        self._window, self._limit, self._batch = window, limit, batch
        self._batches: list[np.ndarray] = []
        self._items: list[list[int | str] | None] = []  # whose rows these are, where that is known
        self._mixed = False

    def observe(self, rows: np.ndarray, *, known: bool = False) -> bool:
        """Take in the statistics of a batch of new uploads, in their order.

        Parameters
        ----------
        rows : ndarray of float32 (N, F)
            From :func:`cema.ondevice.drift.input_statistics`.
        known : bool
            Whether they are known to be of another domain than those before, whatever the distance. That says nothing
            new right after a batch that showed a change, which may mix both domains.

        Returns
        -------
        bool
            Whether to forget everything before this batch: because it shows a change, or because the one before it
            did and may mix both domains.
        """
        changed = (known and not self._mixed) or self._differs(rows)
        reset = changed or self._mixed
        if reset:
            self._batches.clear()
            self._items.clear()
        self._mixed = changed
        self.changes += changed
        self._batches.append(np.asarray(rows, np.float32))
        self._items.append(None)
        while sum(map(len, self._batches[1:])) >= self._window:
            self._batches.pop(0)
            self._items.pop(0)
        return reset

    def name_latest(self, items: Sequence[object]) -> None:
        """Remember whose the rows of the latest batch are, for `forget`; where items are their images, it does not."""
        names = [item for item in items if isinstance(item, int | str)]
        if self._items and len(names) == len(self._batches[-1]):
            self._items[-1] = names

    def forget(self, items: Collection[object]) -> None:
        """Forget the statistics of some uploads, and of all whose names are not known."""
        kept: list[tuple[np.ndarray, list[int | str] | None]] = []
        for rows, names in zip(self._batches, self._items, strict=True):
            stay = [i for i, name in enumerate(names or ()) if name not in items]
            if names is not None and stay:
                kept.append((rows[stay], [names[i] for i in stay]))
        self._batches, self._items = [rows for rows, _ in kept], [names for _, names in kept]

    def domain(self) -> Domain | None:
        """Return what these uploads look like; None for fewer than tell how widely they lie."""
        rows = self.rows()
        return Domain.of(rows) if rows is not None and len(rows) >= rows.shape[1] + 3 else None

    def rows(self) -> np.ndarray | None:
        """Return the statistics of these uploads (N, F), float32, the oldest first; None before the first."""
        return np.concatenate(self._batches) if self._batches else None

    def remember(self, rows: np.ndarray) -> None:
        """Take the newest batch to be of a domain that is known already, from uploads with these statistics (N, F)."""
        self._batches = [np.asarray(rows, np.float32), *self._batches[-1:]]
        self._items = [None, *self._items[-1:]]

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, object]]:
        """Return the statistics as arrays, and counts, for `load`."""
        arrays = {f"inputs.{i}": rows for i, rows in enumerate(self._batches)}
        shapes = [list(rows.shape) for rows in self._batches]
        return arrays, {
            "changes": self.changes,
            "mixed": self._mixed,
            "shapes": shapes,
            "items": list(self._items),
        }

    def shapes(self, values: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the arrays that go with values that `state` returned."""
        return {f"inputs.{i}": tuple(shape) for i, shape in enumerate(values["shapes"])}

    def load(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.changes, self._mixed = values["changes"], values["mixed"]
        self._batches = [arrays[f"inputs.{i}"].copy() for i in range(len(values["shapes"]))]
        # Checkpoints from before do not tell whose rows they are.
        self._items = list(values.get("items", [None] * len(self._batches)))

    def _differs(self, rows: np.ndarray) -> bool:
        known = self.domain()
        if not self._limit or known is None or 2 * len(rows) < self._batch:
            return False
        latest = InputAverage(rows.shape[1])
        for row in rows:
            latest.observe(row)
        return latest.distance(known, known.precision()) > self._limit
