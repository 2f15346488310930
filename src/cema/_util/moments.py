"""Moments as people read them."""

from __future__ import annotations

__all__ = ["ago"]


def ago(seconds: float) -> str:
    """Return how long ago something was.

    Examples
    --------
    >>> ago(3.2), ago(150), ago(9000), ago(400_000), ago(-5)
    ('3 s ago', '2 min ago', '2 h ago', '4 days ago', 'in the future')
    """
    if seconds < 0:
        return "just now" if seconds > -1 else "in the future"
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
