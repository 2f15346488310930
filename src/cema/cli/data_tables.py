"""What `cema data` prints."""

from __future__ import annotations

import json as json_
from collections.abc import Sequence

import msgspec
import typer

from cema._util.units import human_bytes
from cema.cli.cohorts import utc
from cema.cli.tables import FittedTable, out
from cema.cloud.classes import Classes
from cema.cloud.data_labels import LabelsReport
from cema.cloud.store.data import DataGroup, DataSample, Receipt

__all__ = ["print_groups", "print_labels", "print_receipts", "print_sample"]

# Refused lines that are told one by one; `--json` has all.
_MOST_LINES = 100


def print_groups(cohort: str, groups: Sequence[DataGroup], classes: Classes, *, json: bool) -> None:
    """Print how many samples there are, by device and class."""
    samples, size = sum(group.samples for group in groups), sum(group.bytes for group in groups)
    if json:
        told = [{**msgspec.to_builtins(group), "class": classes.name(group.label)} for group in groups]
        typer.echo(json_.dumps({"cohort": cohort, "samples": samples, "bytes": size, "groups": told}))
        return
    table = FittedTable(
        "device", "class", "foundation", "true", "samples", "bytes", "oldest, UTC", "newest, UTC"
    )
    table.columns[0].no_wrap = True
    for group in groups:
        table.add_row(
            group.device,
            *(classes.name(label) for label in (group.label, group.teacher, group.truth)),
            f"{group.samples:,}",
            human_bytes(group.bytes),
            *(utc(moment, milliseconds=False) for moment in (group.oldest, group.newest)),
        )
    console = out()
    console.print(table)
    console.print(f"{samples:,} samples of cohort {cohort}, {human_bytes(size)}.", highlight=False)
    console.print(
        "class: what the device chose; foundation: what the foundation model chose when it learned from them, empty "
        "where it has not yet; true: what a person has given.",
        highlight=False,
    )


def print_sample(sample: DataSample, classes: Classes, replayed: bool | None, *, json: bool) -> None:
    """Print what is known of one sample."""
    if json:
        typer.echo(json_.dumps({**msgspec.to_builtins(sample), "replayed": replayed}))
        return
    told = "not known: the algorithm is not CEMA's own" if replayed is None else "yes" if replayed else "no"
    rows = {
        "id": sample.id,
        "device": sample.device,
        "captured, UTC": f"{utc(sample.captured_at)} (by the device's clock)",
        "arrived, UTC": utc(sample.received_at),
        "bytes": f"{sample.bytes:,}",
        "entropy": f"{sample.entropy:.4f} nats",
        "class by the device": f"{classes.name(sample.label)} (version {sample.version})",
        "class by the foundation model": classes.name(sample.teacher) or "not known yet",
        "true class": classes.name(sample.truth) or "nobody has given it",
        "waits for the worker": "yes" if sample.waiting else "no",
        "may be replayed": told,
    }
    for name, value in rows.items():
        typer.echo(f"{name}: {value}")


def print_receipts(receipts: Sequence[Receipt], *, json: bool) -> None:
    """Print deletions."""
    if json:
        typer.echo(json_.dumps(msgspec.to_builtins(receipts)))
        return
    table = FittedTable("number", "UTC", "cohort", "who", "what", "samples", "bytes", "state", "done, UTC")
    for receipt in receipts:
        table.add_row(
            str(receipt.number),
            utc(receipt.at, milliseconds=False),
            receipt.cohort,
            receipt.actor,
            _what(receipt),
            f"{receipt.samples:,}",
            human_bytes(receipt.bytes),
            receipt.state + (f": {receipt.note}" if receipt.note else ""),
            utc(receipt.done_at, milliseconds=False),
        )
    out().print(table)


def _what(receipt: Receipt) -> str:
    which = msgspec.to_builtins(receipt.filter)
    for name in ("from", "to"):
        if name in which:
            which[name] = utc(which[name], milliseconds=False)
    return ", ".join(f"{name} {value}" for name, value in which.items()) or "all"


def print_labels(found: LabelsReport, *, json: bool) -> None:
    """Print what became of labels; lines that were refused go to standard error."""
    if json:
        typer.echo(json_.dumps(found.told()))
        return
    for line in found.refused[:_MOST_LINES]:
        typer.echo(f"line {line.line}: {line.id}: {line.error}", err=True)
    if len(found.refused) > _MOST_LINES:
        typer.echo(f"and {len(found.refused) - _MOST_LINES} lines more; --json has all", err=True)
    taken = found.taken
    typer.echo(
        f"{taken.new} new labels, {taken.changed} changed, {taken.same} known already; {found.empty} lines without "
        f"one, {len(found.refused)} refused"
    )
