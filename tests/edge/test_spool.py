from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from edge_support import make_sample
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cema.edge.spool import MIN_SPOOL_BYTES, Spool
from cema.errors import SpoolError
from cema.formats.sample import Verdict


@pytest.fixture
def spool(quick_path: Path) -> Iterator[Spool]:
    spool = Spool(quick_path / "spool.db", max_bytes=4 << 20)
    yield spool
    spool.close()


def verdict(sample_id: str, kind: str = "stored") -> Verdict:
    return Verdict(id=sample_id, verdict=kind)


def test_first_in_first_out_with_every_field_intact(spool: Spool) -> None:
    samples = [make_sample(i) for i in range(10)]
    assert spool.put_many(samples) == 10
    assert spool.peek(4, 1 << 20) == samples[:4]
    assert spool.peek(100, 1 << 20) == samples
    assert (spool.samples, spool.bytes) == (10, 5000)


def test_peek_keeps_to_bytes_but_gives_at_least_one(spool: Spool) -> None:
    spool.put_many(make_sample(i, 1000) for i in range(5))
    assert len(spool.peek(10, 2500)) == 2
    assert len(spool.peek(10, 1)) == 1


def test_verdicts_remove_and_count(spool: Spool) -> None:
    samples = [make_sample(i, 100 + i) for i in range(4)]
    spool.put_many(samples)
    removed = spool.acknowledge(
        [
            verdict(samples[0].id),
            verdict(samples[1].id, "duplicate"),
            verdict(samples[2].id, "rejected"),
            verdict(samples[0].id, "rejected"),  # a second verdict on the same sample
            verdict("00" * 32),  # on a sample that was never here
        ]
    )
    assert removed == 3
    assert spool.peek(10, 1 << 20) == [samples[3]]
    assert spool.counters() == {"uploaded": 2, "uploaded_bytes": 201, "dropped.rejected": 1}
    assert (spool.samples, spool.bytes) == (1, 103)


def test_the_same_image_waits_once(spool: Spool) -> None:
    assert spool.put_many([make_sample(1), make_sample(1)]) == 1
    assert spool.dropped() == {"duplicate": 1}


def test_counters_and_samples_come_back(quick_path: Path) -> None:
    spool = Spool(quick_path / "spool.db", max_bytes=4 << 20)
    spool.put_many(make_sample(i) for i in range(3))
    spool.acknowledge([verdict(make_sample(0).id)])
    spool.count("predicted", 7)
    spool.close()
    spool.close()
    again = Spool(quick_path / "spool.db", max_bytes=4 << 20)
    assert [s.id for s in again.peek(9, 1 << 20)] == [make_sample(1).id, make_sample(2).id]
    assert again.counters() == {"uploaded": 1, "uploaded_bytes": 500, "predicted": 7}
    assert (again.samples, again.bytes) == (2, 1000)
    again.close()


def test_the_oldest_make_room_and_are_counted(quick_path: Path) -> None:
    spool = Spool(quick_path / "spool.db", max_bytes=MIN_SPOOL_BYTES)
    for i in range(200):
        spool.put_many([make_sample(i, 9000)])
        assert spool.disk_bytes() <= MIN_SPOOL_BYTES
    kept = [round(s.captured_at) for s in spool.peek(1000, 1 << 30)]
    assert kept == list(range(200 - len(kept), 200))
    assert len(kept) * 9000 > MIN_SPOOL_BYTES // 2, "most of the cap is usable"
    assert spool.dropped() == {"spool_full": 200 - len(kept)}
    spool.close()


def test_a_sample_beyond_all_room_is_dropped_alone(quick_path: Path) -> None:
    spool = Spool(quick_path / "spool.db", max_bytes=MIN_SPOOL_BYTES)
    assert spool.put_many([make_sample(0), make_sample(1, MIN_SPOOL_BYTES), make_sample(2)]) == 2
    assert spool.dropped() == {"too_large": 1}
    assert spool.disk_bytes() <= MIN_SPOOL_BYTES
    spool.close()


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 10**6),
    max_bytes=st.integers(MIN_SPOOL_BYTES, 3 * MIN_SPOOL_BYTES),
    largest=st.sampled_from([60, 900, 5_000, 40_000, 300_000]),
)
def test_whatever_happens_the_cap_holds_and_nothing_goes_uncounted(
    quick_path: Path, seed: int, max_bytes: int, largest: int
) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(dir=quick_path) as folder:
        spool = Spool(Path(folder) / "spool.db", max_bytes=max_bytes)
        offered = 0
        for _ in range(25):
            if rng.random() < 0.6:
                group = [
                    make_sample(rng.randrange(1 << 40), rng.randint(1, largest))
                    for _ in range(rng.randint(1, 40))
                ]
                offered += len(group)
                spool.put_many(group)
            else:
                batch = spool.peek(rng.randint(1, 64), rng.randint(1, 1 << 20))
                kinds = ("stored", "duplicate", "rejected")
                spool.acknowledge(verdict(s.id, rng.choice(kinds)) for s in batch if rng.random() < 0.8)
            assert spool.disk_bytes() <= max_bytes
        counters = spool.counters()
        assert offered == spool.samples + counters.get("uploaded", 0) + sum(spool.dropped().values())
        assert spool.bytes == sum(len(s.image) for s in spool.peek(10**6, 1 << 40))
        spool.close()
        again = Spool(Path(folder) / "spool.db", max_bytes=max_bytes)
        assert again.counters() == counters
        again.close()


