"""The commands as a person types them, in a process of their own."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cema.errors import ConfigError
from cema.formats.keys import key_id, load_private_key, load_public_key


def cema(
    *arguments: str, cwd: Path | None = None, code: str = "from cema.cli.main import main; main()"
) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["bench"],
        ["bench", "compare"],
        ["check"],
        ["cost"],
        ["demo"],
        ["export"],
        ["cloud", "serve"],
        ["cloud", "status"],
        ["cloud", "audit"],
        ["cloud", "backup"],
        ["cloud", "restore"],
        ["edge", "run"],
        ["device", "add"],
        ["keys", "list"],
        ["keys", "new"],
        ["keys", "revoke"],
        ["keys", "rotate"],
        ["train"],
        ["update", "trace"],
    ],
)
def test_every_command_has_help(command: list[str]) -> None:
    status, out, _ = cema(*command, "--help")
    assert status == 0
    assert "Usage: " in out


def test_the_help_loads_nothing_that_draws_and_nothing_that_computes() -> None:
    heavy = ("rich", "pygments", "markdown_it", "numpy", "msgspec", "torch", "onnxruntime", "httpx2", "PIL")
    code = (
        "import atexit, sys; from cema.cli.main import main; "
        f"atexit.register(lambda: print([m for m in {heavy} if m in sys.modules])); main()"
    )
    status, out, _ = cema("--help", code=code)
    assert status == 0
    assert out.splitlines()[-1] == "[]"
    assert not [line for line in out.partition("Commands:")[2].splitlines() if line.endswith("...")], (
        "no help is cut off"
    )


def test_the_version_is_the_packages() -> None:
    from cema._util.version import __version__

    assert cema("--version")[1] == f"cema {__version__}\n"


def test_keys_are_made_once_and_privately(tmp_path: Path) -> None:
    status, out, _ = cema("keys", "new", "signing.key", cwd=tmp_path)
    assert status == 0
    assert "key id" in out
    assert stat.S_IMODE((tmp_path / "signing.key").stat().st_mode) == 0o600
    status, _, err = cema("keys", "new", "signing.key", cwd=tmp_path)
    assert status == 1
    assert err.startswith("cema: ")
    assert "Traceback" not in err


def test_an_encrypted_key_opens_with_its_passphrase_only(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("correct horse\n")
    status, out, err = cema("keys", "new", "k.key", "--encrypt", "--passphrase", "file:secret", cwd=tmp_path)
    assert status == 0, err
    assert "correct" not in out + err
    key = load_private_key(tmp_path / "k.key", passphrase=b"correct horse")
    assert f"key id      {key_id(key.public_key())}" in out
    assert load_public_key(tmp_path / "k.pub") == key.public_key()
    with pytest.raises(ConfigError, match="check the passphrase"):
        load_private_key(tmp_path / "k.key", passphrase=b"wrong horse")
    with pytest.raises(ConfigError, match="got an encrypted one"):
        load_private_key(tmp_path / "k.key")
    status, _, err = cema("keys", "new", "other.key", "--passphrase", "correct horse", cwd=tmp_path)
    assert status == 1
    assert "expected file:PATH" in err
    assert "horse" not in err
    assert not (tmp_path / "other.key").exists()


def test_an_export_is_checked_and_says_so(tmp_path: Path) -> None:
    cema("keys", "new", "signing.key", cwd=tmp_path)
    arguments = ["export", "bundle", "--model", "digits-cnn", "--public-key", "signing.pub"]
    status, out, err = cema(*arguments, cwd=tmp_path)
    assert status == 0, err
    assert "max difference" in out
    assert json.loads((tmp_path / "bundle" / "manifest.json").read_text())["classes"] == 10
    status, _, err = cema(*arguments, cwd=tmp_path)
    assert status == 1
    assert "bundle" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["export", "b", "--model", "no-such-model", "--public-key", "k.pub"], "no-such-model"),
        (["edge", "run", "--config", "none.toml", "--source", "."], "none.toml"),
        (["cloud", "serve", "--config", "none.toml"], "none.toml"),
        (["device", "list", "--config", "none.toml"], "none.toml"),
        (["demo", "--images", "no-such-folder"], "no-such-folder"),
        (["demo", "--model", "efficientnet-lite0"], "classes"),
        (["demo", "--plot", "."], "cannot be written"),
        (["train", "digits", "--out", "/dev/null"], "/dev/null"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, arguments: list[str], expected: str) -> None:
    status, _, err = cema(*arguments, cwd=tmp_path)
    assert status == 1
    assert err.startswith("cema: ")
    assert expected in err
    assert "Traceback" not in err


def test_a_missing_package_is_named_with_the_extra_that_brings_it(tmp_path: Path) -> None:
    hidden = "import sys; sys.modules['torch'] = None; from cema.cli.main import main; main()"
    status, _, err = cema(
        "export", "b", "--model", "digits-cnn", "--public-key", "k.pub", cwd=tmp_path, code=hidden
    )
    assert status == 1
    assert "cema[cloud]" in err
    assert "Traceback" not in err
