"""Which samples a spool gives first."""

from __future__ import annotations

import random
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from edge_support import Cloud, images, make_sample
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cema.edge.agent import EdgeAgent
from cema.edge.budget_config import BudgetConfig, First
from cema.edge.config import EdgeConfig
from cema.edge.spool import MIN_SPOOL_BYTES, Spool
from cema.edge.spool_order import SendOrder
from cema.formats.sample import Sample, Verdict

Open = Callable[..., Spool]
ORDERS: tuple[First, ...] = ("oldest", "random", "entropy", "classes")


@pytest.fixture
def open_spool(quick_path: Path) -> Iterator[Open]:
    opened = []

    def open_spool(first: First, seed: int = 0, max_bytes: int = 8 << 20) -> Spool:
        for spool in opened:
            spool.close()
        order = SendOrder(first, seed)
        opened.append(Spool(quick_path / "spool.db", max_bytes=max_bytes, order=order))
        return opened[-1]

    yield open_spool
    for spool in opened:
        spool.close()


def sample(seed: int, *, entropy: float = 0.5, label: int = 0, size: int = 60) -> Sample:
    return msgspec.structs.replace(make_sample(seed, size), entropy=entropy, label=label)


def stored(spool: Spool, samples: list[Sample]) -> None:
    spool.acknowledge([Verdict(id=each.id, verdict="stored") for each in samples])


def test_the_highest_entropy_goes_first_and_the_oldest_of_equal_ones(open_spool: Open) -> None:
    spool = open_spool("entropy")
    samples = [sample(i, entropy=entropy) for i, entropy in enumerate([0.2, 2.0, 0.0, 2.0, 1.5])]
    spool.put_many(samples)
    assert spool.peek(3, 1 << 20) == [samples[1], samples[3], samples[4]]
    stored(spool, [samples[1]])
    spool.put_many([new := sample(9, entropy=1.7)])
    expected = [samples[3], new, samples[4], samples[0], samples[2]]
    assert spool.peek(9, 1 << 20) == expected
    assert open_spool("entropy").peek(9, 1 << 20) == expected
    assert open_spool("oldest").peek(9, 1 << 20) == [samples[0], *samples[2:], new]


def test_a_random_order_is_the_seeds(open_spool: Open) -> None:
    samples = [sample(i) for i in range(200)]
    open_spool("random").put_many(samples)
    found = {seed: open_spool("random", seed).peek(200, 1 << 20) for seed in (0, 1, 0)}
    assert found[0] == open_spool("random").peek(200, 1 << 20)
    assert found[0] != found[1]
    places = [samples.index(each) for each in found[0]]
    assert sorted(places) == list(range(200))
    assert 60 < sum(places[:100]) / 100 < 140, "neither the oldest nor the newest are in front"


def test_classes_of_which_the_fewest_were_sent_go_first(open_spool: Open) -> None:
    spool = open_spool("classes")
    labels = [0] * 20 + [1] * 3 + [7] * 5
    samples = [sample(i, label=label) for i, label in enumerate(labels)]
    spool.put_many(samples)
    first = spool.peek(9, 1 << 20)
    assert [each.label for each in first] == [0, 1, 7] * 3
    assert [each for each in first if each.label == 0] == samples[:3], "of a class the oldest first"
    stored(spool, first)
    assert {name: n for name, n in spool.counters().items() if name.startswith("sent_class.")} == {
        "sent_class.0": 3,
        "sent_class.1": 3,
        "sent_class.7": 3,
    }
    spool.put_many([sample(100 + i, label=3) for i in range(4)])
    spool = open_spool("classes")  # what was sent is remembered
    assert [each.label for each in spool.peek(8, 1 << 20)] == [3, 3, 3, 0, 3, 7, 0, 7]


def test_only_what_the_cloud_has_counts_as_sent(open_spool: Open) -> None:
    spool = open_spool("classes")
    spool.put_many(samples := [sample(i, label=i) for i in range(3)])
    spool.acknowledge([Verdict(id=samples[0].id, verdict="rejected")])
    spool.drop([samples[1].id], "over_budget")
    assert not [name for name in spool.counters() if name.startswith("sent_class.")]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(first=st.sampled_from(ORDERS), seed=st.integers(0, 10**6))
