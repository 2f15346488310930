"""A device comes to another base model: real parts, a cloud that misbehaves, and disks that do."""

from __future__ import annotations

import gc
import json
import os
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnxruntime
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from edge_migration import LABELS, make_other_bundle, offer, predicted_by
from edge_support import COHORT, Answer, Cloud, images, make_update
from observing_bundle import observing_bundle

from cema.edge import migrator as migrators
from cema.edge.agent import EdgeAgent
from cema.edge.client import CloudClient
from cema.edge.config import EdgeConfig, GuardConfig, UpdateConfig
from cema.edge.fetched_bundles import FetchedBundles
from cema.edge.retry import Backoff
from cema.formats.bundle import Bundle
from keys_documents import make_keys

Make = Callable[..., EdgeConfig]
QUICK = Backoff(base=0.01, cap=0.05, slow=0.05)
PIXELS = images(4, seed=3)
PARTIAL = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes %d-%d/10\r\nContent-Length: %d\r\n\r\nab"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, key: Ed25519PrivateKey) -> Bundle:
    return make_other_bundle(tmp_path_factory.mktemp("other") / "bundle", key)


class Site(NamedTuple):
    """A device's configuration, its cloud, the bundle that it has, another one, and the key that it trusts."""

    make: Make
    cloud: Cloud
    bundle: Bundle
    other: Bundle
    key: Ed25519PrivateKey


@pytest.fixture
def site(make_config: Make, cloud: Cloud, bundle: Bundle, other: Bundle, key: Ed25519PrivateKey) -> Site:
    return Site(make_config, cloud, bundle, other, key)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrators, "_PIECE", 700)


def start(config: EdgeConfig) -> EdgeAgent:
    return EdgeAgent(config, backoff=QUICK)


def serves(agent: EdgeAgent, bundle: Bundle) -> bool:
    return predicted_by(agent.predict(PIXELS), bundle, PIXELS)


def comes_to(agent: EdgeAgent, bundle: Bundle) -> bool:
    return agent._wait(lambda: agent.bundle.manifest.base == bundle.manifest.base, 30)


def kept(config: EdgeConfig) -> list[str]:
    return [entry.name for entry in Path(config.state).glob("bundle-*")]


def refuses(agent: EdgeAgent, reason: str) -> bool:
    return agent._wait(lambda: agent.status().rejected_bundles.get(reason, 0) > 0, 30)


def asked(cloud: Cloud, part: str) -> int:
    return sum(part in path for _, path, _ in cloud.requests)


def test_a_device_fetches_another_bundle_and_keeps_it_without_a_cloud(site: Site, small_pieces: None) -> None:
    config = site.make(site.cloud)
    with start(config) as agent:
        assert serves(agent, site.bundle)
        assert agent.predict(PIXELS).class_names is None
        notice = offer(site.cloud, site.other, site.key)
        assert comes_to(agent, site.other)
        assert serves(agent, site.other)
        status = agent.status()
        assert (status.base, status.model, status.version) == (site.other.manifest.base, "other 1", 0)
        assert (status.last_error, status.rejected_bundles) == (None, {})
        assert agent.predict(PIXELS).class_names == LABELS
        assert status.bytes_down >= notice.total_bytes
        assert asked(site.cloud, "/bundles/") > len(notice.files)  # in pieces
        assert not list(Path(config.state).glob("*.part"))
    alone = msgspec.structs.replace(config, cloud=None)
    for again in (config, alone):
        fetched = asked(site.cloud, "/bundles/")
        with start(again) as agent:
            assert serves(agent, site.other)
            assert agent.status().last_error is None
        assert asked(site.cloud, "/bundles/") == fetched


