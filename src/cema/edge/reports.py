"""Reports: what the device tells the cloud of itself, beside its polls and at most so often."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable

from cema.edge.background import Clock
from cema.edge.client import CloudClient
from cema.edge.retry import LinkError
from cema.edge.serving import Facts
from cema.formats.report import DeviceReport, Refused, encode_report

__all__ = ["Reporter"]

logger = logging.getLogger(__name__)

# A cloud that takes no reports may be one that does after its next upgrade.
_NOT_TAKEN_SECONDS = 3600.0


class Reporter:
    """Sends reports; one that does not arrive is not sent again, and the next one says more.

    Parameters
    ----------
    link : CloudClient
    read : callable
        Returns the facts of this moment.
    seconds : float
        Between two reports, at least, while the same version serves and none was refused; 0: no reports.
    clock : Clock
    """

    def __init__(self, link: CloudClient, read: Callable[[], Facts], *, seconds: float, clock: Clock) -> None:
        self._link, self._read, self._seconds, self._clock = link, read, seconds, clock
        self._boot = secrets.token_hex(8)
        self._number = 0
        self._next = float("-inf")
        self._waits = False  # for a cloud that takes none
        self._told: tuple[int, Refused | None] | None = None
        self.refused: Refused | None = None
        """The last version that was not installed, or that the device went back from."""

    @property
    def seconds(self) -> float:
        """Between two reports; infinity where there are none."""
        return self._seconds or float("inf")

    def send_if_due(self) -> None:
        """Send a report if it is time to, or if another version serves or was refused since the last one."""
        now = self._clock.monotonic()
        early = now < self._next
        if not self._seconds or (early and self._waits):
            return
        facts = self._read()
        telling = facts.serving.version, self.refused
        if early and telling == self._told:
            return
        self._number += 1
        report = DeviceReport(
            boot=self._boot,
            number=self._number,
            serving=facts.serving,
            before=facts.before,
            refused=self.refused,
            counts=dict(facts.counts),
            selection=dict(facts.selection),
            thresholds=dict(facts.thresholds),
            problem=facts.problem,
            sent_at=max(0.0, self._clock.now()),
        )
        self._waits = False
        self._next = now + self._seconds
        try:
            self._link.send_report(encode_report(report))
        except LinkError as error:
            logger.debug("a report was lost: %s", error)
            if error.permanent:
                self._waits, self._next = True, now + _NOT_TAKEN_SECONDS
        else:
            self._told = telling
