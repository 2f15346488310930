"""What the bytes of files hold: the only witness that something was really deleted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cema.formats.sample import Sample

__all__ = ["found_in", "marked_sample"]

PIECE = 32


def found_in(folder: Path, contents: Iterable[bytes]) -> set[tuple[str, int]]:
    """Return in which files of a folder a piece of some contents is found, and of which of them.

    Every content is looked for in pieces, since a database may cut it at any place.
    """
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    pieces = [
        (number, content[start : start + PIECE])
        for number, content in enumerate(contents)
        for start in range(0, len(content) - PIECE, max(PIECE, len(content) // 8))
    ]
    return {(path.name, number) for path, data in files.items() for number, piece in pieces if piece in data}


def marked_sample(number: int, size: int = 6000) -> Sample:
    """A sample whose bytes are found nowhere else by chance, not even 32 of them."""
    image = np.random.default_rng(number).bytes(size)
    digest = hashlib.sha256(image).hexdigest()
    return Sample(id=digest, image=image, entropy=0.5, label=number % 4, version=0, captured_at=1e9 + number)
