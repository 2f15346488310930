"""Which source files a method's numbers come from, so that a change of one method leaves the other rows finished."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

import cema
from cema.adapt.methods import METHODS

__all__ = ["code_digest", "source_files"]

# What every run goes through; of `adapt`, a run goes through what its method imports.
_COMMON = (
    *("data", "models", "_codec.py", "_payload.py", "criteria.py", "environment.py"),
    *("norms.py", "preprocess.py", "sample.py", "update.py"),
    *("adapt/adapter.py", "bench/execute.py", "bench/protocols.py"),
)
_ADAPT = "cema.adapt"


@cache
def code_digest(method: str, root: Path | None = None) -> str:
    """Return the hex SHA-256 of the source files that make a method's numbers, and of the version of torch.

    Parameters
    ----------
    method : str
        A key of `cema.adapt.methods.METHODS`.
    root : Path, optional
        The package's folder; by default the one that runs.
    """
    root = root or Path(cema.__file__).parent
    digest = hashlib.sha256(torch.__version__.encode())
    for path in source_files(method, root):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def source_files(method: str, root: Path) -> list[Path]:
    """Return the files that `code_digest` reads, sorted: all of data and models, and what the method imports."""
    files: set[Path] = set()
    for name in _COMMON:
        path = root / name
        files.update(path.rglob("*.py") if path.is_dir() else [path])
    module = METHODS[method].adapter.__module__
    waiting = [root / "adapt" / f"{module.removeprefix(_ADAPT + '.')}.py"]
    while waiting:
        path = waiting.pop()
        if path not in files:
            files.add(path)
            waiting += _siblings(path)
    return sorted(files)


def _siblings(path: Path) -> Iterator[Path]:
    """Yield the modules of `adapt` that one of them imports, wherever in its text."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.module == _ADAPT:
            names = [alias.name for alias in node.names]
        elif node.module and node.module.startswith(_ADAPT + "."):
            names = [node.module.removeprefix(_ADAPT + ".")]
        else:
            continue
        yield from (found for name in names if (found := path.with_name(f"{name}.py")).exists())
