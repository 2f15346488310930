"""Bundles whose graphs nobody runs: three layers, of which the first and the last have statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cema.formats.bundle import Bundle, BundleStatistics, write_bundle
from cema.ondevice.folding import StatisticsLayer
from cema.ondevice.preprocess import Preprocessing

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32))).public_key()
PREPROCESSING = Preprocessing(height=8, width=8, channels=3, mean=(127.0,) * 3, std=(128.0,) * 3)
SIZES = {"bn0": 3, "bn1": 8, "bn2": 13}
LAYERS = tuple(
    StatisticsLayer(layer=name, size=SIZES[name], eps=eps) for name, eps in (("bn2", 1e-3), ("bn0", 1e-5))
)
GRAPH = b"not a graph that observes"


def norm_state(seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {
        f"{name}.{part}": rng.normal(size=size).astype(np.float32)
        for name, size in SIZES.items()
        for part in ("scale", "shift")
    }


def statistics(seed: int = 5) -> npt.NDArray[np.float64]:
    """Return means and variances of `LAYERS`, in their order, exact in float32."""
    rng = np.random.default_rng(seed)
    total = sum(layer.size for layer in LAYERS)
    values = np.stack([rng.normal(size=total), rng.uniform(0.1, 4, total)])
    return values.astype(np.float32).astype(np.float64)


def write(path: Path, **changes: Any) -> Bundle:
    rng = np.random.default_rng(1)
    arguments = {
        "model": "test",
        "model_bytes": b"not really a graph",
        "norm_state": norm_state(),
        "golden_images": rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8),
        "golden_logits": rng.normal(size=(2, 5)).astype(np.float32),
        "preprocessing": PREPROCESSING,
        "classes": 5,
        "input_name": "images",
        "output_name": "logits",
        "created_by": "a test",
        "public_keys": [KEY],
        "labels": ["a", "b", "c", "d", "e"],
        "upload_side": 8,
    }
    return write_bundle(path, **(arguments | changes))


def write_with_statistics(
    path: Path,
    *,
    layers: tuple[StatisticsLayer, ...] = LAYERS,
    graph: bytes = GRAPH,
    source: npt.NDArray[Any] | None = None,
    **changes: Any,
) -> Bundle:
    source = statistics() if source is None else source
    return write(path, statistics=BundleStatistics(layers, graph, source), **changes)
