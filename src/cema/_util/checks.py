"""Range checks of settings, with one wording: what was expected, what came, what to do.

They raise ValueError, which msgspec reports with the place of the setting in a file.
"""

from __future__ import annotations

import math
import re

__all__ = ["is_sha256", "require", "require_at_least", "require_fraction", "require_rate"]


_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_sha256(text: str) -> bool:
    """Tell whether a text is a SHA-256 as all formats write it: 64 lowercase hexadecimal digits."""
    return _SHA256.fullmatch(text) is not None


def require(
    holds: bool, name: str, expected: str, got: object, *, error: type[Exception] = ValueError
) -> None:
    """Raise `error`, saying what was expected of a setting, unless `holds`."""
    if not holds:
        raise error(f"{name}: expected {expected}, got {got!r}; correct the setting")


def require_at_least(section: object, least: float, *names: str, finite: bool = False) -> None:
    """Check settings that may not be smaller than `least`, nor, where it says so, infinite."""
    for name in names:
        value = getattr(section, name)
        fine = value >= least and not (finite and math.isinf(value))
        require(fine, name, f"{'a finite number of ' * finite}at least {least}", value)


def require_rate(name: str, value: float) -> None:
    """Check a learning rate or a weight of a loss: finite and not negative."""
    require(math.isfinite(value) and value >= 0, name, "a finite number of at least 0", value)


def require_fraction(name: str, value: float, *, below_one: bool = False) -> None:
    """Check a number from 0 to 1, or, for a momentum, below 1."""
    expected = "a number in [0, 1)" if below_one else "a number in [0, 1]"
    require(0 <= value < 1 if below_one else 0 <= value <= 1, name, expected, value)
