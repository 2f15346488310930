"""What `cema export` says of a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from cema.cli.export import export
from cema.formats.keys import generate_key


def test_normalisation_that_does_not_adapt_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate_key(tmp_path / "signing.key")
    keys = [tmp_path / "signing.pub"]
    export(tmp_path / "bundle", "brought_models:own_response_norm", keys)
    said = capsys.readouterr().out
    assert "norm state        1 layers" in said
    assert "not adapted       1 layer: 3 (ResponseNorm)" in said
    export(tmp_path / "second", "brought_models:mixed", keys)
    assert "not adapted" not in capsys.readouterr().out
