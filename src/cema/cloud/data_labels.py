"""Labels that come back from people, as a table."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from cema._util.checks import is_sha256
from cema.cloud.classes import Classes
from cema.cloud.store.base import Store
from cema.cloud.store.data import LabelsTaken, data_of
from cema.errors import ConfigError

__all__ = ["LabelTable", "LabelsReport", "RefusedLine", "read_labels", "take_labels"]

COLUMNS = ("id", "true_label")


class RefusedLine(msgspec.Struct, frozen=True, order=True):
    """A line that was not taken: its number in the file, from 1, the sample's id, and why."""

    line: int
    id: str
    error: str


class LabelTable(NamedTuple):
    """What a table says.

    Attributes
    ----------
    labels
        Classes by sample, as numbers.
    lines
        In which line each sample stands.
    empty
        Lines without a class: nobody has labelled them yet.
    refused
        Lines that say nothing that can be used.
    """

    labels: dict[str, int]
    lines: dict[str, int]
    empty: int
    refused: list[RefusedLine]


class LabelsReport(NamedTuple):
    """What became of a table: what was taken, how many lines are empty, and which were refused."""

    taken: LabelsTaken
    empty: int
    refused: list[RefusedLine]

    def told(self) -> dict[str, Any]:
        """Return it JSON-able."""
        return {
            "new": self.taken.new,
            "changed": self.taken.changed,
            "same": self.taken.same,
            "empty": self.empty,
            "refused": msgspec.to_builtins(self.refused),
        }


def read_labels(path: Path, classes: Classes) -> LabelTable:
    """Read a table of true classes: CSV in UTF-8 with a line of headings, of which ``id`` and ``true_label`` are used.

    Parameters
    ----------
    path
        The file, such as the ``labels.csv`` of an export with its last column filled in.
    classes
        The cohort's; a class is written by its name or its number.

    Raises
    ------
    ConfigError
        It cannot be read, or lacks one of the columns.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            missing = [column for column in COLUMNS if column not in (table.fieldnames or ())]
            if missing:
                raise ConfigError(
                    f"{path}: expected a first line with the columns id and true_label, separated by commas; it "
                    f"lacks {' and '.join(missing)}"
                )
            return _rows(((table.line_num, row) for row in table), classes)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: expected CSV in UTF-8: {error}; save it as that") from error


def _rows(rows: Iterable[tuple[int, Mapping[str, str | None]]], classes: Classes) -> LabelTable:
    labels: dict[str, int] = {}
    lines: dict[str, int] = {}
    refused: list[RefusedLine] = []
    empty = 0
    for number, row in rows:
        key, text = (row["id"] or "").strip().lower(), (row["true_label"] or "").strip()
        if not text:
            empty += 1
            continue
        try:
            if not is_sha256(key):
                raise ConfigError("expected an id of 64 hexadecimal digits")
            label = classes.index(text)
            if labels.setdefault(key, label) != label:
                raise ConfigError(f"line {lines[key]} gives the sample another class, which was taken")
            lines.setdefault(key, number)
        except ConfigError as error:
            refused.append(RefusedLine(number, key[:64], str(error)))
    return LabelTable(labels, lines, empty, refused)


def take_labels(store: Store, cohort: str, table: LabelTable, *, actor: str, now: float) -> LabelsReport:
    """Keep what a table says; what cannot be kept is told line by line.

    Parameters
    ----------
    store, cohort
        Whose samples.
    table
        From `read_labels`.
    actor, now
        Who gives the labels, and when (unix seconds).
    """
    taken = data_of(store).put_labels(cohort, table.labels, actor=actor, now=now)
    gone = [
        *((key, "the image was deleted, or left the store under its byte cap") for key in taken.deleted),
        *((key, "no such sample was stored in this cohort") for key in taken.unknown),
    ]
    refused = [*table.refused, *(RefusedLine(table.lines[key], key, error) for key, error in gone)]
    left = msgspec.structs.replace(taken, deleted=(), unknown=())
    return LabelsReport(left, table.empty, sorted(refused))
