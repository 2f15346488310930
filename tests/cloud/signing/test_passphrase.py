from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cema.cloud.signing.passphrase import pass_on, read_passphrase
from cema.errors import ConfigError

SECRET = "correct horse"


def test_a_passphrase_comes_from_a_file_a_variable_or_a_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p").write_text(f"{SECRET}\n")
    monkeypatch.setenv("CEMA_TEST_PASSPHRASE", SECRET)
    descriptor = pass_on(SECRET.encode())
    assert read_passphrase(f"file:{tmp_path / 'p'}") == SECRET.encode()
    assert read_passphrase("env:CEMA_TEST_PASSPHRASE") == SECRET.encode()
    assert read_passphrase(f"fd:{descriptor}") == SECRET.encode()
    with pytest.raises(ConfigError, match="once only"):  # it was closed
        read_passphrase(f"fd:{descriptor}")


@given(st.binary(min_size=1, max_size=1023))
def test_what_is_passed_on_arrives(passphrase: bytes) -> None:
    descriptor = pass_on(passphrase)
    assert not os.get_inheritable(descriptor)
    bare = passphrase.removesuffix(b"\n").removesuffix(b"\r")
    if bare:
        assert read_passphrase(f"fd:{descriptor}") == bare
    else:
        with pytest.raises(ConfigError, match="got nothing"):
            read_passphrase(f"fd:{descriptor}")


def test_a_child_reads_what_was_passed_on(tmp_path: Path) -> None:
    descriptor = pass_on(SECRET.encode())
    code = (
        "import sys; from cema.cloud.signing.passphrase import read_passphrase;"
        "print(read_passphrase(sys.argv[1]).decode())"
    )
    try:
        ran = subprocess.run(
            [sys.executable, "-c", code, f"fd:{descriptor}"],
            pass_fds=[descriptor], capture_output=True, text=True, check=True,
        )  # fmt: skip
    finally:
        os.close(descriptor)
    assert ran.stdout == f"{SECRET}\n"


@pytest.mark.parametrize(
    "source",
    [
        SECRET,
        f"pass:{SECRET}",
        "file:",
        "fd:x",
        "fd:-4",
        "fd:0",
        "fd:2",
        "env:",
        "",
        "FD:3",
        "fd:03",
        f"fd:{2**70}",
    ],
)
def test_other_sources_are_refused_and_not_repeated(source: str) -> None:
    with pytest.raises(ConfigError, match="file:PATH, env:NAME or fd:NUMBER") as refused:
        read_passphrase(source)
    assert SECRET not in str(refused.value)


def test_a_passphrase_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_passphrase(f"file:{tmp_path / 'none'}")
    with pytest.raises(ConfigError, match="no such environment variable"):
        read_passphrase("env:CEMA_NO_SUCH_VARIABLE")
    with pytest.raises(ConfigError, match="no passphrase can be read"):
        read_passphrase("fd:987654")
    for content, told in ((b"", "got nothing"), (b"\r\n", "got nothing"), (bytes(4096), "more than 2048")):
        (tmp_path / "p").write_bytes(content)
        with pytest.raises(ConfigError, match=told):
            read_passphrase(f"file:{tmp_path / 'p'}")