def test_updates_of_the_new_base_follow_and_of_the_old_one_until_then(site: Site) -> None:
    site.cloud.publish(make_update(site.bundle, site.key, 3))
    config = site.make(site.cloud)
    with start(config) as agent:
        assert agent.wait_for_version(3, 20)
        hold = threading.Event()
        site.cloud.pieces.append(Answer(hold=hold))
        offer(site.cloud, site.other, site.key)
        later = make_update(site.bundle, site.key, 4)
        site.cloud.publish(later)
        site.cloud.updates[site.bundle.manifest.base] = later
        assert agent.wait_for_version(4, 20)  # while the site.bundle is being fetched
        assert agent.status().base == site.bundle.manifest.base
        first = make_update(site.other, site.key, 5)
        site.cloud.publish(first)
        site.cloud.updates[site.other.manifest.base] = first
        hold.set()
        assert comes_to(agent, site.other)
        assert agent.wait_for_version(5, 20)
        assert agent.status().rejected_updates == {}
    with start(config) as agent:
        assert (agent.status().version, agent.status().base) == (5, site.other.manifest.base)
        assert agent.status().last_error is None
    # The floor of the old base is kept: back there, nothing older is taken.
    offer(site.cloud, site.bundle, site.key, serial=2)
    site.cloud.updates[site.bundle.manifest.base] = make_update(site.bundle, site.key, 2)
    with start(config) as agent:
        assert comes_to(agent, site.bundle)
        assert agent._wait(lambda: agent.status().rejected_updates.get("old", 0) == 1, 20)
        assert agent.status().version == 0


def test_predictions_never_wait_and_are_of_one_bundle_each(site: Site, small_pieces: None) -> None:
    config = site.make(site.cloud)
    end, failures = threading.Event(), []
    counts = {site.bundle.manifest.base: 0, site.other.manifest.base: 0}
    with start(config) as agent:
        assert serves(agent, site.bundle)

        def predict() -> None:
            while not end.is_set():
                try:
                    prediction = agent.predict(PIXELS)
                    counts[prediction.base] += 1
                    assert predicted_by(
                        prediction,
                        site.bundle if prediction.base == site.bundle.manifest.base else site.other,
                        PIXELS,
                    )
                except BaseException as error:
                    failures.append(error)
                    return

        threads = [threading.Thread(target=predict) for _ in range(3)]
        for thread in threads:
            thread.start()
        offer(site.cloud, site.other, site.key)
        assert comes_to(agent, site.other)
        seen = counts[site.other.manifest.base]
        while counts[site.other.manifest.base] < seen + 20 and not failures:
            pass
        end.set()
        for thread in threads:
            thread.join(30)
    assert failures == []
    assert min(counts.values()) > 0


@pytest.mark.parametrize("where", ["fetch", "build", "choose", "exchange"])
def test_the_old_model_answers_for_as_long_as_any_part_of_it_takes(
    site: Site, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    owner, name = {
        "fetch": (CloudClient, "bundle_piece"),
        "build": (migrators.Migrator, "_make"),
        "choose": (FetchedBundles, "choose"),
        "exchange": (EdgeAgent, "_exchange"),
    }[where]
    call, reached, go_on = getattr(owner, name), threading.Event(), threading.Event()

    def held(*args: Any) -> Any:
        reached.set()
        assert go_on.wait(30)
        return call(*args)

    monkeypatch.setattr(owner, name, held)
    offer(site.cloud, site.other, site.key)
    with start(site.make(site.cloud)) as agent:
        assert reached.wait(30)
        for _ in range(50):  # each of them would wait for ever if it waited for that
            assert serves(agent, site.bundle)
        assert agent.status().base == site.bundle.manifest.base
        go_on.set()
        assert comes_to(agent, site.other)
        assert serves(agent, site.other)


@pytest.mark.parametrize("limit", [36.0, 0.0])
def test_nothing_of_the_old_model_stays_in_memory(
    site: Site, monkeypatch: pytest.MonkeyPatch, limit: float
) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Counting(onnxruntime.InferenceSession):  # type: ignore[misc]
        def __init__(self, model: Any, *args: Any, **options: Any) -> None:
            self.model = str(model)
            alive.add(self)
            super().__init__(model, *args, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Counting)
    site.cloud.publish(make_update(site.bundle, site.key, 3))
    with start(site.make(site.cloud, guard=GuardConfig(limit=limit))) as agent:
        assert agent.wait_for_version(3, 20)
        offer(site.cloud, site.other, site.key)
        assert comes_to(agent, site.other)
        polls = asked(site.cloud, "/updates/latest")
        assert site.cloud.wait_for(lambda: asked(site.cloud, "/updates/latest") > polls + 1), (
            "the step has ended"
        )
        assert serves(agent, site.other)
        gc.collect()
        assert [f"bundle-{site.other.manifest.base}" in session.model for session in alive] == [True]


def test_what_the_old_model_selected_is_sent_after_the_exchange(site: Site) -> None:
    config = site.make(site.cloud)
    offline = msgspec.structs.replace(config, cloud=None)
    with start(offline) as agent:
        old = agent.predict(PIXELS)
        assert agent.flush(20)
    offer(site.cloud, site.other, site.key)
    site.cloud.script.extend(Answer(status=503) for _ in range(3))
    with start(config) as agent:
        assert comes_to(agent, site.other)
        new = agent.predict(images(3, seed=8))
        assert agent.flush(20)
    sent = sorted(sample.label for sample in site.cloud.stored.values())
    assert sent == sorted([*old.labels.tolist(), *new.labels.tolist()])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda notice, key: {"cohort": "south"}, "wrong_cohort"),
        (lambda notice, key: {"expires": 1}, "expired"),
    ],
)
def test_a_notice_that_is_not_for_this_device_now_changes_nothing(
    site: Site, spoil: Any, reason: str
) -> None:
    offer(site.cloud, site.other, site.key, **spoil(None, site.key))
    with start(site.make(site.cloud)) as agent:
        assert refuses(agent, reason)
        assert reason in str(agent.status().last_error)
        assert serves(agent, site.bundle)
    assert asked(site.cloud, "/bundles/") == 0
    assert not list(Path(site.make(site.cloud).state).glob("bundle*"))


