"""What looks like something that was sent is not sent."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from edge_support import Answer, Cloud, make_sample

from cema.edge.agent import EdgeAgent
from cema.edge.budget_config import BudgetConfig
from cema.edge.config import EdgeConfig
from cema.edge.near_duplicates import NearDuplicates
from cema.edge.spool import Spool
from cema.formats.image import CodecConfig, encode_image
from cema.formats.sample import Sample, sample_id

Images = npt.NDArray[np.uint8]


@pytest.fixture
def spool(quick_path: Path) -> Iterator[Spool]:
    spool = Spool(quick_path / "spool.db", max_bytes=4 << 20)
    yield spool
    spool.close()


def scene(seed: int, noise: int = 0) -> Images:
    """A picture of large squares; with another noise it looks the same."""
    squares = np.random.default_rng(seed).integers(20, 236, (4, 4, 3)).repeat(8, 0).repeat(8, 1)
    return (squares + np.random.default_rng(1000 + noise).integers(-2, 3, squares.shape)).astype(np.uint8)


def sample(image: Images) -> Sample:
    encoded = encode_image(image, CodecConfig())
    return Sample(id=sample_id(encoded), image=encoded, entropy=0.5, label=0, version=0, captured_at=1.0)


def test_what_was_sent_is_known_again_and_nothing_else(spool: Spool) -> None:
    near = NearDuplicates(spool, distance=4.0, most=10)
    first, other = sample(scene(0)), sample(scene(1))
    assert near.split([first, other]) == ([first, other], [])
    near.remember([first])
    twin = sample(scene(0, noise=1))
    assert twin.id != first.id
    assert near.split([twin, other]) == ([other], [twin])


def test_of_a_batch_that_looks_alike_one_is_sent_and_the_others_wait(spool: Spool) -> None:
    near = NearDuplicates(spool, distance=4.0, most=10)
    alike = [sample(scene(0, noise)) for noise in range(3)]
    assert near.split(alike) == (alike[:1], [])
    assert near.split(alike[1:]) == (alike[1:2], []), "the first was not sent after all"
    near.remember(alike[1:2])
    assert near.split([alike[0], alike[2]]) == ([], [alike[0], alike[2]])


def test_what_is_no_image_looks_like_nothing(spool: Spool) -> None:
    near = NearDuplicates(spool, distance=255.0, most=10)
    strange = [make_sample(0), make_sample(1)]
    assert near.split(strange) == (strange, [])
    near.remember(strange)
    assert near.split([make_sample(2)]) == ([make_sample(2)], [])
    assert spool.remembered() == []


def test_the_latest_are_remembered_over_a_restart(quick_path: Path) -> None:
    path = quick_path / "spool.db"
    for start in (0, 6):
        spool = Spool(path, max_bytes=4 << 20)
        near = NearDuplicates(spool, distance=4.0, most=8)
        for seed in range(start, start + 6):
            each = [sample(scene(seed))]
            assert near.split(each) == (each, [])
            near.remember(each)
        spool.close()
    spool = Spool(path, max_bytes=4 << 20)
    near = NearDuplicates(spool, distance=4.0, most=8)
    again = [sample(scene(seed, noise=1)) for seed in range(12)]
    assert near.split(again) == (again[:4], again[4:])
    assert len(spool.remembered()) == 8
    spool.close()


def test_a_spool_of_before_gets_its_table_when_it_is_needed(quick_path: Path) -> None:
    path = quick_path / "spool.db"

    def tables() -> set[str]:
        with sqlite3.connect(path) as db:
            names = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        db.close()
        return names

    spool = Spool(path, max_bytes=4 << 20)
    spool.put_many([make_sample(0)])
    assert spool.remembered() == []
    spool.close()
    assert tables() == {"samples", "counters"}, "and a device without the setting never has it"
    spool = Spool(path, max_bytes=4 << 20)
    spool.remember([b"a", b"b"], 9)
    spool.close()
    assert tables() == {"samples", "counters", "sent"}
    spool = Spool(path, max_bytes=4 << 20)
    assert spool.remembered() == [b"a", b"b"]
    assert spool.peek(9, 1 << 20) == [make_sample(0)]
    spool.close()


def test_a_damaged_spool_keeps_its_samples_and_forgets_what_was_sent(quick_path: Path) -> None:
    path = quick_path / "spool.db"
    spool = Spool(path, max_bytes=4 << 20)
    spool.put_many(make_sample(i, 3000) for i in range(60))
    spool.remember([bytes(256)] * 40, 40)
    spool.close()
    with path.open("r+b") as file:
        file.write(bytes(4096))
    spool = Spool(path, max_bytes=4 << 20)
    assert spool.peek(99, 1 << 20) == [make_sample(i, 3000) for i in range(60)]
    assert spool.remembered() == []
    spool.close()


def test_many_at_once_keep_to_the_cap(quick_path: Path) -> None:
    spool = Spool(quick_path / "spool.db", max_bytes=1 << 20)
    spool.put_many(make_sample(i, 9000) for i in range(200))
    for _ in range(3):
        spool.remember([bytes([i % 256]) * 256 for i in range(4096)], 1000)
        assert spool.disk_bytes() <= 1 << 20
    assert spool.remembered() == [bytes([i % 256]) * 256 for i in range(4096 - 1000, 4096)]
    counts = spool.counters()
    assert spool.samples + counts["dropped.spool_full"] == 200
    assert spool.samples > 40
    spool.close()


def test_a_disk_that_refuses_costs_the_memory_only(spool: Spool, caplog: pytest.LogCaptureFixture) -> None:
    near = NearDuplicates(spool, distance=4.0, most=10)
    near.split([sample(scene(0))])
    spool.close()
    near.remember([sample(scene(0))])
    assert "remembered until the next start only" in caplog.text
    assert near.split([twin := sample(scene(0, noise=1))]) == ([], [twin])


def test_an_agent_sends_each_scene_once(make_config: Callable[..., EdgeConfig], cloud: Cloud) -> None:
    config = make_config(cloud, budget=BudgetConfig(duplicates=4.0))
    frames = np.stack([scene(seed, noise) for seed in range(3) for noise in range(5)])
    cloud.script.append(Answer(500))  # the first attempt is in vain, and nothing is taken for sent
    with EdgeAgent(config) as agent:
        assert agent.predict(frames).selected.all()
        assert agent.flush(20)
        assert len(cloud.stored) == 3
        assert agent.status().dropped == {"near_duplicate": 12}
    with EdgeAgent(config) as agent:
        agent.predict(np.stack([scene(seed, 99) for seed in range(4)]))
        assert agent.flush(20)
    assert len(cloud.stored) == 4


def test_with_limits_too(make_config: Callable[..., EdgeConfig], cloud: Cloud) -> None:
    config = make_config(cloud, budget=BudgetConfig(duplicates=4.0, samples_per_day=4))
    with EdgeAgent(config) as agent:
        agent.predict(np.stack([scene(seed, noise) for seed in range(3) for noise in range(5)]))
        assert agent.flush(20)
    assert len(cloud.stored) == 3
