"""The settings of the selection rule ``budget``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

import msgspec

from cema._util.checks import require, require_at_least
from cema._util.names import did_you_mean

__all__ = ["ORDERS", "BudgetOptions", "Order", "budget_options"]

Order: TypeAlias = Literal["entropy", "random", "quota", "prototype", "mixed"]

ORDERS: tuple[Order, ...] = get_args(Order)
"""Which samples go first."""


class BudgetOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[selection.options]`` of the rule ``budget`` (`cema.ondevice.selection.budget.Budget`).

    Attributes
    ----------
    share : float
        How much of the stream is sent, at most; in (0, 1].
    order : {"entropy", "random", "quota", "prototype", "mixed"}
        What goes first: the highest entropy; any; the highest entropy within each predicted class; sure predictions
        that are most like the mean prediction, within each predicted class; or 80 % of the share by ``quota``, 15 % by
        ``prototype`` and 5 % by ``random``.
    burst : float
        How many times the share the first `burst_for` samples of a stream, or of a new domain, may have; at least 1,
        which is no burst.
    burst_for : int
        For how many samples; at least 1.
    group : int
        How many samples' worth of the share may be saved up, and over how many a sample is compared with others (four
        times as many); at least 1.
    seed : int
        Of what is random; from 0 to 2^63 - 1.
    """

    share: float = 0.1
    order: Order = "random"
    burst: float = 1.0
    burst_for: int = 256
    group: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        require(0 < self.share <= 1, "share", "a number in (0, 1]", self.share)
        _check_order(self.order)
        fits = math.isfinite(self.burst) and self.burst >= 1
        require(fits, "burst", "a finite number of at least 1 (1: no burst)", self.burst)
        require_at_least(self, 1, "burst_for", "group")
        require(0 <= self.seed < 2**63, "seed", "a whole number from 0 to 2^63 - 1", self.seed)


def budget_options(options: Mapping[str, Any]) -> BudgetOptions:
    """Check the options of a configuration.

    Parameters
    ----------
    options : mapping of str to object
        As TOML or JSON has them.

    Returns
    -------
    BudgetOptions

    Raises
    ------
    ValueError
        When one is unknown, of another type or out of its range; the message begins with ``options``.

    Examples
    --------
    >>> budget_options({"share": 0.05}).share
    0.05
    """
    known = BudgetOptions.__struct_fields__
    for name in options:
        if name not in known:
            hint = did_you_mean(str(name), known)
            raise ValueError(
                f"options.{name}: expected one of {', '.join(known)} for the rule budget{hint}; correct the name"
            )
        try:
            if name == "order":
                _check_order(options[name])
            # One by one, so that the message names the option whatever is wrong with it.
            msgspec.convert({name: options[name]}, BudgetOptions)
        except (ValueError, msgspec.ValidationError) as error:
            what = str(error).partition(" - at `")[0].removeprefix(f"{name}: ")
            raise ValueError(f"options.{name}: {what}") from error
    return msgspec.convert(dict(options), BudgetOptions)


def _check_order(order: Any) -> None:
    if order not in ORDERS:
        hint = did_you_mean(str(order), ORDERS)
        raise ValueError(
            f"order: expected one of {', '.join(ORDERS)}, got {order!r}{hint}; correct the setting"
        )
