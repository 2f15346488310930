"""The demo's settings are those of the benchmark's row, but for the window that was measured to be worse there."""

from __future__ import annotations

import tomllib
from typing import Any, Literal

import pytest

from cema.bench.hyperparameters import table_settings
from cema.provision.digits_settings import adapt_settings, edge_settings


@pytest.mark.parametrize("kind", ["batchnorm", "layernorm"])
def test_the_demo_adapts_as_the_benchmarks_row_does(kind: Literal["batchnorm", "layernorm"]) -> None:
    given: dict[str, Any] = tomllib.loads(adapt_settings(statistics=kind == "batchnorm"))
    row = table_settings("cema", "digits", kind, "short")
    adapt = {key: value for key, value in row["adapt"].items() if key != "window"}
    assert given["cohort"]["adapt"] == adapt
    assert {"adapt": row["adapt"], **tomllib.loads(edge_settings())} == row
