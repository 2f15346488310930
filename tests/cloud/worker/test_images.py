"""Images of any size on their way into a batch."""

from __future__ import annotations

import numpy as np
import pytest
from cloud_support import samples_of
from worker_cloud import Cloud, drain

from cema.cloud.worker.images import read_image
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
