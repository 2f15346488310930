"""What users import comes from `cema` itself and stays there when files move."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

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


def test_what_type_checkers_read_names_the_same_places() -> None:
    stub = ast.parse((Path(cema.__file__).with_suffix(".pyi")).read_text())
    places = {
        alias.name: f"cema.{node.module}"
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert places.keys() == PUBLIC
    for name in PUBLIC - {"__version__"}:
        assert getattr(cema, name).__module__ == places[name]


def test_a_name_that_is_none_is_an_attribute_error() -> None:
    assert dir(cema) == sorted(PUBLIC)
    with pytest.raises(AttributeError, match="EdgeAgnet"):
        _ = cema.EdgeAgnet  # type: ignore[attr-defined]
