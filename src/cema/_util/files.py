"""Files that are whole after a crash: a temporary file, fsync, rename, fsync of the folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["keep_private", "sync_folder", "unfinished", "write_atomic", "write_new", "write_synced"]


def keep_private(path: Path) -> None:
    """Take everybody else's permissions on a file or folder away, where this user may.

    A folder that is shared on purpose (its sticky bit is set, as that of ``/tmp``) stays as it is.

    Parameters
    ----------
    path : Path
        May be missing.
    """
    with suppress(OSError):  # not ours, or a file system without permissions: then there is nothing to do
        mode = path.stat().st_mode
        shared = stat.S_ISDIR(mode) and mode & stat.S_ISVTX
        if mode & 0o077 and not shared:
            path.chmod(stat.S_IMODE(mode) & ~0o077)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable.

    Parameters
    ----------
    folder : Path
        An existing folder.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Create a file and make its content durable; its name is so only after `sync_folder`.

    Parameters
    ----------
    path : Path
        A file that does not exist yet.
    data : bytes
        Its content.
    mode : int, default 0o644
        Its permissions, from the moment it exists (less what the process's umask takes away).

    Raises
    ------
    FileExistsError
        If `path` exists.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Give a place to write a file that shall appear under its name only when it is whole.

    Parameters
    ----------
    path : Path
        What the file will be called.

    Yields
    ------
    Path
        An unused hidden name in the same folder. Move the file to `path` when it is written; what is still under the
        hidden name at the end is removed.

    Examples
    --------
    >>> with unfinished(Path("model.bin")) as temporary:
    ...     temporary.parent, temporary.name.startswith(".model.bin.")
    (PosixPath('.'), True)
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}.tmp")
    try:
        yield temporary
    finally:
        with suppress(OSError):  # it was moved, or never made; why is said by the error that is on its way
            temporary.unlink()


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file, replacing what is there: readers and crashes see the old content or the new, all of it.

    Parameters
    ----------
    path : Path
        The file; its folder must exist.
    data : bytes
        Its content.
    mode : int, default 0o644
        Its permissions.
    """
    with unfinished(path) as temporary:
        write_synced(temporary, data, mode=mode)
        os.replace(temporary, path)
    sync_folder(path.parent)


def write_new(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file that must not exist yet, whole or not at all.

    Parameters
    ----------
    path : Path
        The file; its folder must exist.
    data : bytes
        Its content.
    mode : int, default 0o644
        Its permissions.

    Raises
    ------
    FileExistsError
        If `path` exists; it is left as it is.
    """
    with unfinished(path) as temporary:
        write_synced(temporary, data, mode=mode)
        os.link(temporary, path)  # unlike rename, link refuses to replace
    sync_folder(path.parent)
