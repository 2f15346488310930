"""Which rows have to be measured again after a change of the code."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import cema
from cema.bench.code_digest import code_digest, source_files
from cema.methods.registry import METHODS

ROOT = Path(cema.__file__).parent


def files(method: str) -> set[str]:
    return {path.relative_to(ROOT).with_suffix("").as_posix() for path in source_files(method, ROOT)}


def test_a_method_depends_on_what_it_imports_and_on_no_other_method() -> None:
    tent = files("tent")
    assert {"methods/tent", "methods/online", "methods/base", "_util/checks"} <= tent
    assert {"adapt/adaptable", "adapt/norm", "adapt/losses", "adapt/optimizers"} <= tent
    others = {"cotta", "cotta_views", "eta", "sar", "cema", "registry"}
    assert not tent & {"adapt/learner", *(f"methods/{name}" for name in others)}
    assert {"methods/eata", "methods/eta"} <= files("eata")
    learner = {"learner", "replay", "changes", "statistics", "checkpoint"}
    assert {"methods/cema", *(f"adapt/{name}" for name in learner)} <= files("cema")


def test_every_run_depends_on_data_models_and_scoring() -> None:
    for method in METHODS:
        names = {path.relative_to(ROOT).as_posix() for path in source_files(method, ROOT)}
        assert {"data/corruptions.py", "models/cifar.py", "formats/sample.py", "bench/execute.py"} <= names


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ("methods/cotta_views.py", {"cotta", "rotta", "roid", "cmf"}),
        ("methods/eta.py", {"eta", "eata", "eata-come", "rdumb"}),
        ("methods/roid.py", {"roid", "cmf"}),
        ("methods/cema.py", {"cema", "cema-paper", "cema-reference"}),
        ("adapt/norm.py", set(METHODS)),
        ("bench/protocols.py", set(METHODS)),
        ("bench/standard_error.py", set(METHODS)),
        ("bench/tables.py", set()),
        ("methods/my_own_method.py", set()),
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