def test_a_key_that_is_not_trusted_changes_nothing_until_it_is(site: Site) -> None:
    stranger = Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32)
    offer(site.cloud, site.other, stranger)
    config = site.make(site.cloud)
    with start(config) as agent:
        assert refuses(agent, "unknown_key")
        assert "unknown_key" in str(agent.status().last_error)
        assert serves(agent, site.bundle)
        assert agent.status().rejected_bundles == {"unknown_key": 1}
    assert asked(site.cloud, "/bundles/") == 0
    site.cloud.keys = [make_keys(1, [site.key, stranger], [site.key])]
    with start(config) as agent:
        assert comes_to(agent, site.other)


def test_a_changed_notice_is_refused(site: Site) -> None:
    offer(site.cloud, site.other, site.key)
    assert site.cloud.notice is not None
    members = json.loads(site.cloud.notice[1])
    signature = members["signatures"][0]["signature"]
    members["signatures"][0]["signature"] = signature[:10][::-1] + signature[10:]
    site.cloud.notice = site.cloud.notice[0], json.dumps(members, separators=(",", ":")).encode()
    with start(site.make(site.cloud)) as agent:
        assert refuses(agent, "bad_signature")
        assert serves(agent, site.bundle)


def test_an_older_notice_is_refused(site: Site, tmp_path: Path) -> None:
    third = make_other_bundle(tmp_path / "third", site.key, number=3)
    config = site.make(site.cloud)
    offer(site.cloud, site.other, site.key, serial=5)
    with start(config) as agent:
        assert comes_to(agent, site.other)
        offer(site.cloud, third, site.key, serial=4)
        assert refuses(agent, "old")
        offer(site.cloud, third, site.key, serial=6)
    with start(config) as agent:
        assert comes_to(agent, third)
        assert agent._wait(lambda: kept(config) == [f"bundle-{third.manifest.base}"], 20)


@pytest.mark.parametrize(
    ("settings", "reason"), [({"accept_bundles": False}, "forbidden"), ({"bundle_bytes": 1000}, "too_large")]
)
def test_the_owner_of_a_device_may_forbid_it(site: Site, settings: Any, reason: str) -> None:
    offer(site.cloud, site.other, site.key)
    old = make_update(site.bundle, site.key, 2)
    site.cloud.updates[site.bundle.manifest.base] = old
    site.cloud.artifacts[old.manifest.payload] = old.payload
    update = UpdateConfig(poll_seconds=0.02, **settings)
    with start(site.make(site.cloud, update=update)) as agent:
        assert refuses(agent, reason)
        assert agent.wait_for_version(2, 20)  # its own base's updates go on
        assert reason in str(agent.status().last_error)
        assert agent.status().base == site.bundle.manifest.base
        polls = asked(site.cloud, "/updates/latest")
        assert agent._wait(lambda: asked(site.cloud, "/updates/latest") > polls + 5, 20)
    assert agent.status().rejected_bundles == {reason: 1}
    assert asked(site.cloud, "/bundle") == 1  # it does not ask with every poll
    assert asked(site.cloud, "/bundles/") == 0


