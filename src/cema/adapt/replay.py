"""The replay buffer: which samples a step sees again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np

__all__ = ["ReplayBuffer"]

T = TypeVar("T")


class ReplayBuffer(Generic[T]):
    """A first-in first-out buffer from which samples are drawn uniformly without replacement.

    It holds whatever stands for a sample: the cloud keeps ids of stored images, a benchmark the images.

    Parameters
    ----------
    capacity : int
        Items kept at most; 0 keeps none.

    Raises
    ------
    ValueError
        When the capacity is negative.

    Examples
    --------
    >>> buffer = ReplayBuffer[int](3)
    >>> buffer.add([1, 2, 3, 4])
    [1]
    >>> buffer.items()
    (2, 3, 4)
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 0:
            raise ValueError(f"capacity: expected at least 0, got {capacity}; 0 switches replay off")
        self.capacity = capacity
        self._items: list[T] = []

    def __len__(self) -> int:
        return len(self._items)

    def items(self) -> tuple[T, ...]:
        """Return the stored items, the oldest first."""
        return tuple(self._items)

    def add(self, items: Iterable[T]) -> list[T]:
        """Store items in their order and return those that had to leave, the oldest first."""
        self._items.extend(items)
        excess = max(0, len(self._items) - self.capacity)
        left, self._items = self._items[:excess], self._items[excess:]
        return left

    def draw(self, count: int, rng: np.random.Generator, *, newest: int | None = None) -> list[T]:
        """Draw distinct positions uniformly.

        Parameters
        ----------
        count : int
            How many; fewer come back when fewer are stored.
        rng : numpy.random.Generator
            The only source of chance.
        newest : int, optional
            Draw among this many of the newest items only.

        Returns
        -------
        list
            The drawn items, in random order; they stay in the buffer.
        """
        among = self.newest(newest)
        count = min(count, len(among))
        if count <= 0:
            return []
        return [among[i] for i in rng.choice(len(among), size=count, replace=False).tolist()]

    def newest(self, count: int | None) -> Sequence[T]:
        """Return this many of the newest items, or all that there are, the oldest first."""
        return self._items if count is None else self._items[max(0, len(self._items) - count) :]

    def discard(self, items: Sequence[T]) -> None:
        """Forget items, for instance because their images are gone; unknown ones are ignored."""
        # By identity first: items may be arrays, for which == is not a truth value.
        gone = {id(item) for item in items}
        self._items = [item for item in self._items if id(item) not in gone]

    def state(self) -> list[object] | dict[str, object]:
        """Return the items as JSON can hold them, for `load`; whole numbers as runs of consecutive ones.

        Raises
        ------
        TypeError
            When an item is not a string, a number or None.
        """
        if self._items and all(type(item) is int for item in self._items):
            return {"runs": _runs(cast("list[int]", self._items))}
        return [_plain(item) for item in self._items]

    def load(self, state: Iterable[T] | Mapping[str, Any]) -> None:
        """Replace the content by what `state` returned, or by items; those past the capacity leave as in `add`."""
        self._items = []
        if isinstance(state, Mapping):
            for first, count in state["runs"]:
                end = first + count
                self.add(cast("Iterable[T]", range(max(first, end - self.capacity), end)))
        else:
            self.add(state)


def _runs(numbers: Sequence[int]) -> list[list[int]]:
    """Return the first of each run of consecutive numbers, and how many there are."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][0] + runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([number, 1])
    return runs


def _plain(item: object) -> object:
    if item is None or isinstance(item, str | int | float):
        return item
    raise TypeError(
        f"expected replayed items that JSON can hold (ids such as strings), got {type(item).__name__}; give "
        "the adapter ids and a recall function to save its state"
    )
