"""The settings of what a device may send."""

from __future__ import annotations

from typing import Literal

import msgspec

from cema._util.checks import require
from cema.edge.quiet_hours import QuietHours

__all__ = ["BudgetConfig", "First"]

First = Literal["oldest", "random", "entropy", "classes"]
"""The orders in which samples are sent."""


class BudgetConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[budget]``: how much a device sends, when, and what first; without limits and quiet hours all is sent.

    Attributes
    ----------
    bytes_per_hour, bytes_per_day, bytes_per_month : int or None
        Bytes of request bodies in any 60 minutes, 24 hours and 30 days, at most.
    samples_per_hour, samples_per_day, samples_per_month : int or None
        Samples, at most; one that is sent again counts again.
    quiet_hours : tuple of str
        Ranges of the day in which no request begins, such as ``08:00-18:00``.
    quiet_clock : {"local", "utc"}
        Whose time of day that is.
    first : {"oldest", "random", "entropy", "classes"}
        What is sent first of what waits: the oldest; any; the highest entropy; the predicted classes of which the
        fewest were sent.
    seed : int
        Of what is random.
    duplicates : float
        Samples closer than this to one that was sent, in grey levels, are not sent; 0 for none. See
        `cema.ondevice.likeness`.
    remember : int
        With how many of the latest that were sent they are compared.
    """

    bytes_per_hour: int | None = None
    bytes_per_day: int | None = None
    bytes_per_month: int | None = None
    samples_per_hour: int | None = None
    samples_per_day: int | None = None
    samples_per_month: int | None = None
    quiet_hours: tuple[str, ...] = ()
    quiet_clock: Literal["local", "utc"] = "local"
    first: First = "oldest"
    seed: int = 0
    duplicates: float = 0.0
    remember: int = 256

    def __post_init__(self) -> None:
        for name, value in self.limits.items():
            require(value >= 1, name, "at least 1", value)
        require(0 <= self.seed < 2**63, "seed", "a whole number from 0 to 2^63 - 1", self.seed)
        require(0 <= self.duplicates <= 255, "duplicates", "a distance from 0 to 255", self.duplicates)
        require(1 <= self.remember <= 4096, "remember", "a whole number from 1 to 4096", self.remember)
        QuietHours(self.quiet_hours, self.quiet_clock)

    @property
    def limits(self) -> dict[str, int]:
        """The limits that are set, by name."""
        names = (
            f"{what}_per_{window}" for what in ("bytes", "samples") for window in ("hour", "day", "month")
        )
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def limited(self) -> bool:
        """Whether anything may have to wait."""
        return bool(self.limits or self.quiet_hours)
