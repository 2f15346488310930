"""Which files of a folder are images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cema.ondevice.image_folder import list_images, subfolders


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def test_hidden_files_and_what_accompanies_pictures_are_skipped_quietly(tmp_path: Path) -> None:
    put(tmp_path, "a.JPG", "sub/b.jfif", "._a.jpg", ".thumbnails/a.png", "@eaDir/a.jpg/THUMB_M.jpg")
    put(
        tmp_path,
        "__MACOSX/sub/._b.jpg",
        "__MACOSX/b.jpg",
        "$RECYCLE.BIN/b.jpg",
        "#recycle/c.png",
        "sub/.c.png",
    )
    found = list_images(tmp_path)
    assert found.images == (tmp_path / "a.JPG", tmp_path / "sub" / "b.jfif")
    assert found.passed_over == {}
    assert subfolders(tmp_path) == [tmp_path / "sub"]
    assert list_images(tmp_path, below=False).images == (tmp_path / "a.JPG",)


def test_what_is_no_image_is_counted_by_ending(tmp_path: Path) -> None:
    put(tmp_path, "a.HEIC", "b/c.heic", "notes.txt", "README", "d.jpg", "e.jpg.part")
    found = list_images(tmp_path)
    assert found.passed_over == {"": 1, ".heic": 2, ".part": 1, ".txt": 1}
    put(tmp_path, *(f"log.{number}" for number in range(40)))
    counts = list_images(tmp_path).passed_over
    assert len(counts) == 20
    assert sum(counts.values()) == 45
    assert counts[".heic"] == 2


def test_links_are_followed_once_and_never_in_a_circle(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", "x.png", "y/z.png")
    root = put(tmp_path / "root", "a.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "again").symlink_to(tmp_path / "elsewhere")
    (root / "circle").symlink_to(root)
    (root / "self.png").symlink_to("self.png")
    (root / "photo.png").symlink_to(tmp_path / "elsewhere" / "x.png")
    (root / "lost.png").symlink_to(tmp_path / "nowhere.png")
    found = [str(path.relative_to(root)) for path in list_images(root).images]
    # Links that lead nowhere are reported by who reads them.
    assert found == ["a.png", "again/x.png", "again/y/z.png", "lost.png", "photo.png", "self.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_or_a_folder_with_the_name_of_an_image_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    put(tmp_path, "folder.jpg/a.png")
    found = list_images(tmp_path)
    assert found.images == (tmp_path / "folder.jpg" / "a.png",)
    assert found.passed_over == {".png": 1}
    assert list_images(tmp_path, below=False).images == ()


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    ((path, error),) = list_images(tmp_path / "nowhere").unreadable
    assert (path, type(error)) == (tmp_path / "nowhere", FileNotFoundError)
