"""An update without a signature: what waits for it, and when the next try is due."""

from __future__ import annotations

from typing import Literal, TypeAlias

from cema.cloud.store.counts import Outcome
from cema.errors import SigningError

__all__ = ["Signed", "Unsigned"]

Signed: TypeAlias = Outcome | Literal["renewed", "again"]
"""Why a payload is signed: what the gate said of it, ``renewed``, or ``again`` for an act of an operator."""

FIRST_DELAY = 5.0
LONGEST_DELAY = 300.0


class Unsigned:
    """What a failed signature leaves to do: a signer that is slow or gone must not hold up the steps.

    Attributes
    ----------
    waiting : tuple of str and bytes, or None
        What the gate said of a payload that could not be signed, and that payload.
    problem : str or None
        Why the last try failed; None after one that succeeded.
    """

    def __init__(self) -> None:
        self.waiting: tuple[Signed, bytes] | None = None
        self.problem: str | None = None
        self._failed_at = 0.0
        self._delay = 0.0

    def may_try(self, now: float) -> bool:
        """Tell whether it is time for another try: twice as long after every failure, up to five minutes.

        A clock that was set back does not make it longer.
        """
        return not 0 <= now - self._failed_at < self._delay

    def failed(self, outcome: Signed, payload: bytes, now: float, error: SigningError) -> None:
        """Take note of a failure, and keep the payload for the next try."""
        self.waiting = (outcome, payload)
        self.problem = str(error)[:500]
        self._failed_at = now
        self._delay = min(max(FIRST_DELAY, 2 * self._delay), LONGEST_DELAY)

    def succeeded(self) -> None:
        """Take note that signatures come again."""
        self.__init__()  # type: ignore[misc]

    def forget(self) -> None:
        """Drop the payload: there is, or will be, a newer one. The next try is due when it was."""
        self.waiting = None
