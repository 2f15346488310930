"""`cema check` without labels: each thing that can be wrong is told, with what to do about it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cema.cli.app import app
from cema.cli.checks import files
from cema.cli.checks.base import Wrong
from cema.cli.checks.files import check_folder, plausible_clock
from cema.cloud.config import CloudConfig
from cema.formats.keys import generate_key
from cema.provision.new_fleet import NewFleet, write_new_fleet


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("check") / "fleet"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    write_new_fleet(NewFleet(folder=folder, port=port))
    return folder


@pytest.fixture
def fleet(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the fleet, which is the current folder."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    shutil.copytree(made, tmp_path / "fleet", ignore=shutil.ignore_patterns("images"))
    monkeypatch.chdir(tmp_path / "fleet")
    return tmp_path / "fleet"


@pytest.fixture
def cloud(fleet: Path) -> Iterator[None]:
    with (fleet / "cloud.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "cema", "cloud", "serve"], stdout=subprocess.PIPE, stderr=log, text=True
        )
    assert server.stdout is not None
    assert "listening" in server.stdout.readline(), (fleet / "cloud.log").read_text()
    yield
    server.terminate()
    server.communicate(timeout=60)


def check(*arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = CliRunner().invoke(app, ["check", "--json", *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    found = json.loads(done.stdout)
    assert found["ok"] == (done.exit_code == 0)
    for each in found["checks"]:
        assert each["detail"]
        assert (each["remedy"] is not None) == (each["ok"] is False)
    return done.exit_code, {each["name"]: each for each in found["checks"]}


def crosses(found: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name, each in found.items() if each["ok"] is False}


@pytest.mark.usefixtures("fleet")
def test_a_new_fleet_is_well_before_its_cloud_runs() -> None:
    code, found = check()
    assert (code, crosses(found)) == (0, set())
    assert found["connection"]["ok"] is None
    assert "cema cloud serve" in found["connection"]["detail"]
    assert {name for name, each in found.items() if each["ok"]} == {
        *("cloud.toml", "edge.toml", "port", "disk (cloud)", "keys", "bundle yard", "models yard"),
        *("disk (device)", "token", "clock"),
    }


@pytest.mark.usefixtures("cloud")
def test_a_running_cloud_is_asked(fleet: Path, tmp_path: Path) -> None:
    deadline = time.monotonic() + 60  # until its worker is ready, which is one of the things that are told
    while crosses(check()[1]) == {"port"} and time.monotonic() < deadline:
        time.sleep(0.2)
    code, found = check()
    assert (code, crosses(found)) == (0, set())
    assert "runs there already, and is well" in found["port"]["detail"]
    assert "takes the token" in found["connection"]["detail"]
    assert found["clock"]["detail"].endswith("as the cloud's")

    (fleet / "camera-1.token").write_text("another\n")
    assert crosses(check()[1]) == {"connection"}
    assert "401" in check()[1]["connection"]["detail"]
    shutil.copy(fleet / "admin.token", fleet / "camera-1.token")

    edge = (fleet / "edge.toml").read_text()
    (fleet / "edge.toml").write_text(edge.replace('cohort = "yard"', 'cohort = "yord"'))
    assert "no cohort 'yord'" in check()[1]["connection"]["detail"]

    shutil.copytree(fleet / "bundle", fleet / "other")
    manifest = json.loads((fleet / "other" / "manifest.json").read_text())
    (fleet / "edge.toml").write_text(edge.replace('bundle = "bundle"', 'bundle = "other"'))
    assert crosses(check("--device", "edge.toml")[1]) == set()
    write_new_fleet(NewFleet(folder=tmp_path / "vit", model="digits-vit", port=1))
    shutil.rmtree(fleet / "other")
    shutil.copytree(tmp_path / "vit" / "bundle", fleet / "other")
    told = check("--device", "edge.toml")[1]["connection"]
    assert told["ok"] is False
    assert manifest["model"] == "digits-cnn"
    assert "the cloud adapts the base model" in told["detail"]


@pytest.mark.usefixtures("cloud")
def test_the_cloud_of_another_fleet_is_no_answer(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made, tmp_path / "other")
    monkeypatch.chdir(tmp_path / "other")
    _, found = check("--config", "cloud.toml")
    assert crosses(found) == {"port"}
    assert "another CEMA cloud runs there" in found["port"]["detail"]


def test_what_is_damaged_is_told(fleet: Path) -> None:
    (fleet / "bundle" / "norm.bin").write_bytes(b"short")
    code, found = check()
    assert (code, crosses(found)) == (1, {"bundle yard"})
    assert "norm.bin" in found["bundle yard"]["detail"]
    assert found["models yard"]["ok"] is None


def test_another_model_than_the_bundles_is_told(fleet: Path) -> None:
    text = (fleet / "cloud.toml").read_text()
    (fleet / "cloud.toml").write_text(text.replace('model = "digits-cnn"', 'model = "digits-vit"'))
    assert crosses(check()[1]) == {"models yard"}
    (fleet / "cloud.toml").write_text(text.replace('"digits-cnn-foundation"', '"nothing:build"'))
    _, found = check()
    assert crosses(found) == {"models yard"}
    assert "nothing" in found["models yard"]["detail"]


def test_keys_that_devices_do_not_trust_or_everybody_reads(fleet: Path) -> None:
    key = fleet / "keys" / "signing.key"
    key.chmod(0o644)
    (fleet / "camera-1.token").chmod(0o604)
    _, found = check()
    assert crosses(found) == {"keys", "token"}
    assert found["keys"]["remedy"] == f"chmod 600 {key}"
    (fleet / "camera-1.token").chmod(0o600)
    key.unlink()
    assert "signing.key" in check()[1]["keys"]["detail"]
    (fleet / "keys" / "signing.pub").unlink()
    generate_key(key)
    _, found = check()
    assert crosses(found) == {"keys"}
    assert "they would refuse every update" in found["keys"]["detail"]


def test_a_port_that_another_program_has(fleet: Path) -> None:
    port = CloudConfig.load(fleet / "cloud.toml").port
    with socket.create_server(("127.0.0.1", port)):
        _, found = check("--config", "cloud.toml")
    assert crosses(found) == {"port"}
    assert str(port) in found["port"]["detail"]


def test_settings_that_are_wrong_or_absent(fleet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fleet / "cloud.toml").write_text("dta = 1")
    (fleet / "edge.toml").unlink()
    code, found = check()
    assert (code, crosses(found)) == (1, {"cloud.toml"})
    assert "dta" in found["cloud.toml"]["detail"]
    (fleet / "cloud.toml").unlink()
    code, found = check()
    assert (code, crosses(found)) == (1, {"cloud.toml"})
    assert "cema init DIR" in found["cloud.toml"]["remedy"]
    assert crosses(check("--device", "nowhere.toml")[1]) == {"edge.toml"}


def test_a_device_without_its_cloud(fleet: Path) -> None:
    """As on a machine of its own, which has neither torch nor what a cloud needs."""
    (fleet / "cloud.toml").unlink()
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'fastapi', 'uvicorn', 'onnx')))\n"
        "sys.argv = ['cema', 'check']\n"
        "from cema.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert [line[:2] for line in lines if line.startswith("✗")] == ["✗ "]
    (cross,) = [i for i, line in enumerate(lines) if line.startswith("✗")]
    assert lines[cross].startswith("✗ connection")
    assert lines[cross + 1].startswith("  → ")
    assert "\n✓ bundle (device)" in done.stdout
    assert done.stdout.startswith("– cloud.toml")


def test_a_terminal_without_such_letters(fleet: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cema", "check"],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode("ascii").startswith("ok cloud.toml")


def test_room_and_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "can be written" in check_folder(tmp_path / "new" / "data", may_take=1, setting="most")
    assert "most allows" in check_folder(tmp_path, may_take=2**60, setting="most")
    monkeypatch.setattr(files, "FREE_BYTES", 2**60)
    with pytest.raises(Wrong, match="are needed"):
        check_folder(tmp_path, may_take=1, setting="most")
    (tmp_path / "file").touch()
    with pytest.raises(Wrong, match="cannot be written"):
        check_folder(tmp_path / "file", may_take=1, setting="most")

    def no_room(_folder: Path) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "free_bytes", no_room)
    with pytest.raises(Wrong, match="No space left") as full:
        check_folder(tmp_path, may_take=1, setting="most")
    assert "free some room" in full.value.remedy
    if os.geteuid():
        (tmp_path / "read-only").mkdir(mode=0o500)
        with pytest.raises(Wrong, match="cannot be written"):
            check_folder(tmp_path / "read-only" / "data", may_take=1, setting="most")


def test_a_clock_that_was_never_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plausible_clock().endswith("UTC")
    monkeypatch.setattr(time, "time", lambda: 86_400.0)
    with pytest.raises(Wrong, match="1970-01-02"):
        plausible_clock()


@pytest.mark.usefixtures("fleet")
def test_options_of_the_other_kind_of_check_are_refused() -> None:
    done = CliRunner().invoke(app, ["check", "--version", "3"])
    assert "--version: only for --labels" in str(done.exception)
