"""The import rules of the architecture, read from the folders alone, and enforced on a running interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "cema"

# What each package may import of the others. `errors` and `_util` are open to all.
ONDEVICE = {"ondevice"}
FORMATS = ONDEVICE | {"formats"}
MODELS = FORMATS | {"models"}
ALLOWED = {
    "_util": set(),
    "ondevice": ONDEVICE,
    "formats": FORMATS,
    "edge": FORMATS | {"edge"},
    "models": MODELS,
    "export": MODELS | {"adapt", "export"},
    "data": ONDEVICE | {"data"},
    "recipes": ONDEVICE | {"models", "data", "recipes"},
    "adapt": MODELS | {"adapt"},
    "methods": MODELS | {"adapt", "methods"},
    "page": set(),
    "cloud": MODELS | {"adapt", "page", "cloud"},
    "bench": MODELS | {"adapt", "methods", "data", "page", "bench"},
    "testing": MODELS | {"adapt", "methods", "cloud", "data", "testing"},
    "provision": MODELS | {"cloud", "export", "provision"},
    "demo": MODELS | {"edge", "cloud", "data", "export", "page", "provision", "demo"},
}
OPEN = {"errors", "_util"}
# The command line calls everything; nothing calls it.
TOP = {"cli", "__main__", "__init__"}
TORCH_FREE = {"errors", "_util", "ondevice", "formats", "edge"}


@cache
def imports(path: Path) -> frozenset[str]:
    """Return the dotted names a file imports, those inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def package(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def dotted(path: Path) -> str:
    return ".".join(("cema", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


FILES = sorted(SOURCE.rglob("*.py"))


def test_every_folder_has_its_rule() -> None:
    folders = {p.name for p in SOURCE.iterdir() if p.is_dir() and any(p.glob("*.py"))}
    assert folders == ALLOWED.keys() | {"cli"}
    assert {p.stem for p in SOURCE.glob("*.py")} == {"errors", "__main__", "__init__"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_package_imports_only_what_it_may(path: Path) -> None:
    here = package(path)
    if here in TOP:
        return
    used = {name.split(".")[1] for name in imports(path) if name.startswith("cema.")}
    packages = {package(other) for other in FILES}
    assert used & packages <= ALLOWED.get(here, set()) | OPEN | {here}


def test_no_circle_between_packages_or_files() -> None:
    modules = {dotted(path): path for path in FILES}
    graph = {name: (imports(path) & modules.keys()) - {name, "cema"} for name, path in modules.items()}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError and names the circle
    folders = {package(path): set[str]() for path in FILES}
    for name, used in graph.items():
        here = package(modules[name])
        folders[here] |= {package(modules[other]) for other in used} - {here}
    assert list(TopologicalSorter(folders).static_order())


@pytest.mark.parametrize(
    "path", [p for p in FILES if package(p) in TORCH_FREE], ids=lambda p: str(p.relative_to(SOURCE))
)
def test_what_runs_on_a_device_never_imports_torch(path: Path) -> None:
    assert not {
        name for name in imports(path) if name.split(".")[0] in {"torch", "onnx", "fastapi", "pydantic"}
    }


def test_nobody_but_the_back_end_knows_what_the_store_is_kept_in() -> None:
    store = SOURCE / "cloud" / "store"
    for path in (SOURCE / "cloud").rglob("*.py"):
        if not (path.parent == store and path.name.startswith("sqlite")):
            assert "sqlite3" not in imports(path), path
        if path.parent != store:
            assert not [name for name in imports(path) if name.startswith("cema.cloud.store.sqlite")], path


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        ("from cema import EdgeAgent, Preprocessing", ("torch", "fastapi", "onnx", "pydantic")),
        ("from cema.adapt.config import AdaptConfig; AdaptConfig()", ("torch",)),
        ("import cema.cloud.http.app, cema.cloud.worker.supervisor", ("torch",)),
        ("import cema.cli.main, cema.cli.app", ("torch", "fastapi", "onnxruntime", "numpy")),
        (
            "import cema.edge; from cema import EdgeAgent",
            (
                "httpx2",
                "ssl",
                "email.utils",
                "difflib",
                "shutil",
                "tomllib",
                "cryptography",
                "PIL",
                "simplejpeg",
                "rich",
                "typer",
                "lazy_loader",
            ),
        ),
        ("import cema", ("torch", "onnxruntime", "numpy", "msgspec")),
    ],
)
def test_nothing_heavy_is_loaded(code: str, forbidden: tuple[str, ...]) -> None:
    code = f"import sys; {code}; print([m for m in {forbidden} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def private(path: Path) -> list[str]:
    """Return the uses of other objects' and other modules' underscored names in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            if ast.unparse(node.value) not in {"self", "cls", "os"}:
                found.append(f"{node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cema."):
            found += [
                f"{node.lineno}: {a.name}"
                for a in node.names
                if a.name.startswith("_") and a.name != "__version__"
            ]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_nothing_reaches_into_anothers_underscore(path: Path) -> None:
    assert not private(path)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_every_name_has_one_address(path: Path) -> None:
    tree = ast.parse(path.read_text())
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cema.")
        for alias in node.names
    }
    named = {
        ast.literal_eval(element)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        if isinstance(node.value, ast.List)
        for element in node.value.elts
    }
    assert not named & imported
