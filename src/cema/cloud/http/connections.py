"""Connections that do nothing are closed: anybody may open one, without any token."""

from __future__ import annotations

import asyncio
import logging
import resource
from typing import Any, ClassVar, Literal, TypeAlias

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from cema._util.events import report
from cema.cloud import events

__all__ = ["Connections", "guarded_protocol", "most_connections"]

log = logging.getLogger(__name__)

# From the first byte of a request, or from the connection, to the end of its headers.
HEADER_SECONDS = 10.0
# A whole request: the longest that a body may take, and its answer.
REQUEST_SECONDS = 360.0
MOST_CONNECTIONS = 8192
# File handles for the store, the log, the worker's pipe and what the threads read.
RESERVED_HANDLES = 256

Phase: TypeAlias = Literal["idle", "headers", "request"]


def most_connections() -> int:
    """Return how many connections this process may hold; its limit of file handles is raised as far as allowed.

    Examples
    --------
    >>> 1 <= most_connections() <= MOST_CONNECTIONS
    True
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + RESERVED_HANDLES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return max(1, min(MOST_CONNECTIONS, soft - RESERVED_HANDLES))


class Connections:
    """All connections of one server, and which of them have no request.

    Parameters
    ----------
    most : int
        When one more comes, the one that has been without a request for the longest time is closed; the new one itself
        when all have a request.
    header_seconds, request_seconds : float
        How long headers and a whole request may take.
    """

    def __init__(
        self,
        most: int,
        *,
        header_seconds: float = HEADER_SECONDS,
        request_seconds: float = REQUEST_SECONDS,
    ) -> None:
        self.most = most
        self.seconds = {"headers": header_seconds, "request": request_seconds}
        self._open: set[asyncio.Transport] = set()
        self._waiting: dict[asyncio.Transport, None] = {}  # the longest first

    def __len__(self) -> int:
        return len(self._open)

    def add(self, transport: asyncio.Transport) -> None:
        """Take a connection in, and close one where there are too many."""
        self._open.add(transport)
        self._waiting[transport] = None
        if len(self._open) > self.most:
            report(log, events.CONNECTIONS_FULL, most=self.most)
            victim = next(iter(self._waiting))
            self.remove(victim)
            victim.abort()

    def enter(self, transport: asyncio.Transport, phase: Phase) -> None:
        """Note what a connection is doing now."""
        self._waiting.pop(transport, None)
        if phase != "request" and transport in self._open:
            self._waiting[transport] = None

    def remove(self, transport: asyncio.Transport) -> None:
        """Forget a connection that has ended."""
        self._open.discard(transport)
        self._waiting.pop(transport, None)


class _GuardedProtocol(AutoHTTPProtocol):  # type: ignore[misc,valid-type]
    """uvicorn's protocol, with limits to how long a connection may do nothing."""

    everyone: ClassVar[Connections]
    _phase: Phase = "idle"
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.everyone.add(transport)
        self._enter("headers")

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._follow(waiting="headers")

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # Between requests uvicorn closes the connection itself, after a few seconds.
        self._follow(waiting="idle")

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.everyone.remove(self.transport)
        super().connection_lost(exc)

    def _follow(self, *, waiting: Phase) -> None:
        busy = self.cycle is not None and not self.cycle.response_complete
        phase: Phase = "request" if busy else waiting
        # A byte now and then gives no more time: the phase, and its timer, go on.
        if phase != self._phase:
            self._enter(phase)

    def _enter(self, phase: Phase) -> None:
        self._stop_timer()
        self._phase = phase
        self.everyone.enter(self.transport, phase)
        if phase != "idle":
            self._timer = self.loop.call_later(self.everyone.seconds[phase], self._expire)

    def _expire(self) -> None:
        report(log, events.CONNECTION_SLOW, phase=self._phase)
        self.transport.abort()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def guarded_protocol(everyone: Connections) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol class for one server, guarded by its connections.

    Parameters
    ----------
    everyone : Connections
        Of the server.

    Returns
    -------
    type
        For uvicorn's setting ``http``.
    """
    protocol: type[asyncio.Protocol] = type("GuardedProtocol", (_GuardedProtocol,), {"everyone": everyone})
    return protocol
