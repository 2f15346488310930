"""What an upload says beside its frame: which of its samples were drawn at random, and with what probability.

A device sends a small share of its predictions whatever its selection says. Only these tell how models do on all that
devices see. The header `HEADER` names them, since a frame takes no further fields: a cloud that does not know it takes
all samples for selected ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from cema.errors import FormatError

__all__ = ["HEADER", "MAX_BYTES", "SMALLEST_SHARE", "Draw", "decode_draws", "encode_draws"]

HEADER = "CEMA-Drawn"
"""The name of the request header."""
MAX_BYTES = 4096
"""Bytes that its value may have."""
SMALLEST_SHARE = 1e-6
"""The smallest probability: what is drawn with less would outweigh all other samples."""


class Draw(msgspec.Struct, frozen=True):
    """How a sample was drawn.

    Attributes
    ----------
    share : float
        The probability with which it was drawn, from `SMALLEST_SHARE` to 1. It stands for 1 / share predictions.
    selected : bool
        Whether the device's selection chose it too.
    """

    share: float
    selected: bool


class _Group(msgspec.Struct, frozen=True):
    """Positions of samples that were drawn with one probability; further members are ignored."""

    share: Annotated[float, msgspec.Meta(ge=SMALLEST_SHARE, le=1)]
    selected: list[int] = []
    only: list[int] = []


_decoder = msgspec.json.Decoder(list[_Group])


def encode_draws(draws: Mapping[int, Draw]) -> str:
    """Return the value of the header.

    Parameters
    ----------
    draws : mapping of int to Draw
        By position in the frame, from 0.

    Returns
    -------
    str
        JSON, ASCII. It may be longer than `MAX_BYTES`: then fewer samples belong into the frame.

    Examples
    --------
    >>> encode_draws({0: Draw(0.01, True), 3: Draw(0.01, False)})
    '[{"share":0.01,"selected":[0],"only":[3]}]'
    """
    groups: dict[float, tuple[list[int], list[int]]] = {}
    for position, draw in sorted(draws.items()):
        groups.setdefault(draw.share, ([], []))[not draw.selected].append(position)
    return msgspec.json.encode(
        [_Group(share, selected, only) for share, (selected, only) in groups.items()]
    ).decode()


def decode_draws(value: str, *, samples: int) -> dict[int, Draw]:
    """Read the value of the header.

    Parameters
    ----------
    value : str
        What `encode_draws` returned.
    samples : int
        Samples in the frame.

    Returns
    -------
    dict of int to Draw
        By position in the frame.

    Raises
    ------
    FormatError
        If it is not such a value, is longer than `MAX_BYTES`, or names a sample twice or one that is not there.
    """
    if len(value) > MAX_BYTES:
        raise FormatError(
            f"expected a header {HEADER} of at most {MAX_BYTES} bytes, got {len(value)}: "
            "send fewer samples in a request"
        )
    try:
        groups = _decoder.decode(value)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FormatError(
            f"expected a header {HEADER} in JSON, an array of objects with `share`, `selected` and `only`: {error}"
        ) from error
    found: dict[int, Draw] = {}
    for group in groups:
        for positions, selected in ((group.selected, True), (group.only, False)):
            for position in positions:
                if not 0 <= position < samples or position in found:
                    raise FormatError(
                        f"expected each position from 0 to {samples - 1} at most once in the header {HEADER}, "
                        f"got {position}: count the samples of the frame from 0"
                    )
                found[position] = Draw(group.share, selected)
    return found
