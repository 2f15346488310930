"""A folder that is filled whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cema.errors import ConfigError

__all__ = ["check_empty", "staged_folder"]


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Give a place to write what shall appear in a new or an empty folder, at the end and all of it.

    Parameters
    ----------
    folder : Path
        It may be the current folder: it stays the same one, so that a shell in it can go on.

    Yields
    ------
    Path
        A folder on the same disk. Whatever the block raises, nothing of it is left.

    Raises
    ------
    ConfigError
        There is something in `folder`, or it is none.
    """
    exists = check_empty(folder)
    absolute = folder.absolute()
    hidden = f".{absolute.name}.{os.urandom(6).hex()}.tmp"
    staging = (absolute if exists else absolute.parent) / hidden
    staging.mkdir(parents=True)
    try:
        yield staging
        if not exists:
            staging.rename(absolute)
            return
        moved: list[Path] = []
        try:
            for entry in sorted(staging.iterdir()):
                entry.rename(absolute / entry.name)
                moved.append(absolute / entry.name)
        except BaseException:
            for entry in moved:
                entry.rename(staging / entry.name)
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_empty(folder: Path) -> bool:
    """Tell whether a folder exists; refuse one that is not empty."""
    try:
        entries = sorted(entry.name for entry in folder.iterdir())
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        raise ConfigError(
            f"{folder}: expected a new or an empty folder, got a file; name another one"
        ) from None
    if entries:
        shown = ", ".join(entries[:3]) + (" …" if len(entries) > 3 else "")
        raise ConfigError(
            f"{folder}: expected a new or an empty folder, found {shown} in it; name another folder, or move away "
            "what is there: nothing is overwritten"
        )
    return True
