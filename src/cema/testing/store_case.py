"""What the tests of a store start from: how to open it, and how to use it in one line."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from cema.cloud.store.base import Store
from cema.cloud.store.open import open_store
from cema.formats.sample import Sample
from cema.testing.store_data import numbered_sample

__all__ = ["BASE", "MANY", "PATIENCE", "ROOMY", "StoreCase", "fill", "put", "together"]

BASE = "0" * 64
MANY = 10**6
PATIENCE = 60.0
# Caps of this many times the smallest are never reached.
ROOMY = 40


class StoreCase:
    """Opens the store under test; `cema.testing.stores.StoreSuite` says how to use it.

    Attributes
    ----------
    cap
        The smallest cap that the tests give a store, in bytes.
    """

    __test__: ClassVar[bool] = False
    cap: ClassVar[int] = 400_000

    def url(self, folder: Path) -> str:
        """Return the URL of the store that belongs to a folder, which is empty at first.

        Another folder is another store, and the same folder the same store, also for another process.
        """
        raise NotImplementedError(
            "a store's tests say its URL, or how to make it: override url or make_store"
        )

    def make_store(self, folder: Path, *, max_bytes: int) -> Store:
        """Open the store that belongs to a folder: a new one at first, the same one again after that."""
        return open_store(self.url(folder), max_bytes=max_bytes)

    def check_size(self, folder: Path, store: Store, max_bytes: int) -> None:
        """Check that a store keeps to its cap; override to look at what it really takes."""
        assert store.used_bytes() <= max_bytes

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        """Return a store with one cohort, `north`; it is closed after the test."""
        opened = self.open_north(tmp_path)
        yield opened
        opened.close()

    def open_north(self, folder: Path, *, max_bytes: int | None = None) -> Store:
        """Open the store that belongs to a folder, with one cohort, `north`; without a cap there is much room."""
        store = self.make_store(folder, max_bytes=max_bytes or ROOMY * self.cap)
        store.open_cohort("north", base=BASE)
        return store


def put(store: Store, samples: list[Sample], cohort: str = "north", max_backlog: int = MANY) -> list[str]:
    """Store samples and return their verdicts."""
    verdicts = store.put(cohort, samples, device="d", now=1.0, max_backlog=max_backlog)
    assert [v.id for v in verdicts] == [s.id for s in samples]
    return [v.verdict for v in verdicts]


def fill(store: Store, numbers: Iterator[int], size: int) -> None:
    """Store samples of a size one by one until the store refuses."""
    for i in numbers:
        put(store, [numbered_sample(i, size)])


def together(*calls: Callable[[], None]) -> None:
    """Make calls at the same time, each in a thread, and raise what one of them raised."""
    begin = threading.Barrier(len(calls))
    errors: list[BaseException] = []

    def run(call: Callable[[], None]) -> None:
        begin.wait(PATIENCE)
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    if errors:
        raise errors[0]
