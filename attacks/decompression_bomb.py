"""Images that inflate to far more than they seem to be, and images whose header lies, sent to the cloud.

Stopped by the header's check before anything of its size is allocated, by comparing the compressed bytes with what the
header says, by limits of chunks and scans, by inflating to exactly the bytes of the header, and by
`limits.image_pixels`. REFUSED: the sample is `rejected` (or, of a PNG with more behind its pixels, no more is read, by
the worker neither), a good one in the same frame is stored, and memory grows by less than 64 MiB.

    python attacks/decompression_bomb.py
"""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Callable
from functools import cache, partial

import numpy as np
from PIL import Image

from _cloud import Service, make_samples, sample_of, service
from _edge import PREPROCESSING
from _parts import Memory, check, main
from cema.cloud.worker.images import DecodedImages, most_pixels
from cema.formats.image import CodecConfig, encode_image
from cema.formats.sample import encode_samples

BOMB = 2**28


@cache
def deflated() -> bytes:
    """Return a zlib stream of a quarter of a gigabyte of zeros, made without holding them."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(BOMB // 2**20)) + packer.flush()


def raw(height: int, width: int, stream: bytes) -> bytes:
    return struct.pack("<4sIIB", b"CEMZ", height, width, 1) + stream


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(height: int, width: int, pixels: bytes, *more: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg(height: int, width: int) -> bytes:
    """Return a small JPEG whose frame header says another size."""
    data = bytearray(encode_image(np.zeros((8, 8, 1), np.uint8), CodecConfig(codec="jpeg")))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def attack(cloud: Service, *, bomb: Callable[[], bytes], harmless: bool = False) -> None:
    """Send a bomb beside a good sample; a harmless one may be stored: no more than its header says is read of it."""
    image = bomb()
    check(len(image) < 2**21, "the bomb itself is large")
    memory = Memory()
    good = make_samples(1, seed=zlib.crc32(image))
    response = cloud.post(encode_samples([sample_of(image), *good]))
    memory.stays_below(64)
    check(response.status_code == 200, f"the frame is answered {response.status_code}")
    verdicts = [verdict["verdict"] for verdict in response.json()["verdicts"]]
    check(verdicts[1] == "stored" and (harmless or verdicts[0] == "rejected"), f"the verdicts are {verdicts}")
    if verdicts[0] == "stored":
        DecodedImages(most_pixels(PREPROCESSING)).again(1, image)  # as the worker reads it
        memory.stays_below(64)
    cloud.takes_honest_samples()


def jpeg_of_scans(count: int) -> bytes:
    """Return a progressive JPEG whose last scan comes again and again: each is a pass over 4 million pixels."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((2000, 2000), np.uint8)).save(buffer, format="JPEG", progressive=True)
    data = buffer.getvalue()
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + data[-2:]


SMALL = zlib.compress(bytes(64 * 65))
BOMBS: dict[str, Callable[[], bytes]] = {
    "raw-inflates-beyond-its-header": lambda: raw(64, 64, deflated()),
    "raw-of-a-gigapixel": lambda: raw(2**15, 2**15, deflated()),
    "raw-header-of-16-exabytes": lambda: raw(2**32 - 1, 2**32 - 1, SMALL),
    "raw-header-within-the-limit": lambda: raw(4000, 4000, SMALL),
    "raw-header-of-no-pixels": lambda: raw(0, 2**31, SMALL),
    "png-inflates-beyond-its-header": lambda: png(64, 64, deflated()),
    "png-of-a-gigapixel": lambda: png(2**15, 2**15, deflated()),
    "png-header-of-4-exabytes": lambda: png(2**31 - 1, 2**31 - 1, SMALL),
    "png-header-within-the-limit": lambda: png(4000, 4000, SMALL),
    "png-text-of-256-mebibytes": lambda: png(64, 64, SMALL, chunk(b"zTXt", b"a\0\0" + deflated())),
    "png-profile-of-256-mebibytes": lambda: png(64, 64, SMALL, chunk(b"iCCP", b"a\0\0" + deflated())),
    "png-two-headers": lambda: png(
        64, 64, SMALL, chunk(b"IHDR", struct.pack(">IIBBBBB", 2**15, 2**15, 8, 0, 0, 0, 0))
    ),
    "png-of-90000-chunks": lambda: png(64, 64, SMALL, chunk(b"tEXt", b"a\0") * 90_000),
    "jpeg-header-of-four-gigapixels": lambda: jpeg(65_500, 65_500),
    "jpeg-header-within-the-limit": lambda: jpeg(4000, 4000),
    "jpeg-of-a-thousand-scans": lambda: jpeg_of_scans(1000),
}
VARIANTS = {name: partial(attack, bomb=bomb, harmless="png-inflates" in name) for name, bomb in BOMBS.items()}

if __name__ == "__main__":
    sys.exit(main(VARIANTS, service, shared=True))
