"""The import rules of the architecture, enforced on the source and on a running interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "cema"

# What each room may import of the project beside itself; a room that is not named here may import the formats only.
FORMATS = {
    *("bundle", "config", "criteria", "environment", "errors", "keys", "preprocess", "sample", "update"),
    *("_bundle_format", "_codec", "_files", "_payload", "_version"),
}
ALLOWED = {
    "edge": FORMATS,
    "models": FORMATS | {"norms"},
    "data": FORMATS,
    "norms": FORMATS,
    "export": FORMATS | {"_onnx_graph", "models", "norms"},
    "train": FORMATS | {"models", "data"},
    "adapt": FORMATS | {"models", "norms"},
    "cloud": FORMATS | {"adapt", "models", "norms"},
    "bench": FORMATS | {"adapt", "data", "models", "norms"},
    "demo": FORMATS | {"edge", "cloud", "data", "models", "export"},
}
TORCH_FREE = {*FORMATS, "edge"}


def imports(path: Path) -> set[str]:
    """Return the dotted names a file imports, those inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    here = room(path)
    if here in {"cli", "__init__", "__main__"}:
        return
    rooms = {p.name.removesuffix(".py") for p in SOURCE.iterdir() if p.name != "__init__.py"}
    used = {name.split(".")[1] for name in imports(path) if name.startswith("cema.")} & rooms
    assert used <= ALLOWED.get(here, FORMATS) | {here}


@pytest.mark.parametrize("path", [p for p in FILES if room(p) in TORCH_FREE], ids=lambda p: p.name)
def test_what_runs_on_a_device_never_imports_torch(path: Path) -> None:
    assert not {
        name for name in imports(path) if name.split(".")[0] in {"torch", "onnx", "fastapi", "pydantic"}
    }


def test_importing_the_edge_loads_no_torch() -> None:
    code = "import sys, cema.edge; print([m for m in ('torch', 'fastapi', 'onnx', 'pydantic') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_settings_of_the_algorithm_load_no_torch() -> None:
    code = "import sys; from cema.adapt import AdaptConfig; AdaptConfig(); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_the_command_line_starts_without_heavy_imports() -> None:
    code = "import sys, cema.cli; print([m for m in ('torch', 'fastapi', 'onnxruntime', 'numpy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
