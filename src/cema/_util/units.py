"""Numbers as people read them."""

from __future__ import annotations

__all__ = ["human_bytes"]


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
