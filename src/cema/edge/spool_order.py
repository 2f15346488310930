"""Which of the samples in the spool are sent first."""

from __future__ import annotations

import hashlib
import heapq
import sqlite3
from collections.abc import Callable, Generator, Mapping

from cema.edge.budget_config import First

__all__ = ["SENT", "SendOrder"]

SENT = "sent_class."
"""What the counters begin with that count the samples sent of each class."""

_INDEX = (
    "CREATE TEMP TABLE waiting (rank, seq INTEGER, PRIMARY KEY (rank, seq)) WITHOUT ROWID",
    "INSERT INTO waiting SELECT send_rank(id, entropy, label), seq FROM main.samples",
    "CREATE TEMP TRIGGER comes AFTER INSERT ON main.samples BEGIN"
    " INSERT INTO waiting VALUES (send_rank(NEW.id, NEW.entropy, NEW.label), NEW.seq); END",
    "CREATE TEMP TRIGGER goes AFTER DELETE ON main.samples BEGIN DELETE FROM waiting"
    " WHERE rank = send_rank(OLD.id, OLD.entropy, OLD.label) AND seq = OLD.seq; END",
)
# One search in the index for each class, not one row for each sample.
_CLASSES = (
    "WITH RECURSIVE found(label) AS (SELECT min(rank) FROM waiting UNION ALL"
    " SELECT (SELECT min(rank) FROM waiting WHERE rank > label) FROM found WHERE label IS NOT NULL)"
    " SELECT label FROM found WHERE label IS NOT NULL"
)


class SendOrder:
    """An order of a spool's samples; equal ones keep theirs, the oldest first.

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
        ranks: dict[str, Callable[[bytes, float, int], float]] = {
            "random": self._random,
            "entropy": lambda _id, entropy, _label: -entropy,
            "classes": lambda _id, _entropy, label: label,
        }
        db.create_function("send_rank", 3, ranks[self._first], deterministic=True)
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
        if self._first == "classes":
            yield from self._by_class(db, count, counters)
            return
        if self._first == "oldest":
            rows = db.execute("SELECT seq FROM samples ORDER BY seq LIMIT ?", (count,))
        else:
            rows = db.execute("SELECT seq FROM waiting ORDER BY rank, seq LIMIT ?", (count,))
        for (seq,) in rows.fetchall():
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

    def _random(self, digest: bytes, _entropy: float, _label: int) -> int:
        return int.from_bytes(hashlib.sha256(self._key + digest).digest()[:7], "big")
