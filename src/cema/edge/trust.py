"""Which keys the device trusts: what it remembers, and asking the cloud for newer keys documents, rarely."""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Callable

from cema.edge.background import Clock
from cema.edge.client import CloudClient
from cema.edge.retry import LinkError
from cema.edge.state import StateFolder
from cema.errors import FormatError, KeysRejected
from cema.formats.bundle import Bundle
from cema.formats.keyring import Keyring, decode_documents

__all__ = ["Trust"]

logger = logging.getLogger(__name__)

# Between two questions, give or take a tenth: how long a revocation may take to arrive.
_HOUR = 3600.0
# After a question that brought no answer. Updates are asked for meanwhile.
_AGAIN = 300.0


class Trust:
    """The device's keyring, brought up to date.

    Parameters
    ----------
    link : CloudClient
    state : StateFolder
        Where accepted documents are remembered.
    bundle : Bundle
        Its keys are trusted before the first document.
    cohort : str
    clock : Clock
    count : callable
        Called with a counter's name and 1 for every rejection.

    Attributes
    ----------
    keyring : Keyring
        The keys that are trusted now.
    """

    def __init__(
        self,
        link: CloudClient,
        state: StateFolder,
        bundle: Bundle,
        cohort: str,
        *,
        clock: Clock,
        count: Callable[[str, int], None],
    ) -> None:
        self.keyring: Keyring = state.keyring(bundle, cohort)
        self._link, self._state, self._clock = link, state, clock
        self._count = count
        self._jitter = random.Random()  # noqa: S311 - spreads the questions of a fleet
        self._due = float("-inf")
        self._etag: str | None = None
        self._saved = True
        self._counted = ("", "")

    def refresh(self, *, at_once: bool = False) -> bool:
        """Ask the cloud, if it is time to; return whether other keys are trusted now.

        A cloud that knows nothing of keys documents, or does not answer, changes nothing.

        Parameters
        ----------
        at_once : bool, default False
            Ask although it is not time yet: an update is signed by a key that is not known.
        """
        if not self._saved:
            self._save()
        now = self._clock.monotonic()
        if now < self._due and not at_once:
            return False
        self._due = now + _HOUR * self._jitter.uniform(0.9, 1.1)
        try:
            reply = self._link.keys(self._etag)
        except LinkError as error:
            logger.warning("keys: the cloud was not asked for new keys: %s", error)
            self._due = now + _AGAIN * self._jitter.uniform(0.9, 1.1)
            return False
        if reply.status != 200:
            return False
        self._etag = reply.etag
        return self._take(reply.body)

    def _take(self, body: bytes) -> bool:
        before = self.keyring
        try:
            documents = decode_documents(body)
        except FormatError as error:
            self._note(body, KeysRejected("malformed", str(error)))
            return False
        self.keyring, rejection = before.accept_all(documents, now=self._clock.now())
        if rejection is not None:
            self._note(body, rejection)
        if self.keyring is before:
            return False
        logger.info(
            "keys: document %d: trusted are %s", self.keyring.serial, ", ".join(sorted(self.keyring.trusted))
        )
        self._save()
        return True

    def _save(self) -> None:
        """Remember the documents; a revocation counts at once, also where the disk does not take it yet."""
        try:
            self._state.save_keyring(self.keyring)
            self._saved = True
        except OSError as error:
            self._saved = False
            logger.warning("keys: document %d cannot be remembered yet: %s", self.keyring.serial, error)

    def _note(self, body: bytes, rejection: KeysRejected) -> None:
        """Count a rejection once for as long as the answer stays; a clock that is set right may cure it."""
        self._etag = None
        noted = (hashlib.sha256(body).hexdigest(), rejection.reason)
        if noted != self._counted:
            self._counted = noted
            self._count(f"rejected_keys.{rejection.reason}", 1)
            logger.warning("%s", rejection)