def test_a_lower_cap_shrinks_the_file(quick_path: Path) -> None:
    spool = Spool(quick_path / "spool.db", max_bytes=8 << 20)
    spool.put_many(make_sample(i, 20_000) for i in range(250))  # one call: few commits
    before = spool.samples
    spool.close()
    spool = Spool(quick_path / "spool.db", max_bytes=2 << 20)
    assert spool.disk_bytes() <= 2 << 20
    assert spool.samples + spool.dropped()["spool_full"] == before == 250
    assert spool.peek(1000, 1 << 30)[-1] == make_sample(249, 20_000), "the newest are kept"
    spool.put_many(make_sample(i, 20_000) for i in range(1000, 1100))
    assert spool.disk_bytes() <= 2 << 20
    spool.close()


def test_every_commit_is_synced(spool: Spool) -> None:
    with spool._file.reading() as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_a_cap_that_is_too_small_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(SpoolError, match=r"upload\.spool_bytes"):
        Spool(tmp_path / "spool.db", max_bytes=1000)


def test_a_second_process_is_told(quick_path: Path, spool: Spool) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from cema.edge.spool import Spool; from cema.errors import SpoolError\n"
        "try: Spool(Path(sys.argv[1]), max_bytes=4 << 20)\n"
        "except SpoolError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(quick_path / "spool.db")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "in use by another process" in done.stdout, done.stderr


def test_closed_means_closed(spool: Spool) -> None:
    spool.close()
    with pytest.raises(SpoolError, match="closed"):
        spool.put_many([make_sample(1)])
    assert spool.dropped() == {"disk_error": 1}


def test_an_id_that_is_no_digest_is_refused_and_nothing_is_half_done(spool: Spool) -> None:
    import msgspec

    with pytest.raises(SpoolError, match="sha256"):
        spool.put_many([make_sample(1), msgspec.structs.replace(make_sample(2), id="nonsense")])
    assert spool.samples == 0
    assert spool.put_many([make_sample(1)]) == 1


@pytest.mark.parametrize("damage", ["whole", "middle"])
def test_a_damaged_file_is_replaced_and_counted(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "spool.db"
    spool = Spool(path, max_bytes=4 << 20)
    spool.put_many(make_sample(i, 3000) for i in range(100))
    spool.close()
    size = path.stat().st_size
    with open(path, "r+b") as file:
        start = 0 if damage == "whole" else 4096
        file.seek(start)
        file.write(os.urandom(size - start))
    spool = Spool(path, max_bytes=4 << 20)
    if not spool.dropped():  # noticed at the latest when the damaged pages are used
        with pytest.raises(SpoolError, match="damaged"):
            spool.peek(1000, 1 << 30)
    assert spool.dropped()["damaged"] >= 1
    assert spool.put_many([make_sample(7, 3000)]) in (0, 1)
    assert spool.samples >= 1
    spool.close()


def test_a_full_disk_is_an_error_that_loses_nothing_stored(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.put_many([make_sample(1)])
    with spool._file.reading() as db:
        db.execute(
            "PRAGMA max_page_count=1"
        ).fetchall()  # SQLite then answers as it does when the disk is full
    with pytest.raises(SpoolError, match="disk's space"):
        spool.put_many([make_sample(2, 100_000)])
    assert spool.dropped() == {"disk_error": 1}
    assert spool.peek(10, 1 << 20) == [make_sample(1)]


def test_counting_and_looking_never_wait_for_a_write(spool: Spool) -> None:
    done = threading.Event()

    def look() -> None:
        spool.count("predicted")
        assert spool.counters()["predicted"] == 1
        assert (spool.samples, spool.bytes, spool.dropped()) == (0, 0, {})
        done.set()

    with spool._file.transaction():  # a write that has not ended
        thread = threading.Thread(target=look)
        thread.start()
        assert done.wait(10)
    thread.join()
    assert spool.counters()["predicted"] == 1


KILLED = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from edge_support import make_sample
from cema.edge.spool import Spool
spool = Spool(Path(sys.argv[1]), max_bytes=64 << 20)
i = 0
while True:
    spool.put_many([make_sample(n, 2000) for n in range(i, i + 3)])
    i += 3
    print(i, flush=True)
"""


def test_kill_9_loses_nothing_that_put_many_returned_for(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    for attempt in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path), str(Path(__file__).parent)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        last = 0
        for _ in range(10 + 7 * attempt):
            last = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        last = int((process.stdout.read().split() or [last])[-1])
        process.stdout.close()
        assert process.wait(30) == -signal.SIGKILL
        spool = Spool(path, max_bytes=64 << 20)
        found = {s.id for s in spool.peek(10**6, 1 << 40)}
        assert {make_sample(n, 2000).id for n in range(last)} <= found
        assert len(found) == spool.samples
        spool.close()
        with sqlite3.connect(path) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        db.close()
