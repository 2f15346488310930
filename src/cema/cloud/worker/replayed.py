"""Which samples a checkpoint may replay, read without the models that it is of."""

from __future__ import annotations

import json
from typing import Any

import msgspec

__all__ = ["replayed_seqs"]


class _Outer(msgspec.Struct):
    adapter: bytes


def replayed_seqs(checkpoint: bytes | None) -> frozenset[int] | None:
    """Return the sequence numbers of the samples in the replay buffer of a worker's checkpoint.

    Parameters
    ----------
    checkpoint : bytes or None
        As the worker commits it; None before the first.

    Returns
    -------
    frozenset of int or None
        None where that cannot be told: the algorithm is not CEMA's own.
    """
    if checkpoint is None:
        return frozenset()
    try:
        adapter = msgspec.msgpack.decode(checkpoint, type=_Outer).adapter
        size = int.from_bytes(adapter[:8], "little")
        values = json.loads(json.loads(adapter[8 : 8 + size])["__metadata__"]["cema"])
        return frozenset(_numbers(values["replay"]))
    except (msgspec.MsgspecError, ValueError, KeyError, TypeError):
        return None


def _numbers(replay: Any) -> list[int]:
    if isinstance(replay, list):
        return [int(item) for item in replay]
    return [seq for first, count in replay["runs"] for seq in range(first, first + count)]
