"""A token bucket in exact arithmetic: so much in any time, and no more, however often it is asked.

Only the arithmetic is here. Who counts keeps two numbers for each bucket: what is used of it, and when that was.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

__all__ = ["TokenBucket"]

_NANOSECONDS = 10**9


class TokenBucket(NamedTuple):
    """A bucket that is full at first and is filled again at a constant rate.

    From any moment on, over ``t`` seconds, what is taken is at most ``capacity * (1 + t / seconds)``, or what was taken
    at once beyond the capacity.

    Attributes
    ----------
    capacity : Fraction
        What a full bucket holds; above 0.
    seconds : int
        In which an empty one is full again.

    Examples
    --------
    >>> bucket = TokenBucket(Fraction(60), 30)
    >>> bucket.wait(Fraction(50), 20), bucket.left_of(Fraction(50), 5 * 10**9)
    (5000000000, Fraction(40, 1))
    """

    capacity: Fraction
    seconds: int

    def left_of(self, used: Fraction, nanoseconds: int) -> Fraction:
        """Return what is still used after a time in which nothing was taken; a time below 0 counts as none."""
        drained = self.capacity * max(0, nanoseconds) / (self.seconds * _NANOSECONDS)
        return max(Fraction(0), used - drained)

    def wait(self, used: Fraction, amount: int) -> int:
        """Return in how many nanoseconds an amount may be taken, 0 for now.

        More than the bucket holds may be taken when it is full, so that nothing has to wait for ever; it takes the
        longer to fill again.
        """
        excess = used + min(Fraction(amount), self.capacity) - self.capacity
        if excess <= 0:
            return 0
        exact = excess * self.seconds * _NANOSECONDS / self.capacity
        return -(-exact.numerator // exact.denominator)
