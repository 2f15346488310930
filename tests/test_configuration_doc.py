"""``docs/reference`` is what the code says, and the examples of ``docs/configuration.md`` are accepted."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from msgspec import inspect

from cema._util.toml import load_toml
from cema.cloud.config import CloudConfig
from cema.cloud.events import EVENTS
from cema.cloud.http.metrics_list import METRICS
from cema.edge.config import EdgeConfig

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "configuration.md"
REFERENCE = ROOT / "docs" / "reference"
SCRIPT = ROOT / "scripts" / "reference.py"
FILES: dict[str, type[EdgeConfig] | type[CloudConfig]] = {"edge.toml": EdgeConfig, "cloud.toml": CloudConfig}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_what_the_code_says(script: ModuleType) -> None:
    made = script.pages()
    assert {path.name for path in REFERENCE.iterdir()} == made.keys()
    for name, text in made.items():
        assert (REFERENCE / name).read_text() == text, f"docs/reference/{name}: run scripts/reference.py"


def test_the_program_says_which_page_is_out_of_date(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    copy = tmp_path / "scripts" / "reference.py"
    copy.write_text(SCRIPT.read_text())

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(copy), *arguments]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)

    assert run().returncode == 0
    assert run("--check").returncode == 0
    page = tmp_path / "docs" / "reference" / "metrics.md"
    page.write_text(page.read_text().replace("gauge", "guage"))
    done = run("--check")
    assert (done.returncode, done.stderr.split()[0]) == (1, "docs/reference/metrics.md")


def keys(kind: inspect.Type, table: str = "") -> Iterator[tuple[str, str]]:
    """Yield table and key of everything that a structure may be given; found without the program's own code."""
    if isinstance(kind, inspect.UnionType):
        for inner in kind.types:
            yield from keys(inner, table)
    elif isinstance(kind, inspect.VarTupleType):
        yield from keys(kind.item_type, table)
    elif isinstance(kind, inspect.StructType):
        for field in kind.fields:
            inner_keys = list(keys(field.type, f"{table}.{field.encode_name}".strip(".")))
            yield from inner_keys or [(table, field.encode_name)]


@pytest.mark.parametrize("file", FILES)
def test_every_key_has_one_row_with_a_meaning(file: str) -> None:
    rows, table = [], ""
    for line in (REFERENCE / f"{file.removesuffix('.toml')}-configuration.md").read_text().splitlines():
        if line.startswith("## "):
            table = line.removeprefix("## ").strip("`[]").replace("Top level", "")
        elif line.startswith("| `"):
            key, kind, default, meaning = (cell.strip() for cell in line.strip("|").split(" | "))
            assert kind
            assert default
            assert meaning.endswith("."), line
            rows.append((table, key.strip("`")))
    assert len(rows) == len(set(rows))
    options = {row for row in rows if row[0] == "selection.options"}
    assert set(rows) - options == set(keys(inspect.type_info(FILES[file])))


def test_every_event_and_metric_has_its_row() -> None:
    events, metrics = ((REFERENCE / name).read_text() for name in ("log-events.md", "metrics.md"))
    for event in EVENTS.values():
        assert f"| `{event.name}` | " in events
        assert all(f"| `{name}` | {text} |" in events for name, text in event.fields.items())
    for metric in METRICS:
        assert f"`{metric.name}" in metrics


def part(file: str) -> str:
    (text,) = re.findall(
        rf"^## {re.escape(file)}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    return str(text)


@pytest.mark.parametrize("file", FILES)
def test_the_examples_are_accepted_together(file: str, tmp_path: Path) -> None:
    examples = re.findall(r"^```toml\n(.*?)^```", part(file), re.MULTILINE | re.DOTALL)
    assert examples
    (tmp_path / file).write_text("".join(examples))
    load_toml(tmp_path / file, FILES[file])


def test_the_tables_that_are_explained_exist() -> None:
    for file, struct in FILES.items():
        known = {table for table, _ in keys(inspect.type_info(struct))} | {"selection.options"}
        named = re.findall(r"^### `\[+([\w.]+)\]+`$", part(file), re.MULTILINE)
        assert named
        assert set(named) <= known
