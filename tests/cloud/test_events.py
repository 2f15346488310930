"""What the cloud logs is registered, and what is registered is logged."""

from __future__ import annotations

import ast
import logging
import string
from pathlib import Path

import pytest

from cema.cloud import events

SOURCE = Path(events.__file__).parent
CONSTANTS = {name: value for name, value in vars(events).items() if isinstance(value, events.Event)}
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log", "warn"}


def files() -> list[Path]:
    return [path for path in sorted(SOURCE.rglob("*.py")) if path != SOURCE / "events.py"]


def used(tree: ast.AST) -> set[str]:
    """Return the constants of the registry that a module names."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "events"
    }


def test_nothing_is_logged_but_registered_events() -> None:
    for path in files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value
                direct = isinstance(owner, ast.Name) and owner.id in ("log", "logger", "logging")
                assert not (direct and node.func.attr in LEVELS), f"{path}:{node.lineno}: use report()"
        assert used(ast.parse(path.read_text())) <= CONSTANTS.keys(), path


def test_every_registered_event_is_logged_somewhere() -> None:
    named = set().union(*(used(ast.parse(path.read_text())) for path in files()))
    assert named == CONSTANTS.keys()
    assert set(events.EVENTS) == {event.name for event in CONSTANTS.values()}
    assert len(events.EVENTS) == len(CONSTANTS)


def test_every_call_gives_the_fields_of_its_event() -> None:
    checked = 0
    for path in files():
        for node in ast.walk(ast.parse(path.read_text())):
            if not (
                isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "report"
            ):
                continue
            event = node.args[1]
            keywords = {keyword.arg for keyword in node.keywords}
            if not isinstance(event, ast.Attribute) or None in keywords:
                continue  # several events with the same fields: what is logged is tested where it is
            expected = CONSTANTS[event.attr].fields.keys()
            assert keywords - {"exc_info", "crowd"} == expected, f"{path}:{node.lineno}"
            checked += 1
    assert checked > 15


@pytest.mark.parametrize("event", events.EVENTS.values(), ids=lambda event: event.name)
def test_an_event_is_well_formed(event: events.Event) -> None:
    assert set(event.name) <= set(string.ascii_lowercase + "._")
    assert "." in event.name
    assert event.meaning.endswith(".")
    assert all(event.fields.values())
    assert logging.getLevelName(event.level) in ("DEBUG", "INFO", "WARNING", "ERROR")

    class Numbers(dict[str, int]):
        def __missing__(self, key: str) -> int:
            raise AssertionError(f"{event.name} shows {key}, which is none of its fields")

    assert event.message % Numbers(dict.fromkeys(event.fields, 1))
