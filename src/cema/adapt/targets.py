"""What the foundation model answered for samples that may be replayed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Targets"]

# They are part of every checkpoint. Enough for 10,000 samples of 100 classes, or 1,000 of 1,000.
MOST_BYTES = 2 * 2**20


class Targets:
    """Logits by item, rounded to float16; of more than fit, the oldest are forgotten.

    An item is known by its identity, since an array cannot be a key: it must be alive as long as it is in here, as it
    is in a replay buffer.

    Parameters
    ----------
    classes : int
        C, values per item.
    most_bytes : int
        Memory for all.

    Examples
    --------
    >>> targets, items = Targets(2), ["a", "b"]
    >>> targets.put(items, torch.tensor([[1.0, 2.0], [float("nan"), 0.0]]))
    >>> [item in targets for item in items]
    [True, False]
    """

    def __init__(self, classes: int, *, most_bytes: int = MOST_BYTES) -> None:
        self.classes = classes
        self.most = max(1, most_bytes // (2 * classes))
        self._logits: dict[int, np.ndarray] = {}  # those made last at the end

    def __len__(self) -> int:
        return len(self._logits)

    def __contains__(self, item: object) -> bool:
        return id(item) in self._logits

    def put(self, items: Sequence[object], logits: torch.Tensor) -> None:
        """Keep logits (N, C) for items in the same order, in place of what there was; none that are not finite."""
        largest = torch.finfo(torch.float16).max
        rounded = logits.detach().cpu().clamp(-largest, largest).to(torch.float16).numpy()
        for item, row in zip(items, rounded, strict=True):
            self._logits.pop(id(item), None)
            if np.isfinite(row).all():
                self._logits[id(item)] = row.copy()
        for key in list(self._logits)[: max(0, len(self) - self.most)]:
            del self._logits[key]

    def get(self, items: Sequence[object]) -> torch.Tensor:
        """Return logits (N, C), float32, of items that are in here."""
        rows = [self._logits[id(item)] for item in items]
        return torch.from_numpy(np.array(rows, np.float32).reshape(len(items), self.classes))

    def forget(self, items: Iterable[object]) -> None:
        """Forget items that may be no longer replayed; unknown ones are ignored."""
        for item in items:
            self._logits.pop(id(item), None)

    def clear(self) -> None:
        """Forget everything."""
        self._logits.clear()

    def state(self, items: Sequence[object]) -> dict[str, torch.Tensor]:
        """Return the logits, and the places of their items among `items`, for `load`; nothing when there are none."""
        places = {id(item): place for place, item in enumerate(items)}
        known = [(places[key], row) for key, row in self._logits.items() if key in places]
        if not known:
            return {}
        return {
            "places": torch.tensor([place for place, _ in known], dtype=torch.int32),
            "logits": torch.from_numpy(np.stack([row for _, row in known])),
        }

    def shapes(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
        """Return the shapes that tensors of `state` must have."""
        count = (
            len(tensors["places"]) if tensors.get("places") is not None and tensors["places"].ndim == 1 else 0
        )
        return (
            {"places": torch.Size((count,)), "logits": torch.Size((count, self.classes))} if tensors else {}
        )

    def load(self, items: Sequence[Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore what `state` returned; places that are none are left out."""
        self.clear()
        if not tensors:
            return
        for place, row in zip(tensors["places"].tolist(), tensors["logits"].numpy(), strict=True):
            if 0 <= place < len(items):
                self._logits[id(items[place])] = row.astype(np.float16)