def test_a_wrong_golden_batch_leaves_the_old_model_serving(site: Site, tmp_path: Path) -> None:
    wrong = make_other_bundle(tmp_path / "wrong", site.key, golden_logits=np.ones((4, 10), np.float32))
    offer(site.cloud, wrong, site.key)
    config = site.make(site.cloud)
    with start(config) as agent:
        assert refuses(agent, "golden_mismatch")
        assert serves(agent, site.bundle)
        good = make_other_bundle(tmp_path / "good", site.key, number=2)
        offer(site.cloud, good, site.key, serial=2)
    with start(config) as agent:
        assert comes_to(agent, good)
        assert serves(agent, good)
        assert agent._wait(lambda: kept(config) == [f"bundle-{good.manifest.base}"], 20)


def test_what_was_refused_keeps_no_other_bundle_waiting_and_no_error_standing(
    site: Site, tmp_path: Path
) -> None:
    wrong = make_other_bundle(tmp_path / "wrong", site.key, golden_logits=np.ones((4, 10), np.float32))
    offer(site.cloud, wrong, site.key)
    with start(site.make(site.cloud)) as agent:
        assert refuses(agent, "golden_mismatch")
        offer(site.cloud, site.bundle, site.key, serial=2)
        assert agent._wait(lambda: agent.status().last_error is None, 20)
        offer(site.cloud, site.other, site.key, serial=3)
        assert comes_to(agent, site.other)


def test_a_damaged_bundle_opens_no_way_for_an_older_notice(site: Site, tmp_path: Path) -> None:
    third = make_other_bundle(tmp_path / "third", site.key, number=3)
    config = site.make(site.cloud)
    offer(site.cloud, site.other, site.key, serial=5)
    with start(config) as agent:
        assert comes_to(agent, site.other)
    shutil.rmtree(Path(config.state) / f"bundle-{site.other.manifest.base}")
    offer(site.cloud, third, site.key, serial=4)
    with start(config) as agent:
        assert refuses(agent, "old")
        assert serves(agent, site.bundle)


