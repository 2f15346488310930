"""Streams: order, repeats, segments and views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cema.data.corruptions import FAMILIES, corrupt_image
from cema.data.digits import load_digits
from cema.demo.segments import DIGITS_SEGMENTS, PHOTOGRAPH_SEGMENTS, RandomView, Segment, Stream
from cema.errors import ImageError

SEGMENTS = (Segment("clean"), Segment("noise", "gaussian_noise", 3), Segment("contrast", "contrast", 4))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return load_digits().test_images[:10]


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return load_digits().test_labels[:10]


def make(images: np.ndarray, labels: np.ndarray, **options: object) -> Stream:
    return Stream(images, labels, SEGMENTS, **options)  # type: ignore[arg-type]


@given(count=st.integers(1, 12), length=st.integers(1, 40), edge=st.integers(0, 3))
def test_every_pass_shows_every_image_once(count: int, length: int, edge: int) -> None:
    source = np.zeros((count, 32, 32, 1), np.uint8)
    stream = Stream(source, np.arange(count), SEGMENTS, length=length, edge=edge)
    assert len(stream) == 3 * length
    assert np.array_equal(stream.labels, stream.order)
    for segment in range(3):
        order = stream.order[segment * length : (segment + 1) * length]
        for start in range(0, length, count):
            part = order[start : start + count]
            assert len(set(part.tolist())) == len(part)


def test_same_seed_same_stream_other_edge_other_order(images: np.ndarray, labels: np.ndarray) -> None:
    one, again, other = (make(images, labels, length=25, seed=3, edge=edge) for edge in (0, 0, 1))
    assert np.array_equal(one.order, again.order)
    assert all(map(np.array_equal, one.images(0, 75), again.images(0, 75)))
    assert not np.array_equal(one.order, other.order)
    assert one.order[:25].tolist() != one.order[25:50].tolist()


def test_images_are_the_same_however_they_are_asked_for(images: np.ndarray, labels: np.ndarray) -> None:
    stream = make(images, labels, length=23, view=RandomView())
    whole = stream.images(0, len(stream))
    one_by_one = [stream.images(place, place + 1)[0] for place in range(len(stream))]
    batched = [image for start in range(0, 69, 7) for image in stream.images(start, min(start + 7, 69))]
    assert all(map(np.array_equal, whole, one_by_one))
    assert all(map(np.array_equal, whole, batched))


def test_segments_do_what_they_say(images: np.ndarray, labels: np.ndarray) -> None:
    stream = make(images, labels)
    clean = stream.images(0, 10)
    assert all(
        np.array_equal(image, images[index]) for image, index in zip(clean, stream.order, strict=False)
    )
    for place, image in enumerate(stream.images(20, 30), 20):
        assert np.array_equal(image, corrupt_image(images[stream.order[place]], "contrast", 4))


def test_repeats_get_another_draw_and_another_view(images: np.ndarray, labels: np.ndarray) -> None:
    plain = make(images[:1], labels[:1], length=3)
    first, second, third = plain.images(0, 3)
    assert np.array_equal(first, second)
    noisy = plain.images(3, 6)
    assert not np.array_equal(noisy[0], noisy[1])
    first, second, third = make(images[:1], labels[:1], length=3, view=RandomView(0.5)).images(0, 3)
    assert np.array_equal(first, images[0])
    assert not np.array_equal(first, second)
    assert not np.array_equal(second, third)
    assert first.shape == second.shape


def test_save_writes_what_images_gives(tmp_path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    stream, calls = make(images, labels, length=300), []
    stream.save(tmp_path / "edge.npy", progress=lambda done, of: calls.append((done, of)))
    saved = np.load(tmp_path / "edge.npy", mmap_mode="r")
    assert saved.dtype == np.uint8
    assert np.array_equal(saved, np.stack(stream.images(0, 900)))
    assert calls[-1] == (900, 900)
    assert [path.name for path in tmp_path.iterdir()] == ["edge.npy"]


def test_save_refuses_several_sizes_and_leaves_nothing(tmp_path: Path) -> None:
    sizes = [np.zeros((32, 32, 1), np.uint8), np.zeros((40, 32, 1), np.uint8)]
    with pytest.raises(ImageError, match="resize"):
        Stream(sizes, [0, 1], SEGMENTS).save(tmp_path / "edge.npy")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("segments", [DIGITS_SEGMENTS, PHOTOGRAPH_SEGMENTS])
def test_default_segments_cover_the_families(segments: tuple[Segment, ...]) -> None:
    assert segments[0] == Segment("clean")
    corruptions = [segment.corruption for segment in segments[1:]]
    assert len(set(corruptions)) >= 4
    assert set(corruptions) & set(FAMILIES["noise"])
    assert set(corruptions) & set(FAMILIES["blur"])
    assert set(corruptions) & {"fog", "contrast"}
    assert set(corruptions) & {"snow", "frost"}
    assert len({segment.name for segment in segments}) == len(segments)


def test_view_keeps_shape_and_colour() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3)).astype(np.uint8)
    seen = RandomView(0.7)(image, np.random.default_rng(1))
    assert seen.shape == image.shape
    assert seen.dtype == np.uint8
    mirrored = {
        np.array_equal(RandomView(1.0)(image, np.random.default_rng(seed)), image[:, ::-1])
        for seed in range(20)
    }
    assert mirrored == {True, False}
    assert np.array_equal(RandomView(1.0, flip=False)(image, np.random.default_rng(1)), image)


def test_wrong_arguments(images: np.ndarray, labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="one label for each of 10"):
        make(images, labels[:9])
    with pytest.raises(ValueError, match="needs images"):
        make(images[:0], labels[:0])
    with pytest.raises(ValueError, match="length"):
        make(images, labels, length=0)
    with pytest.raises(IndexError, match="30"):
        make(images, labels).images(0, 31)
    with pytest.raises(ValueError, match="min_side"):
        RandomView(0)
    with pytest.raises(ValueError, match="no corruption"):
        Segment("clean", None, 3)
    with pytest.raises(ValueError, match="unknown corruption"):
        Segment("mist", "mist", 3)
