"""Checks of files: bundles, secrets, and the folders that are written to."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import time
from pathlib import Path

from cema._util.machine import EARLIEST, FREE_BYTES, free_bytes
from cema._util.units import human_bytes
from cema.cli.checks.base import Wrong

__all__ = ["check_bundle", "check_folder", "check_secret", "plausible_clock"]

_MAKE_ROOM = "free some room, or name a folder on another disk"


def check_bundle(path: Path) -> str:
    """Read a bundle, and let its model predict its golden batch."""
    from cema.edge.runtime import build_runtime
    from cema.formats.bundle import Bundle

    bundle = Bundle.load(path)
    build_runtime(bundle)
    manifest = bundle.manifest
    count = len(bundle.golden_images)
    return f"{manifest.model}, {manifest.classes} classes; its {count} golden images give the logits that they should"


def check_secret(path: Path) -> None:
    """Refuse a secret that every user of the machine can read."""
    if not path.exists():
        return  # whoever reads it says so
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o007:
        raise Wrong(f"{path}: every user of this machine can read it (mode {mode:04o})", f"chmod 600 {path}")


def check_folder(folder: Path, *, may_take: int, setting: str) -> str:
    """Look for room, and whether it can be written, in a folder that is there or can be made.

    Parameters
    ----------
    folder : Path
    may_take : int
        The bytes that will be in it, at most.
    setting : str
        What says so.
    """
    there = folder
    while not there.exists():
        there = there.parent
    try:
        if there == folder:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"cema check")
        elif not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
        free = free_bytes(there)
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        remedy = _MAKE_ROOM if full else "give this user the right to write there"
        raise Wrong(f"{there}: cannot be written: {error.strerror}", remedy) from error
    if free < FREE_BYTES:
        told = f"{human_bytes(free)} are free in {there}, {human_bytes(FREE_BYTES)} are needed"
        raise Wrong(told, _MAKE_ROOM)
    note = "" if free > may_take else f"; {setting} allows {human_bytes(may_take)}: lower it"
    return f"{folder} can be written, {human_bytes(free)} are free{note}"


def plausible_clock() -> str:
    """Look whether this machine's clock can be right."""
    now = time.time()
    text = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < EARLIEST:
        raise Wrong(
            f"it is {text}, which is before this program was made", "set the clock, for example by NTP"
        )
    return text
