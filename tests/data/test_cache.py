"""The cache of corrupted images: the same pixels, made once, and made again when anything is amiss."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cema.data import cache
from cema.data.cache import cache_folder, cached_corruptions
from cema.data.corruptions import corrupt_images
from cema.errors import ConfigError, ImageError


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (130, 32, 32, 3)).astype(np.uint8)


@pytest.fixture
def makings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the corruptions that were really made, as they are made."""
    made: list[str] = []
    real = cache.corrupted_chunks

    def watched(images: Any, name: str, *rest: Any, **options: Any) -> Iterator[list[np.ndarray]]:
        made.append(name)
        return real(images, name, *rest, **options)

    monkeypatch.setattr(cache, "corrupted_chunks", watched)
    return made


def test_made_once_and_the_same_as_without_a_cache(
    images: np.ndarray, tmp_path: Path, makings: list[str]
) -> None:
    calls: list[tuple[int, int]] = []
    for _ in range(2):
        found = cached_corruptions(
            images,
            "shot_noise",
            3,
            seed=4,
            constants="cifar",
            folder=tmp_path / "new",
            progress=lambda done, of: calls.append((done, of)),
        )
        assert found.shape == images.shape
        assert found.dtype == np.uint8
        assert np.array_equal(found, corrupt_images(images, "shot_noise", 3, seed=4, constants="cifar"))
        with pytest.raises(ValueError, match="read-only"):
            found[0] = 0
    assert makings == ["shot_noise"]
    assert calls == [(64, 130), (128, 130), (130, 130), (130, 130)]
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_numpy_reads_the_file(images: np.ndarray, tmp_path: Path) -> None:
    found = cached_corruptions(images, "contrast", 3, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    assert np.array_equal(np.load(path), found)
    assert np.array_equal(np.load(path, mmap_mode="r"), found)


def test_whatever_matters_makes_another_file(
    images: np.ndarray, tmp_path: Path, makings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(pixels: np.ndarray = images[:2], name: str = "contrast", severity: int = 3, **rest: Any) -> None:
        cached_corruptions(pixels, name, severity, folder=tmp_path, **rest)

    make()
    make()
    make(list(images[:2]))  # the same images, not as an array
    assert len(makings) == 1
    changed = images[:2].copy()
    changed[1, -1, -1, -1] ^= 1
    make(changed)
    make(images[1::-1])
    make(images[:3])
    make(images[:2, :, :, :1])
    make(name="fog")
    make(severity=4)
    make(seed=1)
    make(constants="cifar")
    assert len(makings) == 9
    monkeypatch.setattr(cache, "_versions", lambda: "another release")
    make()
    assert len(makings) == 10
    assert len(list(tmp_path.iterdir())) == 10


def test_versions_name_the_libraries_and_the_code() -> None:
    code, *libraries = cache._versions().split("/")
    assert len(bytes.fromhex(code)) == 16
    assert f"numpy {np.__version__}" in libraries
    assert not [library for library in libraries if library.startswith("no ")]


def test_the_same_pixels_in_another_shape_are_other_images() -> None:
    one = np.zeros((2, 32, 64, 1), np.uint8)
    other = np.zeros((2, 64, 32, 1), np.uint8)
    assert cache._key(one, f"{one.shape}") != cache._key(other, f"{other.shape}")


def test_a_damaged_file_is_made_again(images: np.ndarray, tmp_path: Path, makings: list[str]) -> None:
    expected = np.array(cached_corruptions(images, "pixelate", 2, folder=tmp_path))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    one_bit = bytearray(whole)
    one_bit[5000] ^= 8
    header = bytearray(whole)
    header[20] ^= 8
    damages = (b"", whole[:1000], whole[:-1], whole + b"x", bytes(one_bit), bytes(header), b"\0" * len(whole))
    for count, damaged in enumerate(damages, 2):
        path.write_bytes(damaged)
        assert np.array_equal(cached_corruptions(images, "pixelate", 2, folder=tmp_path), expected)
        assert len(makings) == count
        assert path.read_bytes() == whole


def test_a_failure_leaves_nothing_behind(tmp_path: Path, images: np.ndarray) -> None:
    mixed = [images[0], images[1][:, :, :1]]
    with pytest.raises(ImageError, match="image 1: expected the shape of the first"):
        cached_corruptions(mixed, "fog", 3, folder=tmp_path)

    def stop(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_corruptions(images, "fog", 3, folder=tmp_path, progress=stop)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"severity": 0}, "severity of fog"),
        ({"name": "mist"}, "unknown corruption"),
        ({"constants": "mnist"}, "'imagenet' or 'cifar'"),
        ({"processes": 0}, "processes"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], message: str, images: np.ndarray, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"name": "fog", "severity": 3, "folder": tmp_path, **change}
    with pytest.raises(ValueError, match=message):
        cached_corruptions(images, **arguments)
    assert not list(tmp_path.iterdir())


def test_no_images(tmp_path: Path) -> None:
    empty = np.zeros((0, 32, 32, 3), np.uint8)
    assert cached_corruptions(empty, "fog", 3, folder=tmp_path).shape == empty.shape
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path: Path, images: np.ndarray) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match="XDG_CACHE_HOME"):
        cached_corruptions(images[:2], "fog", 3, folder=tmp_path / "file")


def test_the_folder_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: np.ndarray) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for unset in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache_folder() == tmp_path / "home" / ".cache" / "cema" / "corruptions"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "cema" / "corruptions"
    cached_corruptions(images[:2], "contrast", 1)
    assert len(list(cache_folder().iterdir())) == 1


def test_two_processes_make_the_same_file(tmp_path: Path, images: np.ndarray) -> None:
    np.save(tmp_path / "clean.npy", images)
    code = (
        "import sys, numpy as np; from pathlib import Path; from cema.data.cache import cached_corruptions; "
        "images = np.load(sys.argv[1]); print('ready', flush=True); sys.stdin.readline(); "
        "found = cached_corruptions(images, 'snow', 2, constants='cifar', folder=Path(sys.argv[2])); "
        "print(int(np.array(found).astype(np.int64).sum()))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "clean.npy"), str(tmp_path / "cache")]
    pipes: dict[str, Any] = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "text": True,
        "env": os.environ,
    }
    with subprocess.Popen(command, **pipes) as one, subprocess.Popen(command, **pipes) as other:
        assert one.stdout is not None
        assert other.stdout is not None
        assert one.stdout.readline() == other.stdout.readline() == "ready\n"
        answers = {int(process.communicate("go\n", timeout=60)[0]) for process in (one, other)}
    assert answers == {int(corrupt_images(images, "snow", 2, constants="cifar").astype(np.int64).sum())}
    assert len(list((tmp_path / "cache").iterdir())) == 1
