#!/usr/bin/env python3
"""Write docs/reference/: every key of the configuration files, every metric, every log event, from the code.

The descriptions are the docstrings' sections of attributes (numpydoc), the defaults those of the structs. The suite
fails when the committed pages are not what this program makes.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect as kinds

from cema._util.events import MEMBERS
from cema.cloud.config import CloudConfig
from cema.cloud.events import EVENTS
from cema.cloud.http.metrics_list import METRICS
from cema.edge.config import EdgeConfig
from cema.ondevice.selection.budget_options import BudgetOptions

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
NOTE = "This page is made from the code by `scripts/reference.py`: do not edit it."
# Tables whose keys depend on another setting.
OPTIONS: dict[type[msgspec.Struct], dict[str, type[msgspec.Struct]]] = {
    EdgeConfig: {"selection.options": BudgetOptions},
    CloudConfig: {},
}
# In numpydoc's section of attributes: names with commas, perhaps a type, and the indented lines below them.
ATTRIBUTE = re.compile(r"^(\w+(?:, \w+)*)(?: : .*)?\n((?: +\S.*(?:\n|$))+)", re.MULTILINE)
WIDTH = 120
WHOLE_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
SEE = re.compile(r"See `\w+`\.$")


def pages() -> dict[str, str]:
    """Return the text of each page by its file name."""
    return {
        "cloud-configuration.md": _configuration("cloud.toml", CloudConfig),
        "edge-configuration.md": _configuration("edge.toml", EdgeConfig),
        "metrics.md": _metrics(),
        "log-events.md": _events(),
    }


def _configuration(file: str, struct: type[msgspec.Struct]) -> str:
    parts = [
        f"# Every key of {file}",
        NOTE,
        "[configuration.md](../configuration.md) explains what belongs together. “required” means that there is no "
        "default, “none” that the key is absent unless you set it.",
    ]
    for table, described in _tables(struct):
        parts += [
            f"## {table}",
            _summary(described),
            _grid(("key", "type", "default", "meaning"), _keys(described)),
        ]
    return _page(parts)


def _tables(struct: type[msgspec.Struct]) -> Iterator[tuple[str, type[msgspec.Struct]]]:
    """Yield the name of every table of a file, and what it holds."""
    yield "Top level", struct
    yield from _inner(struct, "", OPTIONS[struct])


def _inner(
    struct: type[msgspec.Struct], prefix: str, options: dict[str, type[msgspec.Struct]]
) -> Iterator[tuple[str, type[msgspec.Struct]]]:
    for field in _fields(struct):
        path = f"{prefix}{field.encode_name}"
        if path in options:
            yield f"`[{path}]`", options[path]
        found = _struct_of(field.type)
        if found is not None:
            inner, several = found
            yield f"`[[{path}]]`" if several else f"`[{path}]`", inner
            yield from _inner(inner, f"{path}.", options)


def _keys(struct: type[msgspec.Struct]) -> list[tuple[str, ...]]:
    """Return a row for every key of a table; those that are tables themselves have none."""
    told = _descriptions(struct)
    rows: list[tuple[str, ...]] = []
    for field in _fields(struct):
        if _struct_of(field.type) is not None:
            continue
        if field.name not in told:
            raise SystemExit(
                f"{struct.__name__}: the docstring says nothing of `{field.name}`; add it to its attributes"
            )
        rows.append((f"`{field.encode_name}`", _type(field.type), _default(field), told[field.name]))
    return rows


def _fields(struct: type[msgspec.Struct]) -> Sequence[kinds.Field]:
    described = kinds.type_info(struct)
    assert isinstance(described, kinds.StructType)  # noqa: S101 - it is one
    return described.fields


def _struct_of(kind: kinds.Type) -> tuple[type[msgspec.Struct], bool] | None:
    """Return the struct that a table holds, and whether there may be several such tables; None for other keys."""
    for option in kind.types if isinstance(kind, kinds.UnionType) else (kind,):
        if isinstance(option, kinds.StructType):
            return option.cls, False
        if isinstance(option, kinds.VarTupleType) and isinstance(option.item_type, kinds.StructType):
            return option.item_type.cls, True
    return None


def _type(kind: kinds.Type) -> str:
    if isinstance(kind, kinds.UnionType):
        return " or ".join(_type(inner) for inner in kind.types if not isinstance(inner, kinds.NoneType))
    if isinstance(kind, kinds.LiteralType):
        return " or ".join(f"`{_json(value)}`" for value in kind.values)
    names: dict[type[kinds.Type], str] = {
        kinds.StrType: "string",
        kinds.IntType: "integer",
        kinds.FloatType: "number",
        kinds.BoolType: "boolean",
        kinds.DictType: "table",
        kinds.VarTupleType: "array",
        kinds.ListType: "array",
    }
    return names[type(kind)]


def _default(field: kinds.Field) -> str:
    if field.required:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    return "none" if value is None else f"`{_json(value)}`"


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _descriptions(struct: type[msgspec.Struct]) -> dict[str, str]:
    """Return what the docstring says of each field; those of the class above where it says "See …"."""
    told: dict[str, str] = {}
    for above in reversed(struct.__mro__):
        section = inspect.cleandoc(above.__doc__ or "").partition("Attributes\n----------\n")[2]
        for names, text in ATTRIBUTE.findall(section):
            for name in names.split(", "):
                if not (SEE.match(" ".join(text.split())) and name in told):
                    told[name] = _markdown(text)
    return told


def _summary(struct: type[msgspec.Struct]) -> str:
    """Return the first paragraph of a docstring, without the name of the table that it may begin with."""
    first = inspect.cleandoc(struct.__doc__ or "").split("\n\n")[0]
    text = re.sub(r"^`?`?\[[\w.]+\]`?`?( of the rule `\w+` \([^)]*\))?[:.]? ?", "", _markdown(first))
    return text[:1].upper() + text[1:] if text else "Settings of this rule."


def _markdown(text: str) -> str:
    """Return the markup of a docstring as that of a page."""
    line = " ".join(text.split()).replace("``", "`")
    return re.sub(r":\w+:`", "`", line)


def _metrics() -> str:
    endings: dict[str, Callable[[str], str]] = {
        "counter": lambda name: f"`{name}_total`",
        "gauge": lambda name: f"`{name}`",
        "histogram": lambda name: f"`{name}_bucket`, `{name}_sum`, `{name}_count`",
        "summary": lambda name: f"`{name}_sum`, `{name}_count`",
    }
    rows = []
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
        rows.append((endings[metric.kind](metric.name), metric.kind, labels, metric.text))
    return _page(
        [
            "# Every metric",
            NOTE,
            "`GET /metrics` serves them in Prometheus' text format, to an operator or admin of all cohorts. Counters "
            "are kept in the store and go on after a restart; the times of requests begin anew with the process.",
            _grid(("name", "type", "labels", "meaning"), rows),
        ]
    )


def _events() -> str:
    members = ", ".join(f"`{name}`" for name in MEMBERS)
    parts = [
        "# Every log event",
        NOTE,
        "`[log]` in cloud.toml says how and at which level the cloud logs, see "
        "[configuration.md](../configuration.md#log). A line of JSON has these members, besides the event's fields: "
        f"{members}. Names of events and fields stay; messages may change. "
        "What a device prints is told by `python -m pydoc cema.edge.program`.",
    ]
    rows = [(f"`{event.name}`", _level(event.level), event.meaning) for event in EVENTS.values()]
    parts += ["## Overview", _grid(("event", "level", "meaning"), rows), "## Fields"]
    fields = [
        (f"`{event.name}`" if first else "", f"`{name}`", text)
        for event in EVENTS.values()
        for first, (name, text) in zip(
            (True, *[False] * len(event.fields)), event.fields.items(), strict=False
        )
    ]
    parts.append(_grid(("event", "field", "meaning"), fields))
    return _page(parts)


def _level(number: int) -> str:
    return {10: "debug", 20: "info", 30: "warning", 40: "error"}[number]


def _grid(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    shown = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([shown[0], f"|{'---|' * len(head)}", *shown[1:]])


def _page(parts: Sequence[str]) -> str:
    wrapped = (part if part[0] in "#|" else textwrap.fill(part, WIDTH, **WHOLE_WORDS) for part in parts)
    return "\n\n".join(wrapped) + "\n"


def main() -> int:
    """Write the pages, or say which are out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; status 1 when a page is out of date"
    )
    check = parser.parse_args().check
    made = pages()
    there = {name: (FOLDER / name).read_text() for name in made if (FOLDER / name).is_file()}
    wrong = [name for name, text in made.items() if there.get(name) != text]
    if check:
        for name in wrong:
            print(f"docs/reference/{name} is out of date; run scripts/reference.py", file=sys.stderr)
        return 1 if wrong else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in wrong:
        (FOLDER / name).write_text(made[name])
        print(f"written: docs/reference/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
