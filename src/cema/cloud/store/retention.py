"""Which versions of a cohort a store keeps: so that an operator can go back to yesterday's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["PERIODS", "Aged", "kept"]

PERIODS = ((60.0, 60), (3600.0, 24), (86_400.0, 30))
"""Beside the newest versions, the last one of each of so many periods, of so many seconds, in which there were any:
minutes, hours and days. A cohort that learns may publish every second, and a person notices later."""


class Aged(NamedTuple):
    """A version, when it was created (unix seconds), and the bytes of its payload."""

    version: int
    created: float
    size: int = 0


def kept(versions: Iterable[Aged], *, newest: int, older_bytes: int) -> set[int]:
    """Return which versions are kept.

    Parameters
    ----------
    versions : iterable of Aged
        Those that there are.
    newest : int
        How many of the newest are kept whatever their age and size.
    older_bytes : int
        Bytes of payloads that the others may take together.

    Returns
    -------
    set of int
        The newest, and those that `PERIODS` says, newer ones first, as far as they fit.

    Examples
    --------
    >>> versions = [Aged(1, 0.0), Aged(2, 59.0), Aged(3, 4000.0), Aged(4, 4001.0)]
    >>> sorted(kept(versions, newest=1, older_bytes=100))
    [2, 4]
    """
    ordered = sorted(versions, reverse=True)
    found = {aged.version for aged in ordered[:newest]}
    older: set[int] = set()
    for size, count in PERIODS:
        last: dict[int, int] = {}
        for aged in ordered:
            last.setdefault(int(aged.created // size), aged.version)
        older.update(list(last.values())[:count])
    for aged in ordered[newest:]:
        if aged.version in older:
            older_bytes -= aged.size
            if older_bytes < 0:
                break
            found.add(aged.version)
    return found
