"""A selection rule of one's own, in one file: a share of the stream, those that the model is least sure of.

On a device, in edge.toml:

    [selection]
    rule = "examples/own_selector.py:LeastSure"
    options = { share = 0.1 }

In the benchmark, on the embedded digits:

    cema bench --data digits --methods cema --corruptions fog --samples 512 \
        --set cema.rule=examples/own_selector.py:LeastSure --set 'cema.options={"share": 0.1}'
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cema.errors import FormatError


class LeastSure:
    """Send what is less sure than the rest of the latest `memory` samples but for `share` of them."""

    def __init__(self, classes: int, *, share: float = 0.1, memory: int = 256) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share: expected a number in (0, 1], got {share}; 0.1 sends a tenth")
        self._share = share
        self._latest: deque[float] = deque(maxlen=memory)

    def select(
        self, logits: npt.NDArray[np.float32], entropy: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.bool_]:
        """Decide about one call's samples."""
        self._latest.extend(entropy.tolist())
        return entropy >= self._threshold()

    def _threshold(self) -> float:
        return float(np.quantile(self._latest, 1 - self._share)) if self._latest else 0.0

    def state(self) -> dict[str, Any]:
        """Return the latest entropies."""
        return {"latest": list(self._latest)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from the latest entropies."""
        if not isinstance(state.get("latest"), list):
            raise FormatError(f"expected a list of the latest entropies, got {state}; start a fresh selector")
        self._latest = deque(map(float, state["latest"]), maxlen=self._latest.maxlen)

    def describe(self) -> dict[str, float]:
        """Return the threshold, in nats."""
        return {"threshold": self._threshold()}
