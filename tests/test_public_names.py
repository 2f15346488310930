"""What users import comes from `cema` itself and stays there when files move."""

from __future__ import annotations

import cema

PUBLIC = {
    "EdgeAgent",
    "EdgeConfig",
    "EdgeStatus",
    "Model",
    "Prediction",
    "Preprocessing",
    "__version__",
    *("DatasetReader", "Learner", "Selector", "Store", "export_bundle", "method"),
}


def test_the_public_names() -> None:
    assert set(cema.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(cema, name) is not None
