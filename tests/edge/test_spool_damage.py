"""What is saved of a damaged spool."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edge_support import make_sample

from cema.edge.spool import Spool
from cema.errors import SpoolError

PAGE = 4096
CAP = 8 << 20


def fill(path: Path, n: int, size: int) -> None:
    spool = Spool(path, max_bytes=CAP)
    spool.put_many(make_sample(i, size) for i in range(n))
    spool.count("predicted", 123)
    spool.close()


def overwrite(path: Path, page: int) -> None:
    """Put noise on a page, counted from 1 as SQLite does."""
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE)
        file.write(os.urandom(PAGE))


def pages_of(path: Path, kind: str) -> list[int]:
    """The numbers of the pages of one b-tree or of one part of it."""
    with sqlite3.connect(path) as db:
        roots = dict(db.execute("SELECT name, rootpage FROM sqlite_schema"))
    db.close()
    data = path.read_bytes()
    flags = {"index": 0x0A, "rows": 0x0D}
    pages = [n for n in range(2, len(data) // PAGE + 1) if data[(n - 1) * PAGE] == flags[kind]]
    return [n for n in pages if n not in roots.values() or kind != "rows"]


def saved(path: Path) -> tuple[Spool, list[int]]:
    spool = Spool(path, max_bytes=CAP)
    return spool, [round(s.captured_at) for s in spool.peek(10**6, 1 << 40)]


@pytest.mark.parametrize("size", [100, 3000, 20_000])
def test_a_damaged_page_costs_its_own_rows(quick_path: Path, size: int) -> None:
    path = quick_path / "spool.db"
    fill(path, 120, size)
    leaves = pages_of(path, "rows")
    overwrite(path, leaves[len(leaves) // 2])
    damaged = path.read_bytes()
    spool, found = saved(path)
    lost = 120 - len(found)
    assert 0 < lost <= 120 / len(leaves) + 30
    assert found == sorted(found), "still first in, first out"
    assert spool.dropped() == {"damaged": lost}
    assert spool.counters()["predicted"] == 123
    assert spool.peek(1, 1 << 20) == [make_sample(found[0], size)]
    kept = quick_path / "spool.db.damaged"
    assert kept.read_bytes()[PAGE:] == damaged[PAGE:]  # opening counts itself on the first page
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    spool.put_many([make_sample(999, size)])
    assert spool.peek(10**6, 1 << 40)[-1] == make_sample(999, size)
    spool.close()
    again, same = saved(path)
    assert same == [*found, 999]
    assert again.dropped() == {"damaged": lost}
    again.close()
    assert sorted(file.name for file in quick_path.iterdir()) == ["spool.db", "spool.db.damaged"]


def test_a_damaged_first_page_costs_nothing(quick_path: Path) -> None:
    path = quick_path / "spool.db"
    fill(path, 120, 3000)
    overwrite(path, 1)
    spool, found = saved(path)
    assert found == list(range(120))
    assert spool.counters() == {"predicted": 123}
    spool.close()


def test_a_damaged_index_costs_nothing(quick_path: Path) -> None:
    path = quick_path / "spool.db"
    fill(path, 400, 3000)
    for page in pages_of(path, "index"):
        overwrite(path, page)
    spool, found = saved(path)
    assert found == list(range(400))
    assert spool.dropped() == {}
    spool.close()


def test_what_is_damaged_while_it_is_in_use_is_counted_exactly(quick_path: Path) -> None:
    path = quick_path / "spool.db"
    fill(path, 120, 3000)
    spool = Spool(path, max_bytes=CAP)
    with spool._file.reading() as db:
        db.execute("PRAGMA cache_size=1").fetchall()  # else it need not look at the disk
        db.execute("PRAGMA shrink_memory").fetchall()
    leaves = pages_of_copy(path)
    for page in leaves[10:13]:
        overwrite(path, page)
    with pytest.raises(SpoolError, match="117 samples are saved, 3 are lost"):
        spool.peek(10**6, 1 << 40)
    assert len(spool.peek(10**6, 1 << 40)) == spool.samples == 117
    assert spool.bytes == 117 * 3000
    assert spool.dropped() == {"damaged": 3}
    assert spool.counters()["predicted"] == 123
    spool.close()


def pages_of_copy(path: Path) -> list[int]:
    """As `pages_of`, while the file is held by this process."""
    copy = path.with_name("look.db")
    copy.write_bytes(path.read_bytes())
    found = pages_of(copy, "rows")
    for suffix in ("", "-wal", "-shm"):
        Path(f"{copy}{suffix}").unlink(missing_ok=True)
    return found


def test_an_image_that_changed_on_the_disk_is_lost_and_no_other_is_sent_in_its_place(
    quick_path: Path,
) -> None:
    path = quick_path / "spool.db"
    fill(path, 20, 20_000)
    data = bytearray(path.read_bytes())
    place = data.index(make_sample(7, 20_000).image[8000:8050])
    data[place] ^= 1
    leaf = pages_of(path, "index")[0]
    data[(leaf - 1) * PAGE : leaf * PAGE] = bytes(PAGE)
    path.write_bytes(data)
    spool = Spool(path, max_bytes=CAP)
    with pytest.raises(SpoolError, match="19 samples are saved, 1 are lost"):
        spool.put_many([make_sample(50)])
    assert make_sample(7, 20_000).id not in {s.id for s in spool.peek(100, 1 << 30)}
    spool.close()


def test_samples_in_the_log_are_saved_too(quick_path: Path) -> None:
    path = quick_path / "spool.db"
    spool = Spool(path, max_bytes=CAP)
    spool.put_many(make_sample(i, 3000) for i in range(50))
    copies = {name: (quick_path / name).read_bytes() for name in ("spool.db", "spool.db-wal")}
    spool.close()
    other = quick_path / "power-loss"
    other.mkdir()
    for name, data in copies.items():
        (other / name).write_bytes(data)
    assert len(copies["spool.db-wal"]) > 50 * 3000
    (other / "spool.db").write_bytes(os.urandom(len(copies["spool.db"])))
    spool, found = saved(other / "spool.db")
    assert found == list(range(50))
    spool.close()


@pytest.mark.parametrize(
    "content",
    [b"not a database" * 1000, os.urandom(50_000), b"\0" * 8192],
    ids=["text", "noise", "zeros"],
)
def test_a_file_that_never_was_a_spool_is_kept_and_replaced(quick_path: Path, content: bytes) -> None:
    path = quick_path / "spool.db"
    path.write_bytes(content)
    spool = Spool(path, max_bytes=CAP)
    assert spool.dropped() == {"damaged": 1}, "how many is not known, but not none"
    assert spool.put_many([make_sample(1)]) == 1
    spool.close()
    assert (quick_path / "spool.db.damaged").read_bytes() == content


def test_a_lower_cap_holds_while_samples_are_saved(quick_path: Path) -> None:
    path = quick_path / "spool.db"
    fill(path, 300, 20_000)
    overwrite(path, 1)
    spool = Spool(path, max_bytes=2 << 20)
    assert spool.disk_bytes() <= 2 << 20
    kept = [round(s.captured_at) for s in spool.peek(10**6, 1 << 40)]
    assert kept == list(range(300 - len(kept), 300)), "the newest"
    assert len(kept) > 50
    assert spool.dropped() == {"spool_full": 300 - len(kept)}
    spool.close()


def test_a_rescue_that_was_interrupted_goes_on_at_the_next_start(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = quick_path / "spool.db"
    fill(path, 300, 20_000)
    leaves = pages_of(path, "rows")
    overwrite(path, leaves[0])
    with monkeypatch.context() as patch:
        patch.setattr("cema.edge.spool_sqlite.put_first", failing_after(100))
        spool = Spool(path, max_bytes=CAP)
        before = spool.samples
        assert 0 < before <= 100
        spool.put_many([make_sample(1000, 20_000)])
        spool.close()
    assert (quick_path / "spool.db.rescue").exists()
    spool, found = saved(path)
    lost = 300 - (len(found) - 1)
    assert found == sorted(found)
    assert found[-1] == 1000
    assert 0 < lost < 100
    assert spool.dropped() == {"damaged": lost}
    assert spool.counters()["predicted"] == 123
    spool.close()
    assert not (quick_path / "spool.db.rescue").exists()


def failing_after(n: int) -> Callable[..., Any]:
    from cema.edge.spool_rescue import put_first

    calls = iter(range(n))

    def put(*args: Any) -> Any:
        if next(calls, None) is None:
            raise sqlite3.OperationalError("database or disk is full")
        return put_first(*args)

    return put


def test_damage_anywhere_keeps_nearly_all(quick_path: Path) -> None:
    path = quick_path / "spool.db"
    fill(path, 150, 3000)
    whole = path.read_bytes()
    for page in range(1, len(whole) // PAGE + 1, 7):
        path.write_bytes(whole)
        overwrite(path, page)
        spool = Spool(path, max_bytes=CAP)
        try:
            found = spool.peek(10**6, 1 << 40)
        except SpoolError:
            found = spool.peek(10**6, 1 << 40)
        assert len(found) >= 145
        assert {s.id for s in found} <= {make_sample(i, 3000).id for i in range(150)}
        assert len(found) + spool.dropped().get("damaged", 0) in (150, 151)
        spool.close()
