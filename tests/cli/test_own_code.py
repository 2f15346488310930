"""Names of one's own code: found in the current folder by every command, and their errors shown whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cema._util.names import import_from_here, own_frames

OWN = """
def build():
    return helper()


def helper():
    raise ValueError("the weights are of another model\\nexpected 5 classes")
"""


def cema(folder: Path, *arguments: str, program: str = "cema") -> tuple[int, str]:
    """Run the command as its installed script does: Python itself does not look into the current folder."""
    stdin, held = os.pipe()  # the worker ends with its standard input
    done = subprocess.run(
        [sys.executable, "-P", "-m", program, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=stdin,
    )
    os.close(stdin)
    os.close(held)
    return done.returncode, done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "cloud.toml").write_text(
        'data = "cloud"\nsigning_key = "k"\nstore = "mine:Store:x"\n'
        '[[cohort]]\nname = "yard"\nbundle = "b"\nmodel = "mine:build"\nfoundation = "mine:build"\n'
    )
    (tmp_path / "edge.toml").write_text(
        'bundle = "bundle"\nstate = "state"\n[selection]\nrule = "mine:Rule"\n'
    )
    return tmp_path


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("export out --model mine:nothing --public-key k.pub", "has no function 'nothing'"),
        ("bench --data digits --methods mine:Nothing --out out", "has no 'Nothing'"),
        (
            "bench --data mine:Nothing --model digits-cnn --foundation digits-cnn-foundation",
            "has no 'Nothing'",
        ),
        ("cloud serve --config cloud.toml", "has no 'Store'"),
        ("device list --config cloud.toml", "has no 'Store'"),
    ],
)
def test_every_command_finds_a_module_in_the_current_folder(
    folder: Path, command: str, expected: str
) -> None:
    status, told = cema(folder, *command.split())
    assert status == 1
    assert f"mine ({folder / 'mine.py'}) {expected}" in told.replace("\n", " ")
    assert "Traceback" not in told


def test_the_clouds_worker_finds_it_too(folder: Path) -> None:
    status, told = cema(folder, "--config", "cloud.toml", program="cema.cloud.worker.process")
    assert status != 0
    assert f"mine ({folder / 'mine.py'}) has no 'Store'" in told


def test_an_error_in_a_function_is_shown_with_its_place(folder: Path) -> None:
    status, told = cema(folder, "export", "out", "--model", "mine:build", "--public-key", "k.pub")
    assert status == 1
    assert told.startswith(
        "cema: mine:build: the function failed: ValueError: the weights are of another model"
    )
    assert f'File "{folder / "mine.py"}", line 7, in helper' in told
    assert "expected 5 classes" in told
    assert "cema/models" not in told


def test_an_error_at_import_is_shown_with_its_place(folder: Path) -> None:
    (folder / "mine.py").write_text("import no_such_package_of_mine\n")
    status, told = cema(folder, "export", "out", "--model", "mine:build", "--public-key", "k.pub")
    assert status == 1
    assert f'File "{folder / "mine.py"}", line 1, in <module>' in told
    assert "No module named 'no_such_package_of_mine'" in told


def test_an_error_that_is_nobodys_has_no_frames() -> None:
    assert own_frames(ValueError("never raised")) == ""


def test_the_current_folder_is_added_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["/elsewhere"])
    import_from_here()
    import_from_here()
    assert sys.path == [str(tmp_path), "/elsewhere"]
