"""The settings of what a device may send."""

from __future__ import annotations

from typing import Literal

import msgspec

from cema._util.checks import require
from cema.edge.quiet_hours import QuietHours

__all__ = ["BudgetConfig"]


class BudgetConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[budget]``: how much a device sends, and when; without limits and quiet hours there is none.

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
    """

    bytes_per_hour: int | None = None
    bytes_per_day: int | None = None
    bytes_per_month: int | None = None
    samples_per_hour: int | None = None
    samples_per_day: int | None = None
    samples_per_month: int | None = None
    quiet_hours: tuple[str, ...] = ()
    quiet_clock: Literal["local", "utc"] = "local"

    def __post_init__(self) -> None:
        for name, value in self.limits.items():
            require(value >= 1, name, "at least 1", value)
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
