"""What may be asked of a machine: an address to listen on, a clock that can be right, room on a disk."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

__all__ = ["EARLIEST", "FREE_BYTES", "address_here", "free_bytes", "listening_socket"]

#: No machine's clock is before the day that this was written, in unix seconds.
EARLIEST = 1_790_000_000.0
#: Less room than this is none.
FREE_BYTES = 64 * 2**20


def address_here(host: str) -> str:
    """Return the address, as a URL has it, under which what listens on `host` is reached from this machine.

    Examples
    --------
    >>> address_here("0.0.0.0"), address_here("::"), address_here("localhost")
    ('127.0.0.1', '[::1]', 'localhost')
    """
    seen = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not listened on
    return f"[{seen}]" if ":" in seen else seen


def free_bytes(folder: Path | str) -> int:
    """Return the room on a folder's disk.

    Raises
    ------
    OSError
        The folder cannot be looked at.
    """
    return shutil.disk_usage(folder).free


def listening_socket(host: str, port: int) -> socket.socket:
    """Take an address, for the caller to close; nobody can connect yet.

    Parameters
    ----------
    host : str
        A name or an address, of either family.
    port : int
        0 takes a free one.

    Raises
    ------
    OSError, OverflowError
        It is taken, or none of this machine's.
    """
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except BaseException:
        listener.close()
        raise
    return listener
