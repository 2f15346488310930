"""Another bundle for a device of the edge's tests, and the cloud's offer of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from edge_support import (
    CLASSES,
    COHORT,
    PREPROCESSING,
    SIDE,
    Cloud,
    images,
    norm_state,
    onnx_bytes,
    reference,
)

from cema.formats.bundle import Bundle, write_bundle
from cema.formats.bundle_notice import NOTICE_FORMAT, BundleNotice, list_files, sign_notice

__all__ = ["LABELS", "answers", "make_other_bundle", "offer", "predicted_by"]

LABELS = tuple(f"class {i}" for i in range(CLASSES))


def make_other_bundle(path: Path, key: Ed25519PrivateKey, *, number: int = 1, **changes: Any) -> Bundle:
    """The same architecture with another norm state, under a graph that differs in its name alone."""
    state, golden = norm_state(seed=50 + number), images(4, seed=99)
    graph = onnx.load_from_string(onnx_bytes(state))
    graph.graph.name = f"other {number}"
    given: dict[str, Any] = {
        "model": f"other {number}", "model_bytes": graph.SerializeToString(), "norm_state": state,
        "golden_images": golden, "golden_logits": reference(state, golden).astype(np.float32),
        "preprocessing": PREPROCESSING, "classes": CLASSES, "labels": LABELS, "input_name": "input",
        "output_name": "logits", "created_by": "tests", "public_keys": [key.public_key()], "upload_side": SIDE,
    }  # fmt: skip
    return write_bundle(path, **(given | changes))


def offer(
    cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey, *, serial: int = 1, **changes: Any
) -> BundleNotice:
    """Let a cloud say that devices are to have a bundle."""
    fields: dict[str, Any] = {
        "base": bundle.manifest.base,
        "cohort": COHORT,
        "created": int(time.time()),
        "expires": int(time.time()) + 3600,
        "files": list_files(bundle),
        "format": NOTICE_FORMAT,
        "serial": serial,
    }
    notice = BundleNotice(**(fields | changes))
    cloud.bundle_files = {file.sha256: (bundle.path / file.name).read_bytes() for file in list_files(bundle)}
    cloud.notice = notice.base, sign_notice(notice, key)
    return notice


def answers(bundle: Bundle, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The logits that a bundle's own norm state gives, by the twin in NumPy."""
    return reference(bundle.norm_state(), pixels)


def predicted_by(prediction: Any, bundle: Bundle, pixels: npt.NDArray[np.uint8]) -> bool:
    """Tell whether a prediction is that of a bundle's own model, by its logits and by what it says."""
    same = np.allclose(prediction.logits, answers(bundle, pixels), rtol=1e-3, atol=1e-3)
    said = (prediction.base, prediction.class_names) == (bundle.manifest.base, bundle.manifest.labels)
    assert same == said
    return bool(same)
