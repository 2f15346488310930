"""The replay buffer: which samples a step sees again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

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
        among = len(self._items) if newest is None else min(newest, len(self._items))
        count = min(count, among)
        if count <= 0:
            return []
        first = len(self._items) - among
        return [self._items[first + i] for i in rng.choice(among, size=count, replace=False).tolist()]

    def discard(self, items: Sequence[T]) -> None:
        """Forget items, for instance because their images are gone; unknown ones are ignored."""
        # By identity first: items may be arrays, for which == is not a truth value.
        gone = {id(item) for item in items}
        self._items = [item for item in self._items if id(item) not in gone]

    def state(self) -> list[object]:
        """Return the items as JSON can hold them, for `load`.

        Raises
        ------
        TypeError
            When an item is not a string, a number or None.
        """
        return [_plain(item) for item in self._items]

    def load(self, items: Iterable[T]) -> None:
        """Replace the content; items past the capacity leave as in `add`."""
        self._items = []
        self.add(items)


def _plain(item: object) -> object:
    if item is None or isinstance(item, str | int | float):
        return item
    raise TypeError(
        f"expected replayed items that JSON can hold (ids such as strings), got {type(item).__name__}; give "
        "the adapter ids and a recall function to save its state"
    )
