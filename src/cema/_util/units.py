"""Numbers as people read them."""

from __future__ import annotations

__all__ = ["ago", "human_bytes", "human_seconds"]


def human_bytes(count: float) -> str:
    """Return a byte count as people read it, in decimal units.

    Examples
    --------
    >>> human_bytes(1_234_567), human_bytes(999)
    ('1.23 MB', '1.0 kB')
    """
    if count >= 1e9:
        return f"{count / 1e9:.2f} GB"
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def human_seconds(seconds: float) -> str:
    """Return a time of at least 0 s as people read it, in whole units, rounded down.

    Examples
    --------
    >>> human_seconds(3.2), human_seconds(150), human_seconds(9000), human_seconds(400_000)
    ('3 s', '2 min', '2 h', '4 days')
    """
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def ago(seconds: float) -> str:
    """Return how long ago something was.

    Examples
    --------
    >>> ago(3.2), ago(150), ago(9000), ago(400_000), ago(-5)
    ('3 s ago', '2 min ago', '2 h ago', '4 days ago', 'in the future')
    """
    if seconds < 0:
        return "just now" if seconds > -1 else "in the future"
    return f"{human_seconds(seconds)} ago"