def test_whatever_happens_the_order_is_that_of_what_waits(quick_path: Path, first: First, seed: int) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(dir=quick_path) as folder:
        path = Path(folder) / "spool.db"

        def opened() -> Spool:
            return Spool(path, max_bytes=MIN_SPOOL_BYTES, order=SendOrder(first, seed))

        spool, sent = opened(), Counter[int]()
        for step in range(30):
            draw = rng.random()
            if draw < 0.5:
                new = [
                    sample(
                        rng.randrange(300) if draw < 0.1 else 1000 * step + i,
                        entropy=rng.choice([0.0, 0.5, 1.25, rng.random()]),
                        label=rng.randrange(4),
                        size=rng.choice([60, 3000, 30_000]),
                    )
                    for i in range(rng.randint(1, 20))
                ]
                spool.put_many(new)
            elif draw < 0.9:
                batch = spool.peek(rng.randint(1, 16), 1 << 20)
                stored(spool, batch)
                sent.update(each.label for each in batch)
            else:
                spool.close()
                spool = opened()
            assert [each.id for each in spool.peek(10**6, 1 << 40)] == expected(spool, first, seed, sent)
        spool.close()


def expected(spool: Spool, first: First, seed: int, sent: Counter[int]) -> list[str]:
    """Sort what is in the spool, in plain Python."""
    with spool._file.reading() as db:
        rows = db.execute("SELECT id, entropy, label FROM samples ORDER BY seq").fetchall()
    waiting = [(digest.hex(), entropy, label) for digest, entropy, label in rows]
    if first == "entropy":
        waiting.sort(key=lambda row: -row[1])
    elif first == "random":
        order = SendOrder("random", seed)
        waiting.sort(key=lambda row: order._random(bytes.fromhex(row[0]), 0.0, 0))
    elif first == "classes":
        counts, left, waiting = Counter(sent), waiting, []
        while left:
            label = min({row[2] for row in left}, key=lambda each: (counts[each], each))
            counts[label] += 1
            waiting.append(next(row for row in left if row[2] == label))
            left.remove(waiting[-1])
    return [row[0] for row in waiting]


def steps_of_a_batch(spool: Spool) -> int:
    """How much SQLite has to do for a batch, in tens of its instructions."""
    steps = Counter[str]()
    with spool._file.reading() as db:
        db.set_progress_handler(lambda: steps.update(["ten"]), 10)
    assert len(spool.peek(32, 1 << 20)) == 32
    with spool._file.reading() as db:
        db.set_progress_handler(None, 0)
    return steps["ten"]


@pytest.mark.parametrize("first", ORDERS)
def test_a_batch_costs_the_same_however_much_waits(open_spool: Open, first: First) -> None:
    spool = open_spool(first, max_bytes=32 << 20)
    spool.put_many(sample(i, entropy=(i * 37 % 101) / 50, label=i % 10) for i in range(200))
    few = steps_of_a_batch(spool)
    spool.put_many(sample(i, entropy=(i * 37 % 101) / 50, label=i % 10) for i in range(200, 6000))
    assert few > 10
    assert steps_of_a_batch(spool) < 2 * few


@pytest.mark.parametrize("first", ORDERS)
def test_the_file_is_the_same_whatever_the_order(open_spool: Open, quick_path: Path, first: First) -> None:
    open_spool(first).put_many(sample(i) for i in range(5))
    open_spool("oldest").close()
    with sqlite3.connect(quick_path / "spool.db") as db:
        names = sorted(name for (name,) in db.execute("SELECT name FROM sqlite_schema"))
    db.close()
    assert names == ["counters", "samples", "sqlite_autoindex_samples_1"]


@pytest.mark.parametrize("first", ORDERS)
def test_a_damaged_spool_goes_on_in_its_order(open_spool: Open, quick_path: Path, first: First) -> None:
    spool = open_spool(first)
    spool.put_many(sample(i, entropy=i / 100, label=i % 3, size=3000) for i in range(60))
    before = spool.peek(100, 1 << 30)
    spool.close()
    with (quick_path / "spool.db").open("r+b") as file:
        file.write(bytes(4096))
    spool = open_spool(first)
    assert spool.peek(100, 1 << 30) == before
    stored(spool, before[:3])
    assert len(spool.peek(100, 1 << 30)) == 57


def test_an_agent_sends_in_the_order_of_its_configuration(
    make_config: Callable[..., EdgeConfig], cloud: Cloud
) -> None:
    with EdgeAgent(make_config()) as agent:  # collects without a cloud
        entropy = sorted(agent.predict(images(12)).entropy.tolist(), reverse=True)
        assert agent.flush(10)
    config = make_config(cloud, budget=BudgetConfig(samples_per_day=4, first="entropy"))
    with EdgeAgent(config):
        assert cloud.wait_for(lambda: len(cloud.stored) == 4)
    assert sorted((each.entropy for each in cloud.stored.values()), reverse=True) == entropy[:4]
