"""Range checks of settings."""

from __future__ import annotations

import math

__all__ = ["require", "require_fraction", "require_rate"]


def require(holds: bool, name: str, expected: str, got: object) -> None:
    """Raise ValueError, saying what was expected of a setting, unless `holds`."""
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {got!r}; correct the setting")


def require_rate(name: str, value: float) -> None:
    """Check a learning rate or a weight of a loss: finite and not negative."""
    require(math.isfinite(value) and value >= 0, name, "a finite number of at least 0", value)


def require_fraction(name: str, value: float, *, below_one: bool = False) -> None:
    """Check a number from 0 to 1, or, for a momentum, below 1."""
    expected = "a number in [0, 1)" if below_one else "a number in [0, 1]"
    require(0 <= value < 1 if below_one else 0 <= value <= 1, name, expected, value)
