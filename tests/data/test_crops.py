"""Several images of one photograph: which squares are cut, and that the first is the usual one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from cema.data.base import LabelledImages
from cema.data.corruptions import corrupt_images
from cema.data.crops import AREAS, random_crop
from cema.data.dataset import open_dataset
from cema.data.folder import LabelledFolder
from cema.data.photographs import Crops
from cema.errors import ConfigError
from cema.testing.datasets import DatasetSuite

SIDE = 48


def write_photographs(root: Path, size: tuple[int, int] = (90, 80)) -> Path:
    """Write five photographs of two classes, none alike."""
    rng = np.random.default_rng(0)
    for name in ("cat/a", "cat/b", "dog/c", "dog/d", "dog/e"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(root / f"{name}.png")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "camera")


def clean(root: Path, **options: Any) -> LabelledImages:
    return open_dataset(str(root), cache=None, side=SIDE, **options).clean()


def pixels(found: LabelledImages) -> np.ndarray:
    return np.stack([np.asarray(image) for image in found.images])


class TestFolderOfCrops(DatasetSuite):
    __test__ = True

    def spec(self, folder: Path) -> str:
        return str(write_photographs(folder / "camera"))

    def make(self, folder: Path, **options: Any) -> Any:
        return super().make(folder, side=SIDE, crops=3, **options)


@pytest.mark.parametrize("size", [(90, 80), (70, 131), (64, 64), (33, 40)])
def test_a_random_crop_against_pillow(size: tuple[int, int]) -> None:
    width, height = size
    image = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    mirrored = 0
    for seed in range(20):
        rng, whole = np.random.default_rng(seed), min(size)
        share = 0.6 + 0.4 * rng.random()
        side = round(whole * share**0.5)
        down, right = rng.integers(0, whole - side + 1, 2)
        left, top = (width - whole) // 2 + right, (height - whole) // 2 + down
        square = Image.fromarray(image).crop((left, top, left + side, top + side))
        if rng.random() < 0.5:
            square, mirrored = ImageOps.mirror(square), mirrored + 1
        expected = np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(random_crop(image, SIDE, np.random.default_rng(seed)), expected)
    assert 0 < mirrored < 20


@pytest.mark.parametrize("size", [(240, 180), (180, 240)])
def test_random_crops_are_within_the_middle_square_and_half_are_mirrored(size: tuple[int, int]) -> None:
    width, height = size
    # Each pixel says where it is.
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows, columns, np.zeros_like(rows)], 2).astype(np.uint8)
    found = np.stack([random_crop(image, 60, np.random.default_rng(seed)) for seed in range(500)])
    margin = ((height - 180) // 2, (width - 180) // 2)
    middle = found.astype(np.float64).mean((1, 2))
    for axis in range(2):
        assert found[..., axis].min() >= margin[axis]
        assert found[..., axis].max() < margin[axis] + 180
        assert middle[:, axis].mean() == pytest.approx(margin[axis] + 89.5, abs=2)
        assert middle[:, axis].std() > 5
    # Between the middles of the outer pixels of a square of side s lie s (1 - 1 / 60) pixels.
    sides = np.ptp(found[..., 0].astype(np.float64), axis=(1, 2)) * 60 / 59
    areas = (sides / 180) ** 2
    assert AREAS[0] - 0.02 < areas.min() < 0.62
    assert 0.98 < areas.max() < AREAS[1] + 0.02
    assert areas.mean() == pytest.approx(0.8, abs=0.02)
    mirrored = found[:, 30, 0, 1] > found[:, 30, -1, 1]
    assert 0.43 < mirrored.mean() < 0.57


def test_one_crop_is_what_there_was_before(root: Path, tmp_path: Path) -> None:
    usual = open_dataset(str(root), cache=tmp_path / "a", side=SIDE)
    one = open_dataset(str(root), cache=tmp_path / "b", side=SIDE, crops=1)
    assert one.digest == usual.digest
    assert one.clean().origins is None
    np.testing.assert_array_equal(pixels(one.clean()), pixels(usual.clean()))
    for data in (one, usual):
        data.corrupted("fog", 3)
    before, now = ([*(tmp_path / name).iterdir()] for name in "ab")
    assert [path.name for path in before] == [path.name for path in now]
    assert before[0].read_bytes() == now[0].read_bytes()


def test_the_first_crops_are_the_photographs_as_they_are_usually_cut(root: Path) -> None:
    usual, found = clean(root), clean(root, crops=4)
    assert len(found) == 20
    np.testing.assert_array_equal(pixels(found)[:5], pixels(usual))
    np.testing.assert_array_equal(found.labels, np.tile(usual.labels, 4))
    np.testing.assert_array_equal(found.origins, np.tile(np.arange(5), 4))
    # Of so few pixels there are some thousand squares, and two may be alike.
    assert len(np.unique(pixels(found).reshape(20, -1), axis=0)) >= 18


def test_crops_follow_from_the_seed_and_the_photograph_alone(root: Path) -> None:
    found = pixels(clean(root, crops=4))
    np.testing.assert_array_equal(pixels(clean(root, crops=4)), found)
    np.testing.assert_array_equal(pixels(clean(root, crops=2)), found[:10])
    other = pixels(clean(root, crops=4, seed=1))
    np.testing.assert_array_equal(other[:5], found[:5])
    assert not (other[5:] == found[5:]).all((1, 2, 3)).any()


def test_a_limit_takes_every_photograph_before_it_takes_one_again(root: Path) -> None:
    whole = clean(root, crops=4)
    for limit in (3, 5, 12, 99):
        few = clean(root, crops=4, limit=limit)
        assert len(few) == min(limit, 20)
        assert few.origins is not None
        assert len(np.unique(few.origins)) == min(limit, 5)
        order = np.random.default_rng(0).permutation(5)
        np.testing.assert_array_equal(few.origins, np.tile(order[: min(limit, 5)], 4)[:limit])
        number = np.arange(len(few)) // min(limit, 5)
        np.testing.assert_array_equal(pixels(few), pixels(whole)[few.origins + 5 * number])
        np.testing.assert_array_equal(few.labels, whole.labels[few.origins])


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=9, unique=True),
    st.integers(1, 5),
    st.none() | st.integers(1, 60),
)
def test_no_image_comes_twice(chosen: list[int], count: int, limit: int | None) -> None:
    crops = Crops([], np.array(chosen), count=count, limit=limit, side=SIDE, seed=0)
    assert len(crops) == len(crops.numbers) == min(count * len(chosen), limit or 999)
    assert len({*zip(crops.places.tolist(), crops.numbers.tolist(), strict=True)}) == len(crops)
    assert crops.numbers.tolist() == sorted(crops.numbers.tolist())
    assert crops.places[: len(chosen)].tolist() == chosen[: len(crops)]


def test_corrupted_after_they_are_cut(root: Path, tmp_path: Path) -> None:
    data = open_dataset(str(root), cache=tmp_path / "cache", side=SIDE, crops=3)
    found = data.corrupted("gaussian_noise", 3)
    np.testing.assert_array_equal(found.images, corrupt_images(pixels(data.clean()), "gaussian_noise", 3))
    np.testing.assert_array_equal(found.labels, data.clean().labels)
    np.testing.assert_array_equal(found.origins, data.clean().origins)


def test_one_cache_never_mixes_them(root: Path, tmp_path: Path) -> None:
    options = [{"crops": c, "seed": s} for c in (1, 2, 3) for s in (0, 1)] + [{"crops": 3, "limit": 10}]
    cache = tmp_path / "cache"
    opened = [open_dataset(str(root), cache=cache, side=SIDE, **o) for o in options]  # type: ignore[arg-type]
    made = [np.array(data.corrupted("fog", 3).images) for data in opened]
    assert len([*cache.glob("*.npy")]) == len(options)
    again = [open_dataset(str(root), cache=cache, side=SIDE, **o) for o in options]  # type: ignore[arg-type]
    for data, images, option in zip(again, made, options, strict=True):
        np.testing.assert_array_equal(data.corrupted("fog", 3).images, images)
        seed = option.get("seed", 0)
        np.testing.assert_array_equal(
            images, corrupt_images(pixels(data.clean()), "fog", 3, seed=seed), str(option)
        )
    assert len([*cache.glob("*.npy")]) == len(options)


def test_the_digest_tells_them_apart(root: Path) -> None:
    def digest(**options: Any) -> str:
        return open_dataset(str(root), cache=None, side=SIDE, **options).digest

    assert digest(seed=1) == digest()
    assert len({digest(), digest(crops=2), digest(crops=3), digest(crops=3, seed=1)}) == 4
    assert digest(crops=3, limit=2) == digest(crops=3)


def test_what_is_not_cut_is_refused_with_the_reason(root: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", x=np.zeros((4, 32, 32, 3), np.uint8), y=np.arange(4))
    for spec, name in (("digits", "digits"), (str(tmp_path / "mine.npz"), "npz")):
        with pytest.raises(
            ConfigError, match=rf"2 crops .* but {name} has images that are not cut: .*folder of"
        ):
            open_dataset(spec, cache=None, crops=2)
        assert open_dataset(spec, cache=None, crops=1) is not None
    small = write_photographs(tmp_path / "small", (64, 90))
    with pytest.raises(ConfigError, match=r"small: 2 crops .* not above 64 pixels .* ask for one crop"):
        open_dataset(str(small), cache=None, crops=2)
    with pytest.raises(ConfigError, match=r"camera: 2 crops .* side of 0; give a side"):
        open_dataset(str(root), cache=None, crops=2, side=0)
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        open_dataset(str(root), cache=None, crops=0)


def test_published_corruptions_are_refused(tmp_path: Path) -> None:
    for name in ("n01440764", "n01443537"):
        write_photographs(tmp_path / "set" / "fog" / "3" / name)
    with pytest.raises(
        ConfigError, match="imagenet-c has images that are not cut: published corruptions are"
    ):
        open_dataset(str(tmp_path / "set"), cache=None, crops=2)


def test_a_strangers_reader_may_take_them(root: Path, tmp_path: Path) -> None:
    text = (
        "from cema.data.photographs import open_folder\n"
        "class Mine:\n"
        "    name, expects, needs_path = 'mine', 'mine', True\n"
        "    def matches(self, path):\n        return False\n"
        "    def open(self, path, options):\n        return open_folder(path, options)\n"
    )
    (tmp_path / "plain.py").write_text(text)
    (tmp_path / "taking.py").write_text(f"{text}    takes_crops = True\n")
    with pytest.raises(ConfigError, match="mine has images that are not cut"):
        open_dataset(f"{tmp_path}/plain.py:Mine@{root}", cache=None, crops=2)
    assert len(open_dataset(f"{tmp_path}/taking.py:Mine@{root}", cache=None, crops=2).clean()) == 10


def test_origins_go_with_images() -> None:
    with pytest.raises(ValueError, match="each of 2 images, got origins of shape"):
        LabelledImages(np.zeros((2, 8, 8, 3), np.uint8), np.zeros(2, np.int64), np.zeros(3, np.int64))


def test_real_photographs(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "imagenet_a"
    usual = open_dataset(str(root), cache=tmp_path, limit=5).clean()
    data = open_dataset(str(root), cache=tmp_path, crops=2)
    found = data.clean()
    assert len(found) == 2 * len(LabelledFolder(root))
    few = open_dataset(str(root), cache=tmp_path, limit=5, crops=2).clean()
    np.testing.assert_array_equal(pixels(few), pixels(usual))
    # A random square shows much the same: it is nearer to its own photograph than to the others.
    first, second = (pixels(LabelledImages(found.images[s : s + 5], np.arange(5))) for s in (0, 500))
    shades = [part.astype(np.float64).mean((1, 2)) for part in (first, second)]
    gaps = np.linalg.norm(shades[0][:, None] - shades[1][None], axis=2)
    assert gaps.argmin(1).tolist() == [*range(5)]
