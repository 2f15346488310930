"""A small model's bundle with the graph that observes statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from edge_support import CHANNELS, CLASSES, PREPROCESSING, images, norm_state, onnx_bytes, reference

from cema.export.statistics_graph import SHARE_NAME, SOURCE_NAME, statistics_graph
from cema.formats.bundle import Bundle, BundleStatistics, norm_layout, write_bundle

EPS = {"bn0": 1e-5, "bn1": 1e-5}
TOTAL = sum(CHANNELS)


def some_statistics(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.normal(0, 0.5, TOTAL), rng.uniform(0.3, 3, TOTAL)]).astype(np.float32)


def without_source(graph: bytes) -> bytes:
    """Return a graph as it was made before a share of the source model's statistics could be mixed in."""
    proto = onnx.load_from_string(graph)
    kept = [value for value in proto.graph.input if value.name not in {SOURCE_NAME, SHARE_NAME}]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    data: bytes = proto.SerializeToString()
    return data


def observing_bundle(path: Path, key: Ed25519PrivateKey, *, old: bool = False) -> Bundle:
    """Write the small model of the other tests, with its norm state taken for folded."""
    state, golden = norm_state(), images(4, seed=99)
    layout, model = norm_layout(state), onnx_bytes(state)
    graph, layers = statistics_graph(model, layout, EPS)
    graph = without_source(graph) if old else graph
    return write_bundle(
        path,
        model="small",
        model_bytes=model,
        norm_state=state,
        norm=layout,
        statistics=BundleStatistics(layers, graph, some_statistics()),
        golden_images=golden,
        golden_logits=reference(state, golden).astype(np.float32),
        preprocessing=PREPROCESSING,
        classes=CLASSES,
        input_name="input",
        output_name="logits",
        created_by="tests",
        public_keys=[key.public_key()],
    )
