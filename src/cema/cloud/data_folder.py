"""The cloud's data folder: one process at a time has it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from cema.errors import StoreError

__all__ = ["lock_data_folder"]


def lock_data_folder(folder: Path) -> IO[bytes]:
    """Take the data folder for this process; the kernel gives it back when the process ends.

    Parameters
    ----------
    folder : Path
        Made when it is absent, for this user alone.

    Returns
    -------
    file
        Holds the lock until it is closed.

    Raises
    ------
    StoreError
        Another process has the folder, or it cannot be written.
    """
    try:
        # Others on this machine have no business here; a folder that was there keeps its mode.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = open(folder / "server.lock", "ab")  # noqa: SIM115 - held as long as the caller wants
    except OSError as error:
        raise StoreError(f"the data folder {folder} cannot be written: {error}; choose another") from error
    try:
        os.set_inheritable(file.fileno(), False)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise StoreError(
            f"another cloud is using the data folder {folder}; stop it, or configure another folder"
        ) from error
    return file
