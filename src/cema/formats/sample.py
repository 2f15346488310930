"""What travels upward: an encoded image and what the device knew about it.

A sample's identity is the SHA-256 of its encoded image, so that delivering it twice stores it once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from cema._util.checks import is_sha256
from cema.errors import FormatError
from cema.formats.image_check import Inspected, inspect_image

__all__ = [
    "CONTENT_TYPE",
    "Sample",
    "Verdict",
    "check_sample",
    "decode_samples",
    "encode_samples",
    "sample_id",
]

CONTENT_TYPE = "application/vnd.cema.samples+msgpack"
"""The media type of a frame of samples."""

_FORMAT = "cema.samples/1"
# What a store can hold: numbers beyond a signed 64-bit integer would be refused there, with worse manners.
_LABELS, _VERSIONS = 2**31, 2**63


class Sample(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One selected image and what the device knew about it.

    Attributes
    ----------
    id : str
        `sample_id` of `image`.
    image : bytes
        What `encode_image` returned.
    entropy : float
        The edge's prediction entropy, in nats.
    label : int
        The edge's predicted class.
    version : int
        The version of the norm state that predicted it; 0 is the one the device was provisioned with.
    captured_at : float
        Unix time in seconds, by the device's clock.
    """

    id: str
    image: bytes
    entropy: float
    label: int
    version: int
    captured_at: float


class Verdict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The cloud's answer about one sample.

    Attributes
    ----------
    id : str
        The sample's id.
    verdict : {"stored", "duplicate", "rejected"}
        ``stored`` and ``duplicate`` both mean that the cloud has it durably.
    reason : str, optional
        Why it was rejected.
    """

    id: str
    verdict: Literal["stored", "duplicate", "rejected"]
    reason: str | None = None


class _Frame(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: str
    samples: list[Sample]


_frame_decoder = msgspec.msgpack.Decoder(_Frame)
_frame_encoder = msgspec.msgpack.Encoder()


def sample_id(encoded: bytes) -> str:
    """Return the identity of an encoded image: the SHA-256 of its bytes in lowercase hex.

    Parameters
    ----------
    encoded : bytes
        What `encode_image` returned.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    return hashlib.sha256(encoded).hexdigest()


def encode_samples(samples: Sequence[Sample]) -> bytes:
    """Encode a frame of samples, the body of an upload.

    Parameters
    ----------
    samples : sequence of Sample
        May be empty.

    Returns
    -------
    bytes
        MessagePack: ``{"format": "cema.samples/1", "samples": [...]}``.
    """
    return _frame_encoder.encode(_Frame(format=_FORMAT, samples=list(samples)))


def decode_samples(data: bytes, *, max_samples: int = 1024) -> list[Sample]:
    """Decode a frame of samples.

    Only the frame is checked. Whether each sample keeps what it promises is `check_sample`'s to say, so that
    one bad sample gets a verdict of its own and the others are stored.

    Parameters
    ----------
    data : bytes
        What `encode_samples` returned.
    max_samples : int, default 1024
        Refuse frames with more samples than this.

    Returns
    -------
    list of Sample
        In the order of the frame.

    Raises
    ------
    FormatError
        If `data` is not such a frame.
    """
    try:
        frame = _frame_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(
            f"expected a {_FORMAT} frame in MessagePack, got {len(data)} bytes: {error}"
        ) from error
    if frame.format != _FORMAT:
        raise FormatError(f"expected the format {_FORMAT!r}, got {frame.format!r}: upgrade the older side")
    if len(frame.samples) > max_samples:
        raise FormatError(
            f"expected at most {max_samples} samples in a frame, got {len(frame.samples)}: send fewer"
        )
    return frame.samples


def check_sample(sample: Sample) -> Inspected:
    """Check that one sample keeps what it promises, as far as that can be seen without decoding its image.

    Parameters
    ----------
    sample : Sample
        A decoded sample.

    Returns
    -------
    Inspected
        What its image is, see `inspect_image`.

    Raises
    ------
    FormatError
        If its id is not the SHA-256 of its image, or a number is out of range: entropy and time must be
        finite and not negative, label and version not negative and below 2**31 and 2**63.
    ImageError
        If its image is none, by its header and structure.
    """
    if not is_sha256(sample.id):
        raise FormatError(f"expected an id of 64 lowercase hexadecimal digits, got {sample.id[:80]!r}")
    actual = sample_id(sample.image)
    if actual != sample.id:
        raise FormatError(
            f"the image hashes to {actual}, the sample says {sample.id}: it was damaged on its way"
        )
    # All together first: nearly every sample is as it should be. A NaN is in no range.
    if not (
        0 <= sample.entropy < math.inf
        and 0 <= sample.captured_at < math.inf
        and 0 <= sample.label < _LABELS
        and 0 <= sample.version < _VERSIONS
    ):
        raise _out_of_range(sample)
    return inspect_image(sample.image)


def _out_of_range(sample: Sample) -> FormatError:
    """Say which number of a sample is out of its range."""
    for name, value in (("entropy", sample.entropy), ("captured_at", sample.captured_at)):
        if not 0 <= value < math.inf:
            return FormatError(f"expected a finite {name} that is not negative, got {value}")
    name, number, limit = "label", sample.label, _LABELS
    if 0 <= number < limit:
        name, number, limit = "version", sample.version, _VERSIONS
    return FormatError(f"expected a {name} in 0..{limit - 1}, got {number}")
