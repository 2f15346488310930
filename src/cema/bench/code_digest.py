"""Which source files a method's numbers come from, so that a change of one method leaves the other rows finished."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

import cema
from cema.methods.base import Method
from cema.methods.registry import METHODS

__all__ = ["code_digest", "source_files"]

# What every run goes through; beside it, a run goes through what its method imports of `methods` and `adapt`.
_COMMON = (
    "data",
    "models",
    "ondevice",
    "formats",
    "methods/base.py",
    "bench/execute.py",
    "bench/protocols.py",
    "bench/standard_error.py",
)
_FOLLOWED = ("adapt", "methods", "_util")


@cache
def code_digest(method: str, root: Path | None = None) -> str:
    """Return the hex SHA-256 of the source files that make a method's numbers, and of the version of torch.

    Parameters
    ----------
    method : str
        As `cema.methods.registry.METHODS` takes it.
    root : Path, optional
        The package's folder; by default the one that runs.
    """
    root = root or Path(cema.__file__).parent
    digest = hashlib.sha256(torch.__version__.encode())
    for path in source_files(method, root):
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def source_files(method: str, root: Path) -> list[Path]:
    """Return the files that `code_digest` reads, sorted: all of `_COMMON`, and what the method imports."""
    files: set[Path] = set()
    for name in _COMMON:
        path = root / name
        files.update(path.rglob("*.py") if path.is_dir() else [path])
    waiting = [_home(METHODS[method], root)]
    while waiting:
        path = waiting.pop()
        if path not in files:
            files.add(path)
            waiting += _followed(path, root)
    return sorted(files)


def _home(method: Method, root: Path) -> Path:
    """Return the file of a method's class, in the package or outside."""
    module = method.adapter.__module__
    if module.startswith("cema."):
        return _file(module, root)
    return Path(str(sys.modules[module].__file__))


def _file(module: str, root: Path) -> Path:
    return root.joinpath(*module.split(".")[1:]).with_suffix(".py")


def _followed(path: Path, root: Path) -> Iterator[Path]:
    """Yield the modules of the followed packages that a file imports, wherever in its text."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cema."):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            files = (_file(name, root) for name in names if name.split(".")[1] in _FOLLOWED)
            yield from (file for file in files if file.exists())
