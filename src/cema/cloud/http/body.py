"""Request bodies, read by hand: within a limit of bytes and of time, whatever the sender announces."""

from __future__ import annotations

import asyncio

from fastapi import Request
from starlette.requests import ClientDisconnect

from cema.cloud.http.errors import ApiError

__all__ = ["announced_bytes", "read_body"]

# What is still read of a body that is too large, so that its sender gets to see the answer, and for how long.
DRAIN_BYTES = 64 * 2**20
BODY_SECONDS = 300.0
# Before that, a body must have begun to come, and come at this rate: the slowest modem is faster.
FIRST_SECONDS = 20.0
LEAST_RATE = 512


def announced_bytes(request: Request) -> int | None:
    """Return how many bytes a request's body has by its header, or None where it does not say."""
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isdecimal() else None


async def read_body(request: Request, limit: int) -> bytes:
    """Read a request's body, never holding more than `limit` bytes of it.

    Raises
    ------
    ApiError
        413 when the body is larger; 408 when it does not arrive; 400 when its sender has gone; 503 when the
        server ends first.
    """
    announced = announced_bytes(request) or 0
    try:
        async with asyncio.timeout(FIRST_SECONDS) as deadline:
            body, total = await _read(request, limit, announced, deadline)
    except TimeoutError:
        raise ApiError(
            "timeout",
            f"the body came slower than {LEAST_RATE} bytes a second, or not within {BODY_SECONDS:g} s",
            "send smaller requests, over a better connection",
            headers={"Connection": "close"},
        ) from None
    except asyncio.CancelledError:
        # The server ends, and its patience with open requests has ended before.
        raise ApiError(
            "stopping", "the server is being stopped", "send it again", headers={"Connection": "close"}
        ) from None
    except ClientDisconnect:
        raise ApiError("disconnected", "the sender went away", "send it again") from None
    if body is None:
        raise ApiError(
            "too_large",
            f"the body may have {limit} bytes at most, {max(total, announced)} came",
            "send fewer samples in a request",
        )
    return body


async def _read(
    request: Request, limit: int, announced: int, deadline: asyncio.Timeout
) -> tuple[bytes | None, int]:
    """Return the body, or None when it is too large, and how many bytes of it were read."""
    too_large = announced > limit
    chunks: list[bytes] = []
    total = 0
    if announced > limit + DRAIN_BYTES:
        return None, total
    begin = asyncio.get_running_loop().time()
    async for chunk in request.stream():
        total += len(chunk)
        deadline.reschedule(begin + min(BODY_SECONDS, FIRST_SECONDS + total / LEAST_RATE))
        if total <= limit and not too_large:
            chunks.append(chunk)
            continue
        too_large = True
        chunks.clear()
        if total > limit + DRAIN_BYTES:
            break
    return (None if too_large else b"".join(chunks)), total
