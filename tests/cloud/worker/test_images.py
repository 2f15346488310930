"""Images of any size on their way into a batch."""

from __future__ import annotations

import numpy as np
import pytest
from cloud_support import samples_of
from msgspec.structs import replace
from worker_cloud import Cloud, drain

from cema.cloud.store.base import StoredSample
from cema.cloud.worker import images as worker_images
from cema.cloud.worker.images import DecodedImages, read_image
from cema.formats.image import CodecConfig, encode_image
from cema.formats.sample import check_sample, sample_id


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
        image = kept.again(i, files[i])
        assert image is not None
        assert (image == i).all()
        assert not image.flags.writeable, "others get it too"
    assert decoded == files[:3]
    kept.again(3, files[3])  # no room: sample 0, which was not asked for longest, is let go
    kept.again(1, files[1])
    kept.again(0, files[0])
    assert decoded == [*files[:4], files[0]]
    assert kept.again(1, None) is None, "the store has evicted it"
    kept.again(1, files[1])
    assert decoded[-1] == files[1]
    assert kept.again(9, b"no image") is None


def test_what_cannot_be_decoded_is_none_and_named_with_its_device(caplog: pytest.LogCaptureFixture) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = encode_image(noise, CodecConfig(codec="jpeg"))
    broken = whole[:900] + whole[-2:]
    sent = [("a", whole), ("b", broken), ("a", broken), ("b", broken), ("b", whole)]
    samples = [
        StoredSample(i, "", image, 0.5, 0, 0, 1.0, 1.0, device) for i, (device, image) in enumerate(sent)
    ]
    images = DecodedImages(10**6).new(samples)
    assert [image is None for image in images] == [False, True, True, True, False]
    told = [record.getMessage() for record in caplog.records]
    assert [line.partition(" cannot")[0] for line in told] == [
        "2 samples of device 'b'",
        "1 samples of device 'a'",
    ]


def test_a_sample_damaged_inside_its_pixels_is_learned_from_by_nobody(cloud: Cloud) -> None:
    worker = cloud.open()
    noise = np.random.default_rng(4).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    good = samples_of(noise)
    large = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = encode_image(large, CodecConfig(codec="jpeg"))
    broken = whole[:900] + whole[-2:]
    sample = replace(good[0], image=broken, id=sample_id(broken))
    check_sample(sample)  # the cloud would store it
    cloud.store.put("north", [*good[:15], sample], device="d", now=cloud.now, max_backlog=10**6)
    drain(worker)
    assert cloud.counters()["worker.unreadable_samples"] == 1
    assert "worker.failed_steps" not in cloud.counters()
    assert cloud.store.backlog("north").samples == 0
