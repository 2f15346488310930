"""What the server and the worker count is listed, so that it has a series from the start."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import get_args, get_type_hints

import cema.cloud
from cema.cloud.http.metrics_list import described
from cema.cloud.store.counts import COUNTERS, PREFIXES
from cema.formats.sample import Verdict

SOURCE = Path(cema.cloud.__file__).parent
# Counted, and told in another way or to nobody.
OTHERS = {"steps.count", "steps.seconds", "server.checks"}
KINDS = "|".join({prefix.split(".")[0] for prefix in PREFIXES} | {"steps", "server"})
NAME = re.compile(rf"(?:{KINDS})\.[a-z_.]*")
# Where names are registered, and where measures over time are, which have names of the same kind.
NOT_COUNTED = {"events.py", "counts.py", "history.py", "history_noted.py", "overview.py"}


def named() -> dict[str, str]:
    """Return the names of counters that the cloud's code writes, and where; those with a part put in end with a dot."""
    found: dict[str, str] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        if path.name in NOT_COUNTED:
            continue
        nodes = list(ast.walk(ast.parse(path.read_text())))
        noted = {id(inner) for node in nodes if notes_history(node) for inner in ast.walk(node)}
        for node in nodes:
            # A name that ends with a dot is the first part of one that is put together, or else only compared with.
            inside = list(node.values[:1]) if isinstance(node, ast.JoinedStr) else [node]
            for part in inside:
                text = part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else ""
                whole = text.endswith(".") == isinstance(node, ast.JoinedStr)
                if id(node) not in noted and NAME.fullmatch(text) and whole:
                    found[text] = f"{path.name}:{part.lineno}"
    return found


def notes_history(node: ast.AST) -> bool:
    """Tell whether this is a call of ``history.add``."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "add"
        and ast.unparse(node.func.value).endswith("history")
    )


def test_every_counter_is_listed_and_every_listed_one_is_counted() -> None:
    found = named()
    prefixes = {name for name in found if name.endswith(".")}
    whole = found.keys() - prefixes - {"server.lock"}
    assert prefixes == {"samples.rejected.", "updates."}, found  # by reason and outcome
    parts = {name for name in COUNTERS if name.startswith(tuple(prefixes))}
    assert whole | parts == COUNTERS.keys() | OTHERS, found


def test_every_counter_belongs_to_a_metric_of_its_labels() -> None:
    for series in COUNTERS.values():
        told = described(series.metric)
        assert told.kind == "counter"
        assert len(told.labels) == (1 if series.label is None else 2)


def test_the_verdicts_on_samples_are_all_counted() -> None:
    verdicts = set(get_args(get_type_hints(Verdict)["verdict"]))
    assert {f"samples.{name}" for name in verdicts - {"rejected"}} < COUNTERS.keys()
