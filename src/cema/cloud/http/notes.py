"""Notes for people, taken on the event loop and written to the store together, soon after."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod

from starlette.concurrency import run_in_threadpool

__all__ = ["Notes"]


class Notes(ABC):
    """What is noted must not hold a request up: what cannot be written is dropped, and nobody waits.

    Parameters
    ----------
    delay : float
        Seconds from a note to its writing, with all that came meanwhile.
    """

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._writer: asyncio.Task[None] | None = None

    def _write_later(self) -> None:
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_soon())

    async def _write_soon(self) -> None:
        await asyncio.sleep(self._delay)
        self._writer = None
        await run_in_threadpool(self.write)

    @abstractmethod
    def write(self) -> None:
        """Write what was noted; blocks."""
