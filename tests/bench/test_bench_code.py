"""Which rows have to be measured again after a change of the code."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import cema
from cema.adapt.methods import METHODS
from cema.bench.code import code_digest, source_files

ROOT = Path(cema.__file__).parent


def of_adapt(method: str) -> set[str]:
    return {path.stem for path in source_files(method, ROOT) if path.parent.name == "adapt"}


def test_a_method_depends_on_what_it_imports_and_on_no_other_method() -> None:
    assert {"tent", "_online", "_copy", "norm", "losses", "adapter", "_checks"} <= of_adapt("tent")
    assert not of_adapt("tent") & {"cotta", "cotta_views", "eta", "sar", "cema_stream", "cema", "methods"}
    assert {"eata", "eta", "redundancy"} <= of_adapt("eata")
    assert {"cema_stream", "cema", "replay", "surroundings", "statistics", "_state"} <= of_adapt("cema")


def test_every_run_depends_on_data_models_and_scoring() -> None:
    for method in METHODS:
        names = {path.relative_to(ROOT).as_posix() for path in source_files(method, ROOT)}
        assert {"data/corruptions.py", "models/cifar.py", "sample.py", "bench/execute.py"} <= names


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ("adapt/cotta_views.py", {"cotta"}),
        ("adapt/eta.py", {"eta", "eata"}),
        ("adapt/cema_stream.py", {"cema", "cema-reference"}),
        ("adapt/norm.py", set(METHODS)),
        ("bench/protocols.py", set(METHODS)),
        ("bench/tables.py", set()),
        ("adapt/my_own_method.py", set()),
    ],
)
def test_a_change_makes_those_rows_new_that_it_concerns(
    changed: str, again: set[str], tmp_path: Path
) -> None:
    root = tmp_path / "cema"
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors", "*.npz"))
    before = {method: code_digest(method, root) for method in METHODS}
    with (root / changed).open("a") as file:
        file.write("# changed\n")
    code_digest.cache_clear()
    after = {method: code_digest(method, root) for method in METHODS}
    assert {method for method in METHODS if before[method] != after[method]} == again
    code_digest.cache_clear()
