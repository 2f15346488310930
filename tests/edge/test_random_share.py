"""A random share of the predictions is sent, whatever the selection says."""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from edge_support import COHORT, Answer, Cloud, FakeTime, images, make_sample
from hypothesis import given
from hypothesis import strategies as st

from cema.edge.agent import EdgeAgent
from cema.edge.budget_config import BudgetConfig, First
from cema.edge.client import CloudClient
from cema.edge.config import EdgeConfig, UploadConfig
from cema.edge.near_duplicates import NearDuplicates
from cema.edge.random_share import RandomShare
from cema.edge.retry import Backoff
from cema.edge.spool import MIN_SPOOL_BYTES, Spool
from cema.edge.spool_order import DRAWN_EVERY, SendOrder
from cema.edge.uploader import Uploader
from cema.formats.draw import HEADER, MAX_BYTES, Draw, decode_draws
from cema.formats.image import CodecConfig, encode_image
from cema.formats.sample import Sample, Verdict, sample_id
from cema.ondevice.selection.config import SelectionConfig

Make = Callable[..., EdgeConfig]
ALONE, BOTH = Draw(0.01, False), Draw(0.01, True)


@pytest.fixture
def spool(quick_path: Path) -> Iterator[Spool]:
    spool = Spool(quick_path / "spool.db", max_bytes=4 << 20)
    yield spool
    spool.close()


@pytest.fixture
def make_uploader(cloud: Cloud, spool: Spool) -> Iterator[Callable[..., Uploader]]:
    links = []

    def make(**changes: Any) -> Uploader:
        clock = FakeTime().clock
        links.append(CloudClient(cloud.url, COHORT, lambda: cloud.token, 5.0, clock))
        options: dict[str, Any] = {"batch_samples": 8, "batch_bytes": 1 << 20, "linger_seconds": 0.0}
        return Uploader(
            spool, links[-1], clock=clock, backoff=Backoff(random=random.Random(0)), on_change=lambda: None,
            **options | changes,
        )  # fmt: skip

    yield make
    for link in links:
        link.close()
        link.release()


def told(cloud: Cloud) -> dict[str, Draw]:
    """What the cloud was told of each sample, by its id."""
    found: dict[str, Draw] = {}
    posts = [headers for method, _, headers in cloud.requests if method == "POST"]
    for headers, ids in zip(posts, cloud.received, strict=True):
        if HEADER in headers:
            assert len(headers[HEADER]) <= MAX_BYTES
            draws = decode_draws(headers[HEADER], samples=len(ids))
            found |= {ids[at]: draw for at, draw in draws.items()}
    return found


@given(st.lists(st.integers(0, 50), max_size=40), st.sampled_from([0.01, 0.3, 1.0]))
def test_the_draws_do_not_depend_on_how_predictions_are_grouped(sizes: list[int], share: float) -> None:
    alone, grouped = RandomShare(share, seed=5), RandomShare(share, seed=5)
    one_by_one = [bool(alone.draw(1)[0]) for _ in range(sum(sizes))]
    assert np.concatenate([np.zeros(0, bool), *(grouped.draw(n) for n in sizes)]).tolist() == one_by_one


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_each_prediction_is_drawn_with_the_same_probability(share: float) -> None:
    drawn = RandomShare(share, seed=1).draw(200_000)
    tolerance = 4 * (share * (1 - share) / 50_000) ** 0.5
    for quarter in np.split(drawn, 4):
        assert abs(quarter.mean() - share) < tolerance
    # Independent: what follows a drawn one is drawn as often as any other.
    after = drawn[1:][drawn[:-1]]
    assert abs(after.mean() - share) < 5 * (share * (1 - share) / len(after)) ** 0.5
    assert RandomShare(share).draw(1000).tolist() != RandomShare(share).draw(1000).tolist() or share == 0.01


