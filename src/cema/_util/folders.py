"""Folders of the user."""

from __future__ import annotations

from pathlib import Path

from platformdirs.unix import Unix

__all__ = ["user_cache"]


def user_cache(name: str) -> Path:
    """Return a folder of the user's cache; nothing is lost with it that cannot be made or downloaded again.

    Parameters
    ----------
    name : str
        What is kept there.

    Returns
    -------
    Path
        ``$XDG_CACHE_HOME/cema/NAME``, or ``~/.cache/cema/NAME`` where that variable is not set or, against its
        standard, no absolute path. It need not exist.

    Examples
    --------
    >>> user_cache("corruptions").parts[-2:]
    ('cema', 'corruptions')
    """
    # The rules of Unix everywhere, macOS included: that is where earlier releases kept their files.
    return Path(Unix("cema", appauthor=False).user_cache_dir) / name
