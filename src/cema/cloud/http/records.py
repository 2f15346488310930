"""One log record for each request: who asked for what, and how it was answered.

Neither a token nor a path, a query or a body is ever a part of it: the route stands for the path, and the name that the
token belongs to for the token.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any

from cema._util.events import report
from cema.cloud import events

__all__ = ["RequestRecord", "note_sender"]

log = logging.getLogger(__name__)

READING = frozenset({"GET", "HEAD", "OPTIONS"})


class RequestRecord:
    """What is known of the request that is being answered; for one request, whichever thread works on it."""

    def __init__(self) -> None:
        self.device: str | None = None
        self.cohort: str | None = None
        _CURRENT.set(self)

    def write(self, method: str, route: str, status: int, seconds: float) -> None:
        """Log it: writes and errors at INFO or above, reads at DEBUG."""
        fields: dict[str, Any] = {
            "method": method,
            "route": route,
            "status": status,
            "seconds": round(seconds, 6),
            "device": self.device,
            "cohort": self.cohort,
        }
        # Uploads are bounded by the limits of each device, and all written; errors cost a sender nothing.
        crowd = f"{self.device} {status}"
        if status >= 500:
            report(log, events.REQUEST_FAILED, crowd=crowd, **fields)
        elif status >= 400:
            report(log, events.REQUEST_REFUSED, crowd=crowd, **fields)
        elif method in READING:
            report(log, events.REQUEST_READ, **fields)
        else:
            report(log, events.REQUEST_WRITTEN, crowd=None, **fields)


# Threads and dependencies have copies of the context, and with it the same object.
_CURRENT: ContextVar[RequestRecord] = ContextVar("cema_request_record")


def note_sender(device: str, cohort: str | None = None) -> None:
    """Take note of whose token the present request carries, and the cohort that it is for."""
    record = _CURRENT.get(None)
    if record is not None:
        record.device = device
        record.cohort = cohort or record.cohort