def test_an_agent_sends_what_is_drawn_and_says_whether_it_was_selected(
    make_config: Make, cloud: Cloud
) -> None:
    upload = UploadConfig(linger_seconds=0.0, random_share=0.5)
    config = make_config(
        cloud, upload=upload, selection=SelectionConfig(rule="budget", options={"share": 0.3})
    )
    expected: dict[tuple[float, int], Draw | None] = {}
    with EdgeAgent(config) as agent:
        for seed in range(12):
            found = agent.predict(images(16, seed))
            assert agent.flush(20)
            for i in np.flatnonzero(found.selected | found.drawn).tolist():
                drawn = bool(found.drawn[i])
                expected[(found.captured_at, float(found.entropy[i]))] = (
                    Draw(0.5, bool(found.selected[i])) if drawn else None
                )
        status = agent.status()
    draws = told(cloud)
    got = {(s.captured_at, s.entropy): draws.get(s.id) for s in cloud.stored.values()}
    assert got == expected
    assert {None, Draw(0.5, True), Draw(0.5, False)} == set(got.values()), "all roles were there"
    assert status.drawn == status.drawn_uploaded == len(draws)
    assert (status.drawn_lost, status.uploaded, status.predicted) == (0, len(got), 192)


def test_without_a_share_nothing_is_drawn_and_no_header_is_sent(make_config: Make, cloud: Cloud) -> None:
    with EdgeAgent(make_config(cloud)) as agent:
        assert not agent.predict(images(64)).drawn.any()
        assert agent.flush(20)
        assert (agent.status().drawn, agent.status().drawn_uploaded) == (0, 0)
    assert cloud.received
    assert told(cloud) == {}


