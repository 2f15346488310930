"""When a device reads statistics of its own inputs again: often at first, then seldom."""

from __future__ import annotations

from cema._util.checks import require

__all__ = ["RefreshSchedule"]


class RefreshSchedule:
    """Due at images 1, 2, 4, 8 … of a domain up to `ring`, and from then on once in every `every` images.

    Parameters
    ----------
    ring : int
        The images of one reading, at least 1.
    every : int
        Images from one reading to the next on a steady stream, at least `ring`.

    Examples
    --------
    >>> schedule = RefreshSchedule(ring=4, every=8)
    >>> [n for n in range(1, 25) if schedule.due(1)]
    [1, 2, 4, 12, 20]
    """

    def __init__(self, *, ring: int, every: int) -> None:
        require(ring >= 1, "ring", "at least 1 image", ring)
        require(every >= ring, "every", f"at least the {ring} images of one reading", every)
        self.ring = ring
        self.every = every
        self._seen, self._next = 0, 1

    def restart(self) -> None:
        """Begin at image 1 again: the domain changed."""
        self._seen, self._next = 0, 1

    def soon(self, within: int) -> None:
        """Be due after so many images at the latest, as after an update."""
        self._next = min(self._next, self._seen + max(1, within))

    def due(self, count: int) -> bool:
        """Take note of `count` more images, and tell whether statistics are to be read now."""
        self._seen += count
        if self._seen < self._next:
            return False
        while self._next <= self._seen:
            self._next = 2 * self._next if self._next < self.ring else self._next + self.every
        return True
