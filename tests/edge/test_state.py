from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from edge_device import Device
from edge_support import CLASSES, Cloud, FakeTime, images, make_update

from cema.edge.agent import EdgeAgent
from cema.edge.config import EdgeConfig
from cema.edge.state import StateFolder
from cema.errors import ConfigError
from cema.formats.bundle import Bundle
from cema.ondevice.selection.entropy_band import EntropyBand

Make = Callable[..., EdgeConfig]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_nobody_else_may_read_what_a_device_keeps(
    make_config: Make, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey
) -> None:
    cloud.publish(make_update(bundle, key, 1))
    config = make_config(cloud)
    folder = Path(config.state)
    with EdgeAgent(config) as agent:
        agent.predict(images(9))
        assert agent.wait_for_version(1, 20)
        assert agent.flush(20)
        running = {path.name: mode(path) for path in folder.iterdir()}
    files = {path.name: mode(path) for path in folder.iterdir()}
    assert {"spool.db", "update.json", "selector.json"} <= files.keys()
    assert "spool.db-wal" in running
    assert set((running | files).values()) == {0o600}
    assert mode(folder) == 0o700


def test_what_an_older_agent_left_open_is_closed_to_others(
    make_config: Make, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey
) -> None:
    config = make_config(cloud)
    folder = Path(config.state)
    cloud.publish(make_update(bundle, key, 1))
    with EdgeAgent(config) as agent:
        assert agent.wait_for_version(1, 20)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    foreign = folder / "notes.txt"
    foreign.touch(mode=0o644)
    with EdgeAgent(config):
        assert mode(folder) == 0o700
        assert {path.name: mode(path) for path in folder.iterdir()} == {
            path.name: 0o644 if path == foreign else 0o600 for path in folder.iterdir()
        }


def test_a_folder_that_is_shared_on_purpose_stays_so(quick_path: Path) -> None:
    folder = quick_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    StateFolder(folder)
    assert mode(folder) == 0o1777


def test_left_over_files_go_and_others_stay(
    make_config: Make, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey
) -> None:
    config = make_config(cloud)
    folder = Path(config.state)
    update = make_update(bundle, key, 1)
    cloud.publish(update)
    with EdgeAgent(config) as agent:
        assert agent.wait_for_version(1, 20)
    digest = update.manifest.payload
    left = [
        f".update-{digest}.bin.0123456789ab.tmp",
        ".update.json.0123456789ab.tmp",
        ".selector.json.ba9876543210.tmp",
        ".floor-0123456789abcdef.json.0123456789ab.tmp",
        f"update-{'0' * 64}.bin",  # written before a power loss, and never named
    ]
    others = [".update.json.swp", ".notes.0123456789ab.tmp", f"update-{digest}.bin", "update.json"]
    for name in (*left, *others):
        if not (folder / name).exists():
            (folder / name).touch()
    with EdgeAgent(config) as agent:
        assert agent.status().version == 1
        found = {path.name for path in folder.iterdir()}
    assert not found & set(left)
    assert set(others) <= found


def test_a_second_agent_removes_nothing_of_the_first(make_config: Make) -> None:
    config = make_config()
    with EdgeAgent(config):
        busy = Path(config.state) / ".update.json.0123456789ab.tmp"
        busy.touch()
        with pytest.raises(Exception, match="in use"):
            EdgeAgent(config)
        assert busy.exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_a_disk_that_gives_no_folder_is_asked_again(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    selector = EntropyBand(CLASSES)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        state = StateFolder(quick_path / "state")
        state.load_selector("base", "rule", selector)
        state.clean(None)
        with pytest.raises(OSError, match=os.strerror(code)):
            state.save_selector("base", "rule", selector.state())
    state.save_selector("base", "rule", selector.state())
    assert mode(quick_path / "state" / "selector.json") == 0o600


def test_a_name_that_is_taken_is_a_mistake_and_no_trouble_with_the_disk(quick_path: Path) -> None:
    (quick_path / "state").write_text("a file")
    with pytest.raises(ConfigError, match="cannot be created"):
        StateFolder(quick_path / "state")


def test_a_full_disk_does_not_fetch_an_update_again(
    bundle: Bundle, key: Ed25519PrivateKey, cloud: Cloud, quick_path: Path
) -> None:
    import time

    device = Device(bundle, cloud, quick_path / "state", FakeTime(seconds=time.time()))

    def full(at: str) -> None:
        if at == "save":
            raise OSError(errno.ENOSPC, "No space left on device")

    device.meanwhile = full
    cloud.publish(make_update(bundle, key, 3))
    device.poll(4)
    assert device.serves(0), "what cannot be remembered must not serve: its floor would be lost"
    assert "No space left" in (device.updater.last_error or "")
    device.meanwhile = lambda _: None
    device.poll()
    assert device.serves(3)
    assert sum("/artifacts/" in path for _, path, _ in cloud.requests) == 1
    device.stop()
