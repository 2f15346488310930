"""The samples and updates that the tests of a store are made of."""

from __future__ import annotations

import hashlib

from cema.cloud.store.base import PublishedUpdate
from cema.formats.sample import Sample

__all__ = ["numbered_sample", "numbered_update"]


def numbered_sample(number: int, size: int = 64) -> Sample:
    """Return the sample of a number: another number or size, another image.

    Parameters
    ----------
    number
        0 and up.
    size
        Bytes of the image, rounded down to a multiple of 8. A store never decodes it: it is no image that could be.

    Examples
    --------
    >>> numbered_sample(3).id == numbered_sample(3).id != numbered_sample(4).id
    True
    """
    image = number.to_bytes(8, "little") * (size // 8)
    digest = hashlib.sha256(image).hexdigest()
    return Sample(id=digest, image=image, entropy=0.25, label=number % 4, version=2, captured_at=1e9 + number)


def numbered_update(version: int, payload: bytes | None = None) -> PublishedUpdate:
    """Return an update of a version, with a payload of its own unless one is given.

    Examples
    --------
    >>> numbered_update(3).payload
    b'payload 3'
    """
    payload = b"payload %d" % version if payload is None else payload
    digest = hashlib.sha256(payload).hexdigest()
    return PublishedUpdate(version, digest, b"envelope %d" % version, payload, float(version), 1e12)
