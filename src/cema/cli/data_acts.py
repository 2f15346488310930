"""What `cema data` does with samples: export and delete them."""

from __future__ import annotations

import json as json_
import time
from pathlib import Path

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress

from cema._util.units import human_bytes
from cema.cli.actor import command_line_actor
from cema.cli.data_tables import print_receipts
from cema.cloud.classes import Classes
from cema.cloud.data_export import LABELS_FILE, export_data
from cema.cloud.store.audits import AuditedAct, AuditStore
from cema.cloud.store.base import Store
from cema.cloud.store.data import DataFilter, DataStore, Receipt, data_of, find_receipt

__all__ = ["delete", "export"]

# A worker that runs looks for deletions several times a second, and is seldom longer than this in one step.
_WAIT_SECONDS = 20.0
_LOOK_SECONDS = 0.2


def export(
    store: Store, cohort: str, which: DataFilter, folder: Path, classes: Classes, *, json: bool
) -> None:
    """Write samples into a folder, record who did, and tell what was written."""
    total = sum(group.samples for group in data_of(store).data_groups(cohort, which))
    with Progress(console=Console(stderr=True), disable=json, transient=True) as progress:
        task = progress.add_task("images", total=total)
        found = export_data(
            store,
            cohort,
            which,
            folder,
            classes,
            written=lambda count: progress.update(task, completed=count),
        )
    if isinstance(store, AuditStore):
        detail = {"images": found.images, **msgspec.to_builtins(which)}
        store.record_act(AuditedAct(command_line_actor(), "data.export", cohort, detail))
    if json:
        typer.echo(json_.dumps({"folder": str(folder), **msgspec.to_builtins(found)}))
        return
    typer.echo(f"{found.images} images in {folder}, with {LABELS_FILE}: fill in its column true_label")
    if found.damaged:
        typer.echo(f"{found.damaged} images are damaged and were left out", err=True)


def delete(
    store: Store, cohort: str, which: DataFilter, *, dry_run: bool, yes: bool, wait: bool, json: bool
) -> None:
    """Delete samples once that is confirmed, wait until the worker has forgotten them, and print the receipt."""
    data = data_of(store)
    groups = data.data_groups(cohort, which)
    samples, size = sum(g.samples for g in groups), sum(g.bytes for g in groups)
    told = f"{samples} samples of cohort {cohort}, {human_bytes(size)}"
    if dry_run:
        typer.echo(json_.dumps({"samples": samples, "bytes": size}) if json else f"would delete {told}")
        return
    if not yes:
        typer.confirm(f"Delete {told}? They cannot be brought back.", abort=True, err=True)
    receipt = data.delete_data(cohort, which, actor=command_line_actor(), now=time.time())
    if wait:
        receipt = _await(data, receipt)
    if json:
        typer.echo(json_.dumps(msgspec.to_builtins(receipt)))
        return
    print_receipts([receipt], json=False)
    if receipt.state == "done":
        typer.echo("Neither the store nor the worker's state holds anything of them any more.")
    else:
        typer.echo(
            "They are removed from the store. The worker has still to forget what its state holds of them: it does "
            "with its next turn, or once the cloud runs; `cema data receipts` tells."
        )


def _await(data: DataStore, receipt: Receipt) -> Receipt:
    deadline = time.monotonic() + _WAIT_SECONDS
    while receipt.state != "done" and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
        receipt = find_receipt(data.receipts(receipt.cohort), receipt.number) or receipt
    return receipt
