"""Images of one line and very many columns: few bytes, within every limit of pixels, and once gigabytes when scaled.

Stopped by `limits.image_aspect` at the cloud, and by cutting long images to their middle before they are scaled, in the
worker (for samples that an older version has stored) and on the device. REFUSED: an upload is `rejected`, and memory
grows by less than 256 MiB wherever such an image is looked at.

    python attacks/thin_image.py
"""

from __future__ import annotations

import sys
from functools import partial

import numpy as np

from _cloud import Service, sample_of, service
from _edge import PREPROCESSING, Device
from _parts import Memory, check, main
from cema.cloud.worker.images import most_pixels, read_image
from cema.formats.image import CodecConfig, encode_image
from cema.formats.sample import encode_samples
from cema.ondevice.batch import Batch
from cema.ondevice.preprocess import Preprocessing

PHOTOGRAPHS = Preprocessing(height=224, width=224, channels=3, mean=(127.0,) * 3, std=(64.0,) * 3)
MEBIBYTES = 256  # what any image of 16 million pixels may take while it is decoded


def thin(length: int, *, upright: bool = False) -> np.ndarray:
    return np.zeros((length, 1, 3) if upright else (1, length, 3), np.uint8)


def upload(cloud: Service, *, codec: str, length: int, upright: bool = False) -> None:
    image = encode_image(thin(length, upright=upright), CodecConfig(codec=codec))  # type: ignore[arg-type]
    memory = Memory()
    (verdict,) = cloud.post(encode_samples([sample_of(image)])).json()["verdicts"]
    memory.stays_below(MEBIBYTES)
    check(verdict["verdict"] == "rejected", f"the verdict is {verdict['verdict']}")
    cloud.takes_honest_samples()


def worker(_: Service, *, inputs: Preprocessing) -> None:
    """Look at such an image as the worker does, as if it had been stored."""
    image = encode_image(thin(8_000_000), CodecConfig(codec="raw"))
    memory = Memory()
    batch = Batch([read_image(image, most_pixels(inputs))]).inputs(inputs)
    memory.stays_below(MEBIBYTES)
    check(batch.shape == (1, 3, inputs.height, inputs.width), f"the input has the shape {batch.shape}")


def device(cloud: Service, *, upright: bool) -> None:
    """Let a device's own camera give such an image: it is predicted, and the cloud rejects it."""
    agent = Device(cloud.new_folder(), cloud.url, token=cloud.token).agent
    try:
        image = thin(4_000_000, upright=upright)
        memory = Memory()
        agent.predict([image])
        check(agent.flush(15), f"the device keeps the image for ever: {agent.status().last_error}")
        memory.stays_below(MEBIBYTES)
    finally:
        agent.close()


VARIANTS = {
    "upload-raw": partial(upload, codec="raw", length=15_000_000),
    "upload-png": partial(upload, codec="png", length=15_000_000),
    "upload-jpeg": partial(upload, codec="jpeg", length=65_500),
    "upload-upright": partial(upload, codec="raw", length=8_000_000, upright=True),
    "worker": partial(worker, inputs=PREPROCESSING),
    "worker-of-photographs": partial(worker, inputs=PHOTOGRAPHS),
    "device": partial(device, upright=False),
    "device-upright": partial(device, upright=True),
}

if __name__ == "__main__":
    sys.exit(main(VARIANTS, service, shared=True))
