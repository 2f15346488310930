"""What schemathesis sends as an upload: good frames, frames with one wrong place, and any bytes.

Loaded by the program through ``SCHEMATHESIS_HOOKS``: the document says only that the body is binary.
"""

from __future__ import annotations

import schemathesis
from cloud_support import make_samples
from hypothesis import strategies as st

from cema.formats.sample import CONTENT_TYPE, encode_samples


def spoil(frame: bytes, place: int, put: bytes) -> bytes:
    """Replace one byte of a frame by none, one or some."""
    at = place % len(frame)
    return frame[:at] + put + frame[at + 1 :]


FRAMES = st.builds(
    lambda count, seed: encode_samples(make_samples(count, seed)), st.integers(0, 10), st.integers(0, 20)
)
SPOILT = st.builds(spoil, FRAMES, st.integers(0, 4000), st.binary(max_size=3))
schemathesis.openapi.media_type(CONTENT_TYPE, st.one_of(FRAMES, SPOILT, st.binary(max_size=200)))
