"""Every row of the benchmark passes the suite that a stranger runs on his own."""

from __future__ import annotations

from typing import Any

from cema.methods.registry import METHODS
from cema.testing.methods import MethodSuite

# Rates and margins at which a few images of noise teach something.
ETA: dict[str, Any] = {"lr": 0.05, "e_margin": 0.99, "d_margin": 0.99}
CEMA = {"e_min": 0.0, "e_max": 1.0, "adapt": {"fresh": 4, "replayed": 4, "replay_from": 8}}
SETTINGS: dict[str, dict[str, Any]] = {
    "pl": {"lr": 0.05},
    "tent": {"lr": 0.05},
    "cotta": {"lr": 0.05, "flip": 0.0},
    "eta": ETA,
    "eata": {**ETA, "fisher_alpha": 1.0, "fisher_batch": 4},
    "sar": {"lr": 0.05, "e_margin": 0.99},
    "deyo": {"lr": 0.05, "e_margin": 0.99, "plpd_margin": -0.1},
    "tent-come": {"lr": 0.05},
    # An opinion of four classes may have an entropy of ln 5.
    "eata-come": {**ETA, "e_margin": 1.1, "fisher_alpha": 1.0, "fisher_batch": 4},
    "rdumb": {**ETA, "reset_every": 2},
    "rotta": {"lr": 0.05, "every": 4, "flip": 0.0},
    "roid": {"lr": 0.05},
    "cmf": {"lr": 0.05},
    "cema": CEMA,
    "cema-reference": CEMA,
}

for name in METHODS:
    title = "Test" + name.title().replace("-", "")
    members = {"__test__": True, "method": name, "settings": SETTINGS.get(name, {})}
    globals()[title] = type(title, (MethodSuite,), members)
