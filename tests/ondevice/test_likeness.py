"""How alike two images are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cema.data.digits import load_digits
from cema.errors import ImageError
from cema.ondevice.likeness import SIGNATURE_BYTES, likeness_distances, likeness_signature


def test_the_luma_is_what_counts() -> None:
    colour = np.zeros((32, 48, 3), np.uint8)
    colour[:, :24] = (200, 100, 50)
    signature = likeness_signature(colour).reshape(16, 16)
    assert set(signature[:, :7].ravel()) == {round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)}
    assert not signature[:, 9:].any()
    grey = np.full((20, 20, 1), 77, np.uint8)
    np.testing.assert_array_equal(likeness_signature(grey), np.full(SIGNATURE_BYTES, 77, np.uint8))


@given(st.integers(0, 2**32 - 1))
def test_a_distance_is_one(seed: int) -> None:
    a, b, c = np.random.default_rng(seed).integers(0, 256, (3, SIGNATURE_BYTES), dtype=np.uint8)
    to_b, to_c = likeness_distances(a, np.stack([b, c]))
    assert likeness_distances(a, a[None])[0] == 0
    assert to_b == likeness_distances(b, a[None])[0]
    assert to_c <= to_b + likeness_distances(b, c[None])[0] + 1e-3
    expected = np.sqrt(np.mean((a.astype(np.float64) - b) ** 2))
    assert to_b == pytest.approx(expected, rel=1e-5)


def test_noise_is_near_and_other_digits_are_not() -> None:
    images = load_digits().test_images[:300].reshape(300, 32, 32, 1)
    signatures = np.stack([likeness_signature(image) for image in images])
    nearest = [
        likeness_distances(signature, np.delete(signatures, i, axis=0)).min()
        for i, signature in enumerate(signatures)
    ]
    assert min(nearest) > 4
    noise = np.random.default_rng(0).normal(0, 5, images.shape)
    noisy = np.clip(images + noise, 0, 255).astype(np.uint8)
    moved = [
        likeness_distances(signature, likeness_signature(image)[None])[0]
        for signature, image in zip(signatures, noisy, strict=True)
    ]
    assert max(moved) < 4


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(ImageError):
        likeness_signature(np.zeros((4, 4), np.uint8))