def test_threads_that_predict_at_once_share_one_sequence_of_draws(make_config: Make) -> None:
    upload = UploadConfig(random_share=0.25, queue_samples=10**6)
    with EdgeAgent(make_config(upload=upload)) as agent:
        agent._random_share = RandomShare(0.25, seed=3)
        counts: list[int] = []

        def predict() -> None:
            counts.append(sum(int(agent.predict(images(3, seed)).drawn.sum()) for seed in range(40)))

        threads = [threading.Thread(target=predict) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(counts) == agent.status().drawn == int(RandomShare(0.25, seed=3).draw(480).sum())


def test_the_spool_keeps_draws_over_a_restart_and_adds_roles_of_one_image(quick_path: Path) -> None:
    path = quick_path / "spool.db"
    samples = [make_sample(i) for i in range(5)]
    spool = Spool(path, max_bytes=4 << 20)
    assert spool.put_many(samples[:4], [None, ALONE, BOTH, ALONE]) == 4
    assert spool.put_many([samples[0], samples[1], samples[3], samples[4]], [ALONE, ALONE, None, None]) == 1
    spool.close()
    spool = Spool(path, max_bytes=4 << 20)
    assert spool.peek(9, 1 << 20) == samples
    draws = spool.draws([sample.id for sample in samples])
    assert draws == {
        samples[0].id: BOTH,
        samples[1].id: Draw(0.005, False),  # it stands for two draws
        samples[2].id: BOTH,
        samples[3].id: BOTH,
    }
    spool.acknowledge([Verdict(id=sample.id, verdict="stored") for sample in samples[:2]])
    spool.acknowledge([Verdict(id=samples[2].id, verdict="rejected")])
    spool.drop([samples[3].id, samples[4].id], "over_budget")
    counters = spool.counters()
    assert (counters["drawn_uploaded"], counters["drawn_lost"], counters["uploaded"]) == (2, 2, 2)
    spool.close()


def test_a_spool_from_before_is_taken_over_and_an_older_program_goes_on_with_it(quick_path: Path) -> None:
    path = quick_path / "spool.db"
    old = (
        "CREATE TABLE samples (seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, entropy REAL NOT NULL, "
        "label INTEGER NOT NULL, version INTEGER NOT NULL, captured_at REAL NOT NULL, bytes INTEGER NOT NULL, "
        "image BLOB NOT NULL) STRICT",
        "CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    )
    insert = (
        "INSERT OR IGNORE INTO samples (id, image, entropy, label, version, captured_at, bytes) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)"
    )

    def row(s: Sample) -> tuple[object, ...]:
        return (
            bytes.fromhex(s.id), s.image, s.entropy, s.label, s.version, s.captured_at, len(s.image),
        )  # fmt: skip

    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA page_size=4096")
    db.execute("PRAGMA auto_vacuum=INCREMENTAL")
    for statement in old:
        db.execute(statement)
    before = [make_sample(i, 6000) for i in range(4)]
    db.executemany(insert, [row(sample) for sample in before])
    db.close()
    spool = Spool(path, max_bytes=4 << 20, order=SendOrder("entropy"))
    assert spool.peek(9, 1 << 20) == before
    assert spool.draws(sample.id for sample in before) == {}
    drawn = make_sample(9, 6000)
    spool.put_many([drawn], [ALONE])
    spool.close()
    with sqlite3.connect(path, isolation_level=None) as db:  # what a program from before does
        db.executemany(insert, [row(make_sample(10))])
    db.close()
    spool = Spool(path, max_bytes=4 << 20)
    assert spool.peek(9, 1 << 20) == [*before, drawn, make_sample(10)]
    assert spool.draws([drawn.id, make_sample(10).id]) == {drawn.id: ALONE}
    spool.close()


@pytest.mark.parametrize("first_page", [True, False])
def test_draws_are_saved_of_a_damaged_spool(quick_path: Path, first_page: bool) -> None:
    path = quick_path / "spool.db"
    samples = [make_sample(i, 3000) for i in range(40)]
    spool = Spool(path, max_bytes=4 << 20)
    spool.put_many(samples, [ALONE if i % 2 else None for i in range(40)])
    spool.close()
    with path.open("r+b") as file:  # the first page, or one of the rows
        file.seek(0 if first_page else 20 * 4096)
        file.write(random.Random(0).randbytes(4096))
    spool = Spool(path, max_bytes=4 << 20)
    kept = spool.peek(99, 1 << 30)
    assert 30 < len(kept) < 40 + first_page
    odd = {sample.id for i, sample in enumerate(samples) if i % 2 and sample in kept}
    assert spool.draws(sample.id for sample in kept) == dict.fromkeys(odd, ALONE)
    spool.close()


def test_drawn_samples_that_a_full_spool_drops_are_counted(quick_path: Path) -> None:
    spool = Spool(quick_path / "spool.db", max_bytes=MIN_SPOOL_BYTES)
    for i in range(200):
        spool.put_many([make_sample(i, 9000)], [ALONE if i % 4 == 0 else None])
    kept = spool.peek(999, 1 << 30)
    drawn = spool.draws(sample.id for sample in kept)
    counters = spool.counters()
    assert counters["dropped.spool_full"] == 200 - len(kept) > 50
    assert counters["drawn_lost"] == 50 - len(drawn) > 10
    spool.put_many([make_sample(999, MIN_SPOOL_BYTES)], [BOTH])
    assert spool.counters()["drawn_lost"] == 51 - len(drawn)
    spool.close()


@pytest.mark.parametrize("first", ["entropy", "classes"])
def test_no_order_that_looks_at_images_decides_about_drawn_samples(quick_path: Path, first: First) -> None:
    """Whatever their entropy and class, the drawn ones go in their own order, and take a tenth of the places."""
    spool = Spool(quick_path / "spool.db", max_bytes=8 << 20, order=SendOrder(first))
    rng = random.Random(0)
    samples = [
        msgspec.structs.replace(make_sample(i, 60), entropy=rng.random(), label=rng.randrange(4))
        for i in range(400)
    ]
    drawn = [i % 3 == 0 for i in range(400)]
    spool.put_many(samples, [BOTH if yes else None for yes in drawn])
    spool.put_many([samples[1]], [ALONE])  # drawn while it waits: it changes the queue
    drawn[1] = True
    sent: list[Sample] = []
    for size in [1, 1, 1, 7, 30, 1, 59] * 2:
        batch = spool.peek(size, 1 << 20)
        assert len({sample.id for sample in batch}) == len(batch) == size
        spool.acknowledge([Verdict(id=sample.id, verdict="stored") for sample in batch])
        sent += batch
    queue = [sample for sample, yes in zip(samples, drawn, strict=True) if yes]
    assert [sample for sample in sent if sample in queue] == queue[: 200 // DRAWN_EVERY]
    rest = spool.peek(999, 1 << 20)
    assert sorted(s.id for s in (*sent, *rest)) == sorted(s.id for s in samples)
    assert [sample for sample in (*sent, *rest) if sample in queue] == queue
    spool.close()


def scene(seed: int, noise: int = 0) -> Sample:
    squares = np.random.default_rng(seed).integers(20, 236, (4, 4, 3)).repeat(8, 0).repeat(8, 1)
    picture = squares + np.random.default_rng(1000 + noise).integers(-2, 3, squares.shape)
    encoded = encode_image(picture.astype(np.uint8), CodecConfig())
    return Sample(id=sample_id(encoded), image=encoded, entropy=0.5, label=0, version=0, captured_at=1.0)


def test_a_near_duplicate_that_was_drawn_is_sent_and_what_is_drawn_alone_is_like_nothing(
    make_uploader: Any, cloud: Cloud, spool: Spool
) -> None:
    uploader = make_uploader(near_duplicates=NearDuplicates(spool, distance=4.0, most=10))

    def send(*pairs: tuple[Sample, Draw | None]) -> None:
        spool.put_many([sample for sample, _ in pairs], [draw for _, draw in pairs])
        for _ in range(4):
            uploader.step()
        assert not spool.samples

    alone, twin, drawn_twin, other = scene(0), scene(0, 1), scene(0, 2), scene(1)
    send((alone, ALONE))
    send((twin, None))
    assert twin.id in cloud.stored, "nothing that the cloud learns from looks like it yet"
    send((scene(0, 3), None), (drawn_twin, BOTH), (other, BOTH))
    assert scene(0, 3).id not in cloud.stored
    assert told(cloud) == {alone.id: ALONE, drawn_twin.id: ALONE, other.id: BOTH}
    assert spool.counters()["dropped.near_duplicate"] == 1
    assert "drawn_lost" not in spool.counters()
    both = [scene(7), scene(7, 1)]
    send((both[0], None), (both[1], BOTH))
    assert told(cloud)[both[1].id] == ALONE, "it waited for the first one, and is sent all the same"


def test_a_batch_is_cut_to_what_the_header_can_tell_of(
    make_uploader: Any, cloud: Cloud, spool: Spool
) -> None:
    shares = np.random.default_rng(0).uniform(0.001, 1, 300).tolist()
    draws = [Draw(share, i % 2 == 0) for i, share in enumerate(shares)]
    samples = [make_sample(i, 20) for i in range(300)]
    spool.put_many(samples, draws)
    uploader = make_uploader(batch_samples=300)
    for _ in range(20):
        uploader.step()
    assert uploader.last_error is None
    assert told(cloud) == {sample.id: draw for sample, draw in zip(samples, draws, strict=True)}
    assert 2 <= len(cloud.received) < 15


def test_draws_count_in_the_budget_and_follow_a_batch_that_is_sent_again(
    make_config: Make, cloud: Cloud
) -> None:
    config = make_config(
        cloud,
        upload=UploadConfig(linger_seconds=0.0, random_share=1.0, batch_samples=4),
        selection=SelectionConfig(rule="budget", options={"share": 0.0001}),
        budget=BudgetConfig(samples_per_hour=10),
    )
    cloud.script.extend([Answer(status=413), Answer(status=204)])
    with EdgeAgent(config, backoff=Backoff(base=0.01, cap=0.02)) as agent:
        agent.predict(images(16))
        assert cloud.wait_for(lambda: sum(len(ids) for ids in cloud.received) >= 2)
        cloud.wait_for(lambda: agent.status().budget.limits["samples_per_hour"].used >= 9)  # type: ignore[union-attr]
        status = agent.status()
        assert status.budget is not None
        assert status.budget.limits["samples_per_hour"].used <= 10
        assert status.drawn == 16
        assert status.uploaded <= 10


@pytest.mark.parametrize("share", [-0.1, 1.1, 1e-7, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="random_share"):
        UploadConfig(random_share=share)
