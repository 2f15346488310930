"""``docs/configuration.md`` lists every key of both configuration files, each with its default."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from cema._util.toml import load_toml
from cema.cloud.config import CloudConfig
from cema.edge.config import EdgeConfig
from cema.ondevice.selection.budget_options import BudgetOptions

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
TOP = "Top level"
FILES: dict[str, type[EdgeConfig] | type[CloudConfig]] = {"edge.toml": EdgeConfig, "cloud.toml": CloudConfig}
# Tables whose keys depend on another setting.
OPTIONS: dict[str, dict[str, type[BudgetOptions]]] = {"edge.toml": {"[selection.options]": BudgetOptions}}
Rows = dict[tuple[str, str], str]


def section(field: inspect.Field, prefix: str) -> tuple[inspect.StructType, str] | None:
    """Return what a key that is a table of its own holds, and that table's name in TOML; None for other keys."""
    kind = field.type
    options = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    for option in options:
        if isinstance(option, inspect.StructType):
            return option, f"[{prefix}{field.encode_name}]"
        if isinstance(option, inspect.VarTupleType) and isinstance(option.item_type, inspect.StructType):
            return option.item_type, f"[[{prefix}{field.encode_name}]]"
    return None


def written(field: inspect.Field) -> str:
    """Return a key's default as the page has it."""
    if field.required:
        return "required"
    default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if default is None:
        return "none"
    return f"`{default}`" if isinstance(default, dict) else f"`{msgspec.json.encode(default).decode()}`"


def keys(struct: inspect.StructType, table: str = TOP, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield table, key and default of everything that a structure may be given, in its order."""
    for field in struct.fields:
        inner = section(field, prefix)
        if inner is None:
            yield table, field.encode_name, written(field)
        else:
            yield from keys(*inner, prefix=f"{prefix}{field.encode_name}.")


def expected(file: str) -> Rows:
    rows: Rows = {}
    for table, kind in {TOP: FILES[file], **OPTIONS.get(file, {})}.items():
        struct = inspect.type_info(kind)
        assert isinstance(struct, inspect.StructType)
        rows |= {(where, key): default for where, key, default in keys(struct, table)}
    return rows


def part(file: str) -> str:
    (text,) = re.findall(
        rf"^## {re.escape(file)}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    return str(text)


def listed(file: str) -> list[tuple[tuple[str, str], str]]:
    """Return the page's rows: table and key, and the default as written there."""
    rows, table = [], ""
    for line in part(file).splitlines():
        if line.startswith("### "):
            table = line.removeprefix("### ").strip("`")
        elif line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            assert len(cells) == 4, f"docs/configuration.md: expected four cells, got {line}"
            assert cells[3], f"docs/configuration.md: this row says no meaning: {line}"
            rows.append(((table, cells[0].strip("`")), cells[2]))
    return rows


def value(text: str) -> Any:
    """Return what a default means, so that `16_777_216` may be written for 16777216."""
    return tomllib.loads(f"x = {text.strip('`')}")["x"] if text.startswith("`") else text


@pytest.mark.parametrize("file", FILES)
def test_every_key_has_its_row_and_no_row_is_left_over(file: str) -> None:
    wanted, rows = expected(file), listed(file)
    got = dict(rows)
    wrong = [
        f"{file}, {table}: this row is missing: | `{key}` | TYPE | {default} | MEANING |"
        for (table, key), default in wanted.items()
        if (table, key) not in got
    ]
    wrong += [
        f"{file}, {table}: remove the row of `{key}`, there is no such key"
        for table, key in got
        if (table, key) not in wanted
    ]
    wrong += [
        f"{file}, {table}: `{key}` has the default {wanted[table, key]}, the page says {default}"
        for (table, key), default in rows
        if (table, key) in wanted and value(default) != value(wanted[table, key])
    ]
    assert not wrong, "\n".join(["docs/configuration.md does not say what the code does:", *wrong])
    assert len(rows) == len(got), "docs/configuration.md: a key has two rows"


@pytest.mark.parametrize("file", FILES)
def test_the_examples_are_accepted_together(file: str, tmp_path: Path) -> None:
    examples = re.findall(r"^```toml\n(.*?)^```", part(file), re.MULTILINE | re.DOTALL)
    assert examples
    (tmp_path / file).write_text("".join(examples))
    load_toml(tmp_path / file, FILES[file])
