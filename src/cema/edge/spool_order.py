"""Which of the samples in the spool are sent first."""

from __future__ import annotations

import hashlib
import heapq
import sqlite3
from collections.abc import Callable, Generator, Iterator, Mapping
from itertools import chain

from cema.edge.budget_config import First

__all__ = ["DRAWN_EVERY", "SENT", "SendOrder"]

SENT = "sent_class."
"""What the counters begin with that count the samples sent of each class."""

DRAWN_EVERY = 10
"""Every so many samples, one that was drawn at random is sent, where the order goes by what is known of an image."""

_PUT = "INSERT INTO waiting VALUES (send_rank(NEW.id, NEW.entropy, NEW.label, NEW.drawn), NEW.seq)"
_TAKE = (
    "DELETE FROM waiting WHERE rank = send_rank(OLD.id, OLD.entropy, OLD.label, OLD.drawn) AND seq = OLD.seq"
)
_INDEX = (
    "CREATE TEMP TABLE waiting (rank, seq INTEGER, PRIMARY KEY (rank, seq)) WITHOUT ROWID",
    "INSERT INTO waiting SELECT send_rank(id, entropy, label, drawn), seq FROM main.samples",
    f"CREATE TEMP TRIGGER comes AFTER INSERT ON main.samples BEGIN {_PUT}; END",
    f"CREATE TEMP TRIGGER goes AFTER DELETE ON main.samples BEGIN {_TAKE}; END",
    f"CREATE TEMP TRIGGER drawn AFTER UPDATE OF drawn ON main.samples BEGIN {_TAKE}; {_PUT}; END",
)
_DRAWN = "drawn"  # the rank of what was drawn at random: for SQLite, text comes after all numbers
# One search in the index for each class, not one row for each sample.
_CLASSES = (
    "WITH RECURSIVE found(label) AS (SELECT min(rank) FROM waiting WHERE rank < '' UNION ALL"
    " SELECT (SELECT min(rank) FROM waiting WHERE rank > label AND rank < '') FROM found WHERE label IS NOT NULL)"
    " SELECT label FROM found WHERE label IS NOT NULL"
)


class SendOrder:
    """An order of a spool's samples; equal ones keep theirs, the oldest first.

    Samples that were drawn at random tell of all that the device sees only where it does not depend on the image
    whether they arrive. So with ``entropy`` and ``classes`` they wait in a queue of their own, the oldest first: one in
    `DRAWN_EVERY` samples sent is one of them, more only where nothing else waits.

    It follows from what is on the disk with each sample. The index that finds the first ones without reading all is
    in memory (some 30 bytes for each sample), made when the spool is opened and kept by triggers: the file stays as it
    is, and a transaction that fails changes neither.

    Parameters
    ----------
    first : {"oldest", "random", "entropy", "classes"}
        See `cema.edge.budget_config.BudgetConfig`.
    seed : int, default 0
        Of what is random.
    """

    def __init__(self, first: First = "oldest", seed: int = 0) -> None:
        self._first = first
        self._key = seed.to_bytes(8, "big")

    @property
    def counts_classes(self) -> bool:
        """Whether the spool has to count what was sent of each class, as counters that begin with `SENT`."""
        return self._first == "classes"

    def attach(self, db: sqlite3.Connection) -> None:
        """Make the index of a spool that was just opened.

        Raises
        ------
        sqlite3.Error
            When the samples cannot be read.
        """
        if self._first == "oldest":
            return
        ranks: dict[str, Callable[[bytes, float, int, float], float | str]] = {
            "random": self._random,
            "entropy": lambda _id, entropy, _label, drawn: _DRAWN if drawn else -entropy,
            "classes": lambda _id, _entropy, label, drawn: _DRAWN if drawn else label,
        }
        db.create_function("send_rank", 4, ranks[self._first], deterministic=True)
        for statement in _INDEX:
            db.execute(statement)

    def take(self, db: sqlite3.Connection, count: int, counters: Mapping[str, int]) -> Generator[int]:
        """Yield the numbers (``seq``) of the first samples, at most `count`.

        Parameters
        ----------
        db : sqlite3.Connection
            The spool's, with the index.
        count : int
        counters : mapping of str to int
            The spool's.
        """
        if self._first == "oldest":
            yield from _numbers(db, "SELECT seq FROM samples ORDER BY seq LIMIT ?", count)
        elif self._first == "random":
            yield from _numbers(db, "SELECT seq FROM waiting ORDER BY rank, seq LIMIT ?", count)
        else:
            yield from self._in_turn(db, count, counters)

    def _in_turn(self, db: sqlite3.Connection, count: int, counters: Mapping[str, int]) -> Generator[int]:
        drawn = _numbers(db, f"SELECT seq FROM waiting WHERE rank = '{_DRAWN}' ORDER BY seq LIMIT ?", count)  # noqa: S608
        if self._first == "classes":
            ranked: Iterator[int] = self._by_class(db, count, counters)
        else:
            ranked = _numbers(db, "SELECT seq FROM waiting WHERE rank < '' ORDER BY rank, seq LIMIT ?", count)
        sent = counters.get("uploaded", 0)
        for place in range(sent, sent + count):
            turns = (drawn, ranked) if place % DRAWN_EVERY == 0 else (ranked, drawn)
            seq = next(chain(*turns), None)
            if seq is None:
                return
            yield seq

    def _by_class(self, db: sqlite3.Connection, count: int, counters: Mapping[str, int]) -> Generator[int]:
        queues: dict[int, sqlite3.Cursor] = {}
        heap = [(counters.get(f"{SENT}{label}", 0), label) for (label,) in db.execute(_CLASSES).fetchall()]
        heapq.heapify(heap)
        while heap and count:
            sent, label = heap[0]
            if label not in queues:
                queues[label] = db.execute("SELECT seq FROM waiting WHERE rank = ? ORDER BY seq", (label,))
            row = queues[label].fetchone()
            if row is None:
                heapq.heappop(heap)
                continue
            heapq.heapreplace(heap, (sent + 1, label))
            count -= 1
            yield row[0]

    def _random(self, digest: bytes, _entropy: float, _label: int, _drawn: float = 0.0) -> int:
        return int.from_bytes(hashlib.sha256(self._key + digest).digest()[:7], "big")


def _numbers(db: sqlite3.Connection, query: str, count: int) -> Iterator[int]:
    return iter([seq for (seq,) in db.execute(query, (count,)).fetchall()])
