"""Files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cema._util.files import unfinished, write_atomic, write_new
from cema._util.folders import user_cache


def test_an_unfinished_file_appears_only_when_it_is_moved(tmp_path: Path) -> None:
    path = tmp_path / "whole"
    with unfinished(path) as temporary:
        temporary.write_text("done")
        assert not path.exists()
        os.replace(temporary, path)
    assert path.read_text() == "done"
    assert list(tmp_path.iterdir()) == [path]


def test_what_an_error_leaves_unfinished_is_removed(tmp_path: Path) -> None:
    def interrupted() -> None:
        with unfinished(tmp_path / "whole") as temporary:
            temporary.write_text("half")
            raise RuntimeError("power")

    with pytest.raises(RuntimeError, match="power"):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_none_is_named_by_the_first_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RuntimeError, match="first"), unfinished(tmp_path / "file" / "whole"):
        raise RuntimeError("first")


def test_one_write_replaces_and_the_other_refuses(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_new(path, b"one", mode=0o600)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        write_new(path, b"two")
    assert path.read_bytes() == b"one"
    write_atomic(path, b"three")
    assert path.read_bytes() == b"three"
    assert list(tmp_path.iterdir()) == [path]


def test_the_cache_is_where_it_always_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert user_cache("fashion-mnist") == tmp_path / ".cache" / "cema" / "fashion-mnist"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert user_cache("fashion-mnist") == tmp_path / ".cache" / "cema" / "fashion-mnist"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert user_cache("fashion-mnist") == tmp_path / "xdg" / "cema" / "fashion-mnist"