def test_another_base_than_announced_is_refused(site: Site) -> None:
    offer(site.cloud, site.other, site.key, base="3" * 64)
    with start(site.make(site.cloud)) as agent:
        assert refuses(agent, "file_mismatch")
        assert serves(agent, site.bundle)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(status=503),
        Answer(status=404),
        Answer(reset=True),
        Answer(
            status=200,
            raw=b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-9/10\r\nContent-Length: 99\r\n\r\nab",
        ),
        Answer(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"),
        Answer(
            raw=b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 5-6/10\r\nContent-Length: 2\r\n\r\nab"
        ),
        Answer(body=b"\0" * 700),
    ],
    ids=["busy", "gone", "reset", "cut off", "no ranges", "another range", "damaged"],
)
def test_a_transfer_that_fails_goes_on_where_it_was(site: Site, small_pieces: None, answer: Answer) -> None:
    site.cloud.pieces.extend([Answer(), Answer(), answer])
    notice = offer(site.cloud, site.other, site.key)
    with start(site.make(site.cloud)) as agent:
        assert comes_to(agent, site.other)
        assert serves(agent, site.other)
        damaged = answer.body is not None
        assert agent.status().rejected_bundles == ({"file_mismatch": 1} if damaged else {})
    needed = sum(-(-file.bytes // 700) for file in notice.files)
    largest = max(-(-file.bytes // 700) for file in notice.files)
    assert asked(site.cloud, "/bundles/") <= needed + 1 + (largest if damaged else 0)


def test_a_restart_goes_on_where_the_transfer_was(site: Site, small_pieces: None) -> None:
    config, hold = site.make(site.cloud), threading.Event()
    site.cloud.pieces.extend([*[Answer() for _ in range(6)], Answer(hold=hold)])
    notice = offer(site.cloud, site.other, site.key)
    with start(config) as agent:
        assert site.cloud.wait_for(lambda: asked(site.cloud, "/bundles/") == 7)
        assert agent._wait(lambda: True, 1)
    hold.set()
    with start(config) as agent:
        assert comes_to(agent, site.other)
    assert asked(site.cloud, "/bundles/") == sum(-(-file.bytes // 700) for file in notice.files) + 1


def test_a_disk_without_room_is_told_and_fills_no_further(site: Site, monkeypatch: Any) -> None:
    free = [1 << 20]
    monkeypatch.setattr(FetchedBundles, "_free", lambda _: free[0])
    offer(site.cloud, site.other, site.key)
    with start(site.make(site.cloud)) as agent:
        assert agent._wait(lambda: "make room" in str(agent.status().last_error), 20)
        assert serves(agent, site.bundle)
        assert asked(site.cloud, "/bundles/") == 0
        free[0] = 1 << 30
        assert comes_to(agent, site.other)
        assert agent.status().last_error is None


def test_a_disk_that_fills_meanwhile_gets_its_room_back(site: Site, monkeypatch: Any) -> None:
    config = site.make(site.cloud)
    write, full = FetchedBundles.add, threading.Event()
    full.set()

    def add(self: FetchedBundles, notice: Any, file: Any, data: bytes) -> None:
        if full.is_set() and file.name == "model.onnx":
            monkeypatch.setattr(FetchedBundles, "_free", lambda _: 0)
            monkeypatch.setattr(os, "fsync", refuse)
        try:
            write(self, notice, file, data)
        finally:
            monkeypatch.setattr(os, "fsync", sync)

    sync = os.fsync

    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FetchedBundles, "add", add)
    offer(site.cloud, site.other, site.key)
    with start(config) as agent:
        assert agent._wait(lambda: "No space left" in str(agent.status().last_error), 20)
        assert not list(Path(config.state).glob("*.part"))
        assert serves(agent, site.bundle)
        full.clear()
        monkeypatch.setattr(FetchedBundles, "_free", lambda _: 1 << 30)
        assert comes_to(agent, site.other)


def test_a_choice_that_cannot_be_remembered_does_not_serve(site: Site, monkeypatch: Any) -> None:
    choose = FetchedBundles.choose

    def refuse(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(FetchedBundles, "choose", refuse)
    offer(site.cloud, site.other, site.key)
    with start(site.make(site.cloud)) as agent:
        assert agent._wait(lambda: "cannot be remembered" in str(agent.status().last_error), 20)
        assert serves(agent, site.bundle)
        fetched = asked(site.cloud, "/bundles/")
        monkeypatch.setattr(FetchedBundles, "choose", choose)
        assert comes_to(agent, site.other)
        assert asked(site.cloud, "/bundles/") == fetched  # not fetched again for that


@pytest.mark.parametrize("name", ["model.onnx", "norm.bin", "golden.safetensors", "manifest.json", None])
def test_a_fetched_bundle_that_is_damaged_gives_way_to_the_provisioned_one(
    site: Site, name: str | None
) -> None:
    config = site.make(site.cloud)
    offer(site.cloud, site.other, site.key)
    with start(config) as agent:
        assert comes_to(agent, site.other)
    folder = Path(config.state) / f"bundle-{site.other.manifest.base}"
    if name is None:
        shutil.rmtree(folder)
    else:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(bytes(data))
    with start(msgspec.structs.replace(config, cloud=None)) as agent:
        assert serves(agent, site.bundle)
        assert "cannot be used" in str(agent.status().last_error)
    with start(config) as agent:  # and is fetched again
        assert comes_to(agent, site.other)
        assert agent.status().last_error is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"envelope":"AAAA","provisioned":"x"}', b"\xff" * 9])
def test_a_damaged_choice_gives_way_to_the_provisioned_bundle(site: Site, content: bytes) -> None:
    config = site.make()
    Path(config.state).mkdir()
    (Path(config.state) / "bundle.json").write_bytes(content)
    with start(config) as agent:
        assert serves(agent, site.bundle)


def test_a_device_that_is_provisioned_anew_begins_with_that_bundle(site: Site, tmp_path: Path) -> None:
    config = site.make(site.cloud)
    offer(site.cloud, site.other, site.key)
    with start(config) as agent:
        assert comes_to(agent, site.other)
    third = make_other_bundle(tmp_path / "third", site.key, number=3)
    with start(msgspec.structs.replace(config, bundle=str(third.path), cloud=None)) as agent:
        assert serves(agent, third)


def test_the_way_back_to_the_provisioned_bundle_fetches_nothing(site: Site) -> None:
    config = site.make(site.cloud)
    offer(site.cloud, site.other, site.key)
    with start(config) as agent:
        assert comes_to(agent, site.other)
        fetched = asked(site.cloud, "/bundles/")
        offer(site.cloud, site.bundle, site.key, serial=2)
        assert comes_to(agent, site.bundle)
        assert serves(agent, site.bundle)
        assert asked(site.cloud, "/bundles/") == fetched
    with start(config) as agent:
        assert serves(agent, site.bundle)
        offer(site.cloud, site.other, site.key, serial=1)
        assert refuses(agent, "old")


def test_a_revoked_key_ends_the_bundle_that_it_alone_has_signed(site: Site) -> None:
    second = Ed25519PrivateKey.from_private_bytes(bytes([7]) * 32)
    site.cloud.keys = [make_keys(1, [site.key, second], [site.key])]
    config = site.make(site.cloud)
    with start(config) as agent:
        offer(site.cloud, site.other, second)
        assert comes_to(agent, site.other)
    site.cloud.keys.append(make_keys(2, [site.key], [site.key], revoked=[second]))
    with start(config) as agent:  # it asks for keys at its start
        assert comes_to(agent, site.bundle)
        assert serves(agent, site.bundle)
        assert refuses(agent, "revoked_key")
    with start(msgspec.structs.replace(config, cloud=None)) as agent:
        assert serves(agent, site.bundle)


def test_a_fetched_bundle_brings_no_keys(site: Site, tmp_path: Path) -> None:
    stranger = Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32)
    foreign = make_other_bundle(tmp_path / "foreign", stranger)
    offer(site.cloud, foreign, site.key)
    config = site.make(site.cloud)
    with start(config) as agent:
        assert comes_to(agent, foreign)
        bad = make_update(foreign, stranger, 7)
        site.cloud.publish(bad)
        site.cloud.updates[foreign.manifest.base] = bad
        assert agent._wait(lambda: agent.status().rejected_updates == {"unknown_key": 1}, 20)
        assert agent.bundle.public_keys.keys() == Bundle.load(Path(config.bundle)).public_keys.keys()


def test_a_device_of_another_cohort_begins_with_its_own_bundle(site: Site) -> None:
    config = site.make(site.cloud)
    offer(site.cloud, site.other, site.key)
    with start(config) as agent:
        assert comes_to(agent, site.other)
    assert config.cloud is not None
    site.cloud.notice = None
    south = msgspec.structs.replace(config, cloud=msgspec.structs.replace(config.cloud, cohort="south"))
    with start(south) as agent:
        assert serves(agent, site.bundle)
        assert agent.status().last_error is None
    with start(config) as agent:
        assert serves(agent, site.other)
    assert COHORT != "south"


def test_a_bundle_with_statistics_comes_and_goes(site: Site, tmp_path: Path) -> None:
    observing = observing_bundle(tmp_path / "observing", site.key)
    offer(site.cloud, observing, site.key)
    config = site.make(site.cloud)
    with start(config) as agent:
        assert not agent.status().own_statistics
        assert comes_to(agent, observing)
        assert agent.status().own_statistics
        for seed in range(5):
            assert np.isfinite(agent.predict(images(8, seed)).logits).all()
        assert agent.status().read > 0
        own = agent._own
        assert own is not None
        assert own._thread.is_alive()
        offer(site.cloud, site.other, site.key, serial=2)
        assert comes_to(agent, site.other)
        assert agent._own is None
        assert own.join(20)  # its thread has ended
        assert serves(agent, site.other)
        assert not agent.status().own_statistics
    with start(config) as agent:
        assert serves(agent, site.other)
