"""Log messages with a stable name: what programs look for stays the same when the words change."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["MEMBERS", "RESERVED", "Event", "report"]

MEMBERS = ("time", "level", "logger", "process", "event", "message", "exception")
"""What a line of JSON may have beside the fields of its event."""
RESERVED = frozenset({*MEMBERS, "crowd", "exc_info"})
"""Those, and the parameters of `report`: no event has fields of these names."""


@dataclass(frozen=True, slots=True)
class Event:
    """A kind of log message.

    Attributes
    ----------
    name
        Stable, with dots: ``update.published``.
    level
        One of `logging`.
    message
        For people, with the fields as ``%(name)s``.
    meaning
        What happened, and what to do about it where there is something to do.
    fields
        What each field holds, by its name. A field that the message does not show is in lines of JSON alone.

    Raises
    ------
    ValueError
        A field has a reserved name.

    Examples
    --------
    >>> Event("a.b", logging.INFO, "it took %(seconds).1f s", "It took a while.", {"seconds": "how long"}).name
    'a.b'
    """

    name: str
    level: int
    message: str
    meaning: str
    fields: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if taken := RESERVED & self.fields.keys():
            raise ValueError(
                f"event {self.name}: expected fields of other names than {sorted(taken)}; rename them"
            )


def report(
    log: logging.Logger,
    event: Event,
    /,
    *,
    exc_info: BaseException | None = None,
    crowd: str | None = "",
    **values: Any,
) -> None:
    """Log an event.

    Parameters
    ----------
    log
        The logger of the module.
    event
        What happened.
    exc_info
        An error whose traceback is logged too.
    crowd
        Of the messages of one event and one crowd only some are written in some seconds, see
        `cema._util.logs.Throttle`. None: all are.
    **values
        The event's fields.
    """
    if log.isEnabledFor(event.level):
        extra = {"event": event.name, "fields": values, "crowd": crowd}
        shown = (values,) if values else ()
        log.log(event.level, event.message, *shown, exc_info=exc_info, extra=extra, stacklevel=2)
