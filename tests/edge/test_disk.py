"""A disk that is full or read-only: the device starts, predicts, says so, and goes on when the disk does."""

from __future__ import annotations

import errno
import os
import random
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from edge_support import Answer, Cloud, FakeTime, images, make_sample, make_update

from cema.edge.agent import EdgeAgent
from cema.edge.client import CloudClient
from cema.edge.config import EdgeConfig
from cema.edge.program import run
from cema.edge.retry import Backoff
from cema.edge.spool import Spool
from cema.edge.uploader import Uploader
from cema.errors import SpoolError
from cema.formats.bundle import Bundle

Make = Callable[..., EdgeConfig]
QUICK = Backoff(base=0.01, cap=0.05, slow=0.05)


@contextmanager
def full_disk() -> Iterator[None]:
    """Let the kernel refuse every byte that this process writes to a file, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_device_starts_with_a_full_disk_and_keeps_samples_once_there_is_room(
    make_config: Make, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey, caplog: Any
) -> None:
    cloud.publish(make_update(bundle, key, 2))
    with full_disk():
        agent = EdgeAgent(make_config(cloud), backoff=QUICK)
        n = int(agent.predict(images(8)).selected.sum())
        assert agent.flush(20)
        assert agent._wait(lambda: "spool.db" in (agent.status().last_error or ""), 10)
        assert agent._wait(lambda: "cannot be remembered" in (agent.status().last_error or ""), 10)
        status = agent.status()
        assert (status.predicted, status.dropped, status.version) == (8, {"disk_error": n}, 0)
        assert "no sample is kept until it can be opened" in caplog.text
    assert agent.wait_for_version(2, 20)
    m = int(agent.predict(images(8, 1)).selected.sum())
    assert agent.flush(20)
    assert agent._wait(lambda: agent.status().last_error is None, 10)
    status = agent.status()
    assert (status.uploaded, status.predicted, status.dropped) == (m, 16, {"disk_error": n})
    agent.close()
    assert sum("/artifacts/" in path for _, path, _ in cloud.requests) == 1
    with EdgeAgent(make_config()) as again:
        assert (again.status().predicted, again.status().version) == (16, 2), "counted through it all"


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC])
def test_a_device_starts_where_not_even_its_folder_can_be_made(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        agent = EdgeAgent(make_config())
        assert os.strerror(code) in (agent.status().last_error or ""), "before anything was to be kept"
        assert agent.predict(images(3)).selected.any()
        assert agent.flush(10)
    m = int(agent.predict(images(8, 1)).selected.sum())
    assert agent._wait(lambda: agent.status().spooled == m, 20)
    assert agent._wait(lambda: agent.status().last_error is None, 10)
    agent.close()


def test_a_spool_that_could_not_be_opened_takes_its_old_samples_up_again(quick_path: Path) -> None:
    path = quick_path / "spool.db"
    spool = Spool(path, max_bytes=4 << 20)
    spool.put_many(make_sample(i) for i in range(3))
    spool.count("predicted", 5)
    spool.close()
    path.rename(quick_path / "elsewhere")
    path.mkdir()  # as SQLite sees it: it cannot be opened
    spool = Spool(path, max_bytes=4 << 20)
    assert spool.problem is not None
    assert "cannot be opened" in spool.problem
    spool.count("predicted", 2)
    with pytest.raises(SpoolError, match="cannot be opened"):
        spool.save()
    path.rmdir()
    (quick_path / "elsewhere").rename(path)
    spool.save()
    assert spool.problem is None
    assert (spool.samples, spool.counters()) == (3, {"predicted": 7})
    spool.close()
    again = Spool(path, max_bytes=4 << 20)
    assert (again.samples, again.counters()) == (3, {"predicted": 7})
    again.close()


def test_a_path_that_can_be_no_file_is_a_mistake(quick_path: Path) -> None:
    (quick_path / "file").write_text("")
    with pytest.raises(SpoolError, match="cannot be opened"):
        Spool(quick_path / "file" / "spool.db", max_bytes=4 << 20)
    with pytest.raises(SpoolError, match="cannot be opened"):
        Spool(quick_path / "a\0b" / "spool.db", max_bytes=4 << 20)


def test_closing_with_a_full_disk_raises_nothing(make_config: Make, caplog: Any) -> None:
    agent = EdgeAgent(make_config())
    assert agent.predict(images(4)).selected.any()
    assert agent.flush(10)
    with full_disk():
        agent.predict(images(40, 1))
        agent.close()
        agent.close()
    assert "the counts since the last write are lost" in caplog.text
    with EdgeAgent(make_config()) as again:
        assert again.status().spooled >= 4


def test_a_batch_is_not_sent_again_while_the_disk_does_not_take_the_answer(
    quick_path: Path, cloud: Cloud
) -> None:
    time = FakeTime()
    spool = Spool(quick_path / "spool.db", max_bytes=4 << 20)
    link = CloudClient(cloud.url, "north", lambda: cloud.token, 5.0, time.clock)
    delivered: list[int] = []
    uploader = Uploader(
        spool,
        link,
        batch_samples=4,
        batch_bytes=1 << 20,
        linger_seconds=0.0,
        clock=time.clock,
        backoff=Backoff(random=random.Random(0)),
        on_change=lambda: None,
        on_delivered=lambda samples: delivered.append(len(samples)),
    )
    spool.put_many(make_sample(i) for i in range(6))
    with full_disk():
        for _ in range(5):
            uploader.guarded_step()
        assert "spool" in (uploader.last_error or "")
        assert (len(cloud.received), delivered, spool.samples) == (1, [4], 6)
    uploader.guarded_step()
    assert (len(cloud.stored), delivered, spool.samples) == (6, [4, 2], 0)
    assert spool.counters()["uploaded"] == 6
    spool.put_many([make_sample(9)])
    cloud.script.append(Answer(413))
    with full_disk():
        for _ in range(5):
            uploader.guarded_step()
    uploader.guarded_step()
    assert (spool.samples, spool.dropped(), cloud.script) == (
        0,
        {"too_large_for_cloud": 1},
        type(cloud.script)(),
    )
    assert len(cloud.received) == 2, "the one that it does not take was sent once"
    link.close()
    link.release()
    spool.close()


def test_a_full_disk_under_the_output_stops_no_prediction(
    make_config: Make, quick_path: Path, caplog: Any
) -> None:
    np.save(quick_path / "images.npy", images(5))
    out = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115 - closing it fails too
    assert run(make_config(), quick_path / "images.npy", batch=2, out=out) == 0
    with pytest.raises(OSError, match="No space left"):
        out.close()
    assert caplog.text.count("cannot be written") == 1, "said once, not with every line"
    with EdgeAgent(make_config()) as agent:
        assert agent.status().predicted == 5


def test_a_clock_before_1970_loses_nothing(make_config: Make, cloud: Cloud) -> None:
    from cema.edge.background import Clock
    from cema.formats.sample import check_sample

    with EdgeAgent(make_config(cloud), clock=Clock(now=lambda: -86_400.0)) as agent:
        prediction = agent.predict(images(5))
        assert agent.flush(20)
        assert agent.status().uploaded == prediction.selected.sum() > 0
        assert agent.status().dropped == {}
    assert {sample.captured_at for sample in cloud.stored.values()} == {prediction.captured_at} == {0.0}
    for sample in cloud.stored.values():
        check_sample(sample)


def test_a_sample_that_an_older_agent_dated_before_1970_is_sent(quick_path: Path) -> None:
    import msgspec

    spool = Spool(quick_path / "spool.db", max_bytes=4 << 20)
    spool.put_many([msgspec.structs.replace(make_sample(1), captured_at=-3.5)])
    assert [sample.captured_at for sample in spool.peek(9, 1 << 20)] == [0.0]
    spool.close()
