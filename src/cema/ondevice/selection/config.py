"""The settings of a device's selection, in ``edge.toml`` and in the benchmark."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import msgspec

from cema.ondevice.selection.budget_options import budget_options

__all__ = ["Average", "SelectionConfig"]

Average: TypeAlias = Literal["running", "exponential"]


class SelectionConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[selection]``: which samples a device sends.

    Attributes
    ----------
    rule : str
        Which rule selects: ``entropy-band`` (`cema.ondevice.selection.entropy_band.EntropyBand`), ``budget``
        (`cema.ondevice.selection.budget.Budget`), ``package.module:Class`` or ``path/to/file.py:Class``
        (`cema.ondevice.selection.base.Selector`).
    options : dict
        Settings of ``budget`` (`cema.ondevice.selection.budget_options.BudgetOptions`), or keyword arguments of a rule
        of one's own. All further settings are those of ``entropy-band``.
    e_min : float
        ``E_min``, the lower entropy threshold, as a fraction of ``ln C``: ``0 <= e_min < e_max``.
    e_max : float
        ``E_max^0``, the first upper entropy threshold, as a fraction of ``ln C``; at most 1.
    decay : float
        λ, above 0. It multiplies at every batch, so that any value but 1 compounds (0.99 for 100 batches is 0.37);
        ``E_max`` is therefore clamped to ``[E_min, ln C]`` after every step.
    average : {"running", "exponential"}
        ``E_avg`` as the mean over all samples so far, or as an exponential mean over batches.
    momentum : float
        The weight of a new batch in the exponential mean, in (0, 1].
    group : int
        How many samples make a batch, for devices that predict a few at a time; at least 1.
    floor : float
        ``E_max`` never decides below this many times ``E_avg``; 0 is the paper's rule alone. A stream that is hard from
        its first batch has most of its entropies above ``E_max^0``, and the ratio, which only follows changes since
        then, never opens: nothing is sent where help is needed most.
    on_change : {"keep", "restart"}
        Whether the thresholds go on where the device enters another domain, as the paper's do, or begin anew. ``E_max``
        follows the mean entropy in relation to that of the very first batch. After a hard first domain few images of
        the others lie below it.
    d_margin : float
        Of what that selects, upload only what passes ETA's second filter with this margin, in [0, 1]
        (`cema.ondevice.selection.redundancy.RedundancyFilter`); 0 for no such filter.
    """

    rule: str = "entropy-band"
    options: dict[str, Any] = {}
    e_min: float = 0.02
    e_max: float = 0.4
    decay: float = 1.0
    average: Average = "running"
    momentum: float = 0.1
    group: int = 64
    floor: float = 1.0
    on_change: Literal["keep", "restart"] = "keep"
    d_margin: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if not 0 <= self.e_min < self.e_max <= 1:
            raise ValueError(
                f"expected 0 <= e_min < e_max <= 1 (fractions of ln C), got e_min={self.e_min} and "
                f"e_max={self.e_max}"
            )
        if not (math.isfinite(self.decay) and self.decay > 0):
            raise ValueError(
                f"expected a finite decay > 0, got {self.decay}; 1 keeps the threshold undecayed"
            )
        if self.average not in ("running", "exponential"):
            raise ValueError(f'expected average to be "running" or "exponential", got {self.average!r}')
        if not 0 < self.momentum <= 1:
            raise ValueError(f"expected a momentum in (0, 1], got {self.momentum}")
        if self.group < 1:
            raise ValueError(f"expected a group of at least 1 sample, got {self.group}")
        if not (math.isfinite(self.floor) and self.floor >= 0):
            raise ValueError(f"expected a finite floor >= 0, got {self.floor}; 0 is the paper's rule alone")
        if self.on_change not in ("keep", "restart"):
            raise ValueError(f'expected on_change to be "keep" or "restart", got {self.on_change!r}')
        if not 0 <= self.d_margin <= 1:
            raise ValueError(
                f"d_margin: expected a number in [0, 1], got {self.d_margin}; correct the setting"
            )
        if self.rule == "entropy-band" and self.options:
            raise ValueError(
                f"options: expected none for the rule entropy-band, got {sorted(self.options)}; its settings stand "
                "beside rule"
            )
        if self.rule == "budget":
            budget_options(self.options)
