"""Load ahead, so that the method never waits for a file to be decoded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["prefetch"]

T = TypeVar("T")


def prefetch(load: Callable[[int], T], count: int, *, ahead: int = 4, threads: int = 2) -> Iterator[T]:
    """Yield ``load(0)`` to ``load(count - 1)`` in order, loaded on threads before they are asked for.

    Parameters
    ----------
    load : callable
        Called from several threads; what it does should release the interpreter, as decoding an image does.
    count : int
        How many there are.
    ahead : int
        How many may wait loaded or in the making, at least 1; bounds memory.
    threads : int
        How many are loaded at once, at least 1.

    Yields
    ------
    T
        What `load` returned. An error of `load` is raised at its place.

    Raises
    ------
    ValueError
        If `ahead` or `threads` is below 1.

    Examples
    --------
    >>> list(prefetch(lambda i: i * i, 4))
    [0, 1, 4, 9]
    """
    if ahead < 1 or threads < 1:
        raise ValueError(f"ahead and threads must be at least 1, got {ahead} and {threads}")
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="prefetch")
    try:
        for index in range(count):
            waiting.append(pool.submit(load, index))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also when the consumer stops early
        pool.shutdown(wait=True, cancel_futures=True)
