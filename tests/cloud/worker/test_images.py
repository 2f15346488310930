"""Images of any size on their way into a batch."""

from __future__ import annotations

import numpy as np
import pytest
from cloud_support import samples_of
from worker_cloud import Cloud, drain

from cema.cloud.worker import images as worker_images
from cema.cloud.worker.images import DecodedImages, read_image
from cema.formats.image import CodecConfig, encode_image


@pytest.mark.parametrize("shape", [(1, 3_000_000), (2_000, 1_500), (3_000_000, 1)])
def test_a_large_image_is_scaled_down_and_a_small_one_is_not(shape: tuple[int, int]) -> None:
    data = encode_image(np.full((*shape, 1), 7, np.uint8), CodecConfig(codec="raw"))
    image = read_image(data, 1_000_000)
    assert image.shape[0] * image.shape[1] <= 1_000_000
    assert (image == 7).all()
    assert read_image(data, 3_000_000).shape[:2] == shape


def test_thin_images_that_were_stored_before_there_was_a_limit_cost_nothing(cloud: Cloud) -> None:
    worker = cloud.open()
    cloud.send(30)
    thin = [np.zeros((1, 5_000_000, 3), np.uint8), np.zeros((5_000_000, 1, 1), np.uint8)]
    cloud.store.put("north", samples_of(thin), device="d", now=cloud.now, max_backlog=10**6)
    assert drain(worker) == 2
    assert cloud.counters()["worker.fresh_steps"] == 2
    assert "worker.failed_samples" not in cloud.counters()


def test_an_image_that_comes_again_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []

    def count(data: bytes, most: int) -> np.ndarray:
        decoded.append(data)
        return read_image(data, most)

    monkeypatch.setattr(worker_images, "read_image", count)
    files = [encode_image(np.full((4, 5, 3), i, np.uint8), CodecConfig(codec="png")) for i in range(4)]
    kept = DecodedImages(1000, most_bytes=3 * 4 * 5 * 3)
    for i in (0, 1, 2, 0, 1, 2):
        image = kept.get(i, files[i])
        assert image is not None
        assert (image == i).all()
        assert not image.flags.writeable, "others get it too"
    assert decoded == files[:3]
    kept.get(3, files[3])  # no room: sample 0, which was not asked for longest, is let go
    kept.get(1, files[1])
    kept.get(0, files[0])
    assert decoded == [*files[:4], files[0]]
    assert kept.get(1, None) is None, "the store has evicted it"
    kept.get(1, files[1])
    assert decoded[-1] == files[1]
    assert kept.get(9, b"no image") is None
