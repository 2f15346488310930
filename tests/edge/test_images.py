"""Following a folder: which files are read, and when."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cema.edge.images.base import Picture
from cema.edge.images.opened import open_source

Reports = list[tuple[int | None, str]]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cema.edge.images.folder._REST_SECONDS", 0.05)
    monkeypatch.setattr("cema.edge.images.folder._LOOK_SECONDS", 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture
def reports() -> Reports:
    return []


@pytest.fixture
def followed(folder: Path, reports: Reports) -> Iterator[Picture | None]:
    def report(index: int | None, file: Path | str, error: Exception) -> None:
        assert str(error)
        reports.append((index, Path(file).name))

    return open_source(folder, follow=True).read(report)


def save(path: Path, shade: int = 0, seconds: int = 1_000_000_000) -> None:
    Image.fromarray(np.full((4, 4), shade, np.uint8)).save(path)
    os.utime(path, (seconds, seconds))


def take(followed: Iterator[Picture | None], count: int) -> list[tuple[int, str, int]]:
    """Return index, name and brightness of the next pictures."""
    found: list[tuple[int, str, int]] = []
    deadline = time.monotonic() + 8
    while len(found) < count and time.monotonic() < deadline:
        picture = next(followed)
        if picture is not None:
            assert picture.file is not None
            found.append((picture.index, Path(picture.file).name, int(picture.pixels.max())))
    return found


def nothing_comes(followed: Iterator[Picture | None]) -> bool:
    """Tell whether nothing comes for four times as long as a file needs to rest."""
    deadline = time.monotonic() + 0.2
    while time.monotonic() < deadline:
        if next(followed) is not None:
            return False
    return True


def test_files_at_the_start_by_path_and_later_ones_by_time(
    folder: Path, followed: Iterator[Picture | None]
) -> None:
    save(folder / "b.png", 2, seconds=100)
    save(folder / "c.png", 3, seconds=50)
    assert take(followed, 2) == [(0, "b.png", 2), (1, "c.png", 3)]
    save(folder / "a9.png", 9, seconds=200)
    save(folder / "a1.png", 1, seconds=300)
    assert [entry[1:] for entry in take(followed, 2)] == [("a9.png", 9), ("a1.png", 1)]
    assert nothing_comes(followed)


def test_a_file_that_is_being_written_is_waited_for(
    folder: Path, followed: Iterator[Picture | None], reports: Reports
) -> None:
    save(folder / "whole.png", 7)
    content = (folder / "whole.png").read_bytes()
    (folder / "whole.png").unlink()
    (folder / "empty.png").touch()
    with (folder / "slow.png").open("wb") as file:
        for place in range(len(content)):
            file.write(content[place : place + 1])
            file.flush()
            assert next(followed) is None
    assert take(followed, 1) == [(0, "slow.png", 7)]
    assert nothing_comes(followed)
    assert reports == []


def test_a_file_that_is_written_anew_is_a_new_picture_also_after_it_could_not_be_read(
    folder: Path, followed: Iterator[Picture | None], reports: Reports
) -> None:
    (folder / "latest.png").write_bytes(b"half of an image")
    assert nothing_comes(followed)
    assert reports == [(0, "latest.png")]
    save(folder / "latest.png", 1)
    assert take(followed, 1) == [(1, "latest.png", 1)]
    save(folder / "latest.png", 2, seconds=1_000_000_001)
    assert take(followed, 1) == [(2, "latest.png", 2)]
    (folder / "latest.png").unlink()
    assert nothing_comes(followed)
    save(folder / "latest.png", 3, seconds=1_000_000_002)
    assert take(followed, 1) == [(3, "latest.png", 3)]


def test_a_folder_that_is_away_for_a_while_comes_back_with_the_same_files(
    folder: Path, followed: Iterator[Picture | None], reports: Reports
) -> None:
    save(folder / "a.png", 1)
    assert len(take(followed, 1)) == 1
    shutil.move(folder, folder.with_name("away"))
    assert nothing_comes(followed)
    assert reports == [(None, "in")], "once, however long it lasts"
    folder.mkdir()
    assert nothing_comes(followed)
    folder.rmdir()
    shutil.move(folder.with_name("away"), folder)
    assert nothing_comes(followed)
    save(folder / "b.png", 2)
    assert take(followed, 1) == [(1, "b.png", 2)]
