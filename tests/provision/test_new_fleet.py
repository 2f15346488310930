"""`cema init`: what a new fleet's folder holds, and that nothing is left where something fails."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cema.cli.app import app
from cema.cloud.config import CloudConfig
from cema.edge.config import EdgeConfig
from cema.errors import CemaError, ConfigError, ModelError
from cema.formats.bundle import Bundle
from cema.formats.keys import key_id, load_public_key
from cema.models.registry import resolve
from cema.ondevice.image_file import read_image_file
from cema.provision.drawn_digits import draw_digit
from cema.provision.new_fleet import NewFleet, write_new_fleet
from cema.provision.staging import staged_folder


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new") / "fleet"
    write_new_fleet(NewFleet(folder=folder))
    return folder


def test_the_configurations_go_together(fleet: Path) -> None:
    cloud, edge = CloudConfig.load(fleet / "cloud.toml"), EdgeConfig.load(fleet / "edge.toml")
    (cohort,) = cloud.cohort
    bundle = Bundle.load(Path(edge.bundle))
    assert (cohort.name, cohort.model, cohort.foundation) == ("yard", "digits-cnn", "digits-cnn-foundation")
    assert edge.cloud is not None
    assert (edge.cloud.cohort, edge.cloud.url) == ("yard", f"http://127.0.0.1:{cloud.port}")
    assert Path(cohort.bundle) == Path(edge.bundle) == fleet / "bundle"
    assert set(bundle.public_keys) == {key_id(load_public_key(fleet / "keys" / "signing.pub"))}
    with closing(cloud.open_store()) as store:
        register = store.devices(["yard"])
        named = {device.name: device.role for device in register.list()}
        known = register.authenticate(edge.cloud.read_token())
        person = register.authenticate((fleet / "admin.token").read_text().strip())
    assert named == {"camera-1": "device", "admin": "admin"}
    assert known is not None
    assert person is not None
    assert (known.name, person.name) == ("camera-1", "admin")


def test_secrets_are_readable_by_their_owner_alone(fleet: Path) -> None:
    for name in ("camera-1.token", "admin.token", "keys/signing.key"):
        assert stat.S_IMODE((fleet / name).stat().st_mode) == 0o600, name


def test_the_sample_images_are_digits_that_the_models_read(fleet: Path) -> None:
    import torch

    right = {}
    for model in (resolve("digits-cnn"), resolve("digits-cnn-foundation")):
        for folder in ("1-clean", "2-noisy"):
            files = sorted((fleet / "images" / folder).iterdir())
            shown = np.array([int(file.stem[-1]) for file in files])
            pixels = np.stack([read_image_file(file) for file in files])
            with torch.no_grad():
                got = model.module(torch.from_numpy(model.preprocessing(pixels))).argmax(1).numpy()
            right[model.name, folder] = (got == shown).mean()
    assert right["digits-cnn", "1-clean"] > 0.8
    assert right["digits-cnn", "2-noisy"] < right["digits-cnn-foundation", "2-noisy"] - 0.15


def test_every_digit_is_drawn_alike_from_the_same_draw() -> None:
    for digit in range(10):
        first, again = (draw_digit(digit, np.random.default_rng(digit)) for _ in range(2))
        np.testing.assert_array_equal(first, again)
        assert first.shape == (32, 32)
        assert 0.03 < (first > 128).mean() < 0.4


def test_the_model_to_fill_in_works_as_it_stands(fleet: Path, tmp_path: Path) -> None:
    """From a folder of its own, as a person does who has filled it in; then from any other folder."""
    (tmp_path / "model.py").write_bytes((fleet / "model.py").read_bytes())
    arguments = ["--model", "model.py:build", "--foundation", "model.py:build_strong", "--cohort", "pets"]
    done = subprocess.run(
        [sys.executable, "-m", "cema", "init", "mine", *arguments],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "cd mine" in done.stdout
    (cohort,) = CloudConfig.load(tmp_path / "mine" / "cloud.toml").cohort
    assert cohort.name == "pets"
    assert cohort.model == f"{tmp_path}/model.py:build"
    assert resolve(cohort.foundation).labels == Bundle.load(Path(cohort.bundle)).manifest.labels
    assert not (tmp_path / "mine" / "model.py").exists()


def test_a_module_in_the_current_folder_is_found_from_every_other(
    fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_module_of_init.py").write_bytes((fleet / "model.py").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = {"model": "my_module_of_init:build", "foundation": "my_module_of_init:build_strong"}
    write_new_fleet(NewFleet(folder=tmp_path / "mine", **names))  # type: ignore[arg-type]
    (cohort,) = CloudConfig.load(tmp_path / "mine" / "cloud.toml").cohort
    assert cohort.model == f"{tmp_path}/my_module_of_init.py:build"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "digits-cnm"}, ConfigError, "expected the stronger model that teaches digits-cnm"),
        ({"model": "digits-cnm", "foundation": "digits-cnn"}, ModelError, "unknown model"),
        ({"foundation": "efficientnet-lite2"}, ModelError, "10"),
        ({"device": "a b"}, CemaError, "a b"),
        ({"device": "admin"}, ConfigError, "name another"),
    ],
)
def test_a_failure_leaves_nothing(
    tmp_path: Path, changes: dict[str, str], error: type[CemaError], message: str
) -> None:
    if changes.get("foundation") == "efficientnet-lite2":
        pytest.importorskip("efficientnet_lite_pytorch")
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "new"):
        with pytest.raises(error, match=message):
            write_new_fleet(NewFleet(folder=folder, **changes))  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_names_that_a_url_cannot_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cohort: name: expected 1 to 64"):
        NewFleet(folder=tmp_path, cohort="My Cohort")


def test_a_folder_that_is_not_empty_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    done = CliRunner().invoke(app, ["init", str(tmp_path)])
    assert isinstance(done.exception, ConfigError)
    assert "found notes.txt in it; name another folder" in str(done.exception)
    with pytest.raises(ConfigError, match="got a file"), staged_folder(tmp_path / "notes.txt"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_what_was_moved_goes_back_where_the_last_step_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, done = Path.rename, []

    def fails_at_second(self: Path, target: Path) -> Path:
        done.append(target)
        if len(done) == 2:
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_at_second)
    staging = ExitStack()
    folder = staging.enter_context(staged_folder(tmp_path))
    (folder / "a").touch()
    (folder / "b").touch()
    with pytest.raises(OSError, match="no"):
        staging.close()
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_is_passed_over(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # somebody else has it: all the better
            taken.bind(("127.0.0.1", 8080))
        taken.listen()
        made = write_new_fleet(NewFleet(folder=tmp_path / "a"))
    assert made.port > 8080
    assert CloudConfig.load(tmp_path / "a" / "cloud.toml").port == made.port


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="this system has no terminals")
def test_a_terminal_is_asked(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cema", "init", "fleet"],
        cwd=tmp_path,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.close(theirs)
    os.write(ours, b"digits-vit\n\nback-door\ncam\n")
    out, err = process.communicate(timeout=120)
    os.close(ours)
    assert process.returncode == 0, err
    assert b"Stronger model that teaches it [digits-vit-foundation]" in err
    (cohort,) = CloudConfig.load(tmp_path / "fleet" / "cloud.toml").cohort
    assert (cohort.name, cohort.foundation) == ("back-door", "digits-vit-foundation")
    assert (tmp_path / "fleet" / "cam.token").is_file()
    assert b"cema edge run --source images" in out
