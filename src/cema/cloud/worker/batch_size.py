"""How many samples a step takes, so that a sample that no step survives costs only itself."""

from __future__ import annotations

__all__ = ["BatchSize"]


class BatchSize:
    """Half as many samples after each failure, down to one, and twice as many after each success.

    Parameters
    ----------
    full : int
        Samples of a step when all is well.
    deaths : int
        Processes that died of the first step; each halves the size too.

    Attributes
    ----------
    samples : int
        Of the next step.

    Examples
    --------
    >>> size = BatchSize(32, deaths=3)
    >>> size.succeeded()
    >>> size.samples
    8
    """

    def __init__(self, full: int, deaths: int = 0) -> None:
        self.full = full
        self.samples = max(1, full >> deaths)

    def failed(self) -> None:
        """Take half as many next time."""
        self.samples = max(1, self.samples // 2)

    def succeeded(self) -> None:
        """Take twice as many next time."""
        self.samples = min(self.full, 2 * self.samples)

    def reset(self) -> None:
        """Take all again: other samples are next."""
        self.samples = self.full
