"""What a worker commits with each step: the learner's state, and what it must remember beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from cema.adapt.base import Learner
from cema.cloud.worker.fairness import Ledger
from cema.cloud.worker.gate import AgreementWindow
from cema.errors import FormatError, StoreError

__all__ = ["CohortUnreadable", "Progress", "dump_checkpoint", "load_checkpoint"]


class CohortUnreadable(StoreError):  # noqa: N818 - a state, not a fault of a call
    """The cohort's checkpoint cannot be read, or fits neither models nor settings."""


class Progress(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the worker must remember beside the learner's own state.

    Attributes
    ----------
    since_candidate : int
        Steps since the last candidate of an update.
    rejected_in_a_row : int
        Candidates that were rejected since the last that was published.
    idle : int
        Replay-only steps since the last new samples.
    window : AgreementWindow
        How the models did on the newest samples.
    ledger : Ledger
        What is known of the devices.
    held : list of int
        Sequence numbers of samples that were chosen, and wait until a batch is full.
    held_since : float
        When the first of them came, unix seconds.
    """

    since_candidate: int = 0
    rejected_in_a_row: int = msgspec.field(name="held_back", default=0)
    idle: int = 0
    window: AgreementWindow = msgspec.field(name="evidence", default_factory=AgreementWindow)
    ledger: Ledger = msgspec.field(default_factory=Ledger)
    held: list[int] = []
    held_since: float = 0.0

    def hold(self, held: Sequence[int], since: float | None) -> None:
        """Keep samples until a batch is full; without any, or since None, the time since when stays as it is."""
        self.held = sorted(held)
        if self.held and since is not None:
            self.held_since = since

    def learned(self, share: float, most: int) -> None:
        """Take note of a step on a share of a full batch: it calls for that share of `most` replay-only steps."""
        self.idle = max(0, self.idle - math.ceil(most * share))

    def acted(self) -> None:
        """Take note that an operator has changed what devices run: what was compared before says nothing of it."""
        self.window = AgreementWindow()
        self.since_candidate = self.rejected_in_a_row = 0

    def judged(self, outcome: str, *, restricted: bool = False) -> None:
        """Take note of what the gate said of a candidate; a `restricted` one is not for all devices yet."""
        if outcome in {"waiting", "unsigned", "renewed"}:
            return
        if outcome == "reverted":
            self.window.running_is("source")
        if outcome == "published" and not restricted:
            self.window.running_is("adapted")
        self.rejected_in_a_row = 0 if outcome == "published" else self.rejected_in_a_row + 1


class _Checkpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    progress: Progress
    adapter: bytes
    format: str = "cema.worker/1"


def dump_checkpoint(progress: Progress, learner: Learner[Any]) -> bytes:
    """Return a checkpoint, MessagePack."""
    return msgspec.msgpack.encode(_Checkpoint(progress=progress, adapter=learner.dumps()))


def load_checkpoint(data: bytes, learner: Learner[Any], *, cohort: str) -> Progress:
    """Load a checkpoint into a new learner, and return the rest.

    Raises
    ------
    CohortUnreadable
        It cannot be read, or does not fit the learner's models and settings.
    """
    try:
        checkpoint = msgspec.msgpack.decode(data, type=_Checkpoint)
        learner.loads(checkpoint.adapter)
    except (msgspec.MsgspecError, FormatError) as error:
        raise CohortUnreadable(
            f"the checkpoint of cohort {cohort!r} cannot be read: {error}; run the CEMA version, with the models and "
            "settings, that wrote it, or give the cohort a new name to start anew"
        ) from error
    return checkpoint.progress
