"""`cema data`: the samples that a cloud keeps; who may see them decides who may run this."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cema.cli.cohorts import AsJson, Config, JsonNotText, OneCohort, one_cohort, opened
from cema.errors import ConfigError

if TYPE_CHECKING:
    from cema.cloud.classes import Classes
    from cema.cloud.config import CloudConfig
    from cema.cloud.store.data import DataFilter

__all__ = ["app"]

app = typer.Typer(
    help="List, show, export, delete and label stored samples.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Device = Annotated[str | None, typer.Option(help="Of this device.", show_default="all")]
Class = Annotated[
    str | None,
    typer.Option(
        "--class",
        help="Which the device, the foundation model or a person takes to be of this class: its name or number.",
        show_default="all",
    ),
]
Since = Annotated[
    str | None,
    typer.Option(
        "--from",
        help="That arrived at this moment or later: such as 2026-03-01, 2026-03-01T12:00 (UTC), or unix seconds.",
        show_default="the first",
    ),
]
Until = Annotated[
    str | None, typer.Option("--to", help="That arrived before this moment.", show_default="the last")
]
Wait = Annotated[
    bool,
    typer.Option(
        help="Wait until the worker has forgotten them, for 20 seconds at most.", show_default="wait"
    ),
]


@app.callback()
def data() -> None:
    """List, show, export, delete and label stored samples."""


@app.command(name="list")
def list_(
    config: Config,
    cohort: OneCohort = None,
    device: Device = None,
    class_: Class = None,
    since: Since = None,
    until: Until = None,
    json: AsJson = False,
) -> None:
    """Count samples by device and class."""
    from cema.cli.data_tables import print_groups
    from cema.cloud.store.data import data_of

    with opened(config) as (settings, store):
        name = one_cohort(settings, cohort)
        classes = _classes(settings, name)
        groups = data_of(store).data_groups(name, _which(classes, device, class_, since, until))
    print_groups(name, groups, classes, json=json)


@app.command()
def show(
    id: Annotated[str, typer.Argument(help="The sample's id: the SHA-256 of its image.")],
    config: Config,
    cohort: OneCohort = None,
    json: JsonNotText = False,
) -> None:
    """Tell what is known of one sample."""
    from cema.cli.data_tables import print_sample
    from cema.cloud.store.data import data_of
    from cema.cloud.worker.replayed import replayed_seqs

    with opened(config) as (settings, store):
        name = one_cohort(settings, cohort)
        kept = data_of(store)
        sample = kept.data_sample(name, id.lower())
        if sample is None:
            raise ConfigError(f"expected the id of a sample that cohort {name} has, got {id!r}")
        replayed = replayed_seqs(kept.saved_checkpoint(name))
        classes = _classes(settings, name)
    print_sample(sample, classes, None if replayed is None else sample.seq in replayed, json=json)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    config: Config,
    cohort: OneCohort = None,
    device: Device = None,
    class_: Class = None,
    since: Since = None,
    until: Until = None,
    json: JsonNotText = False,
) -> None:
    """Write images into folders, with a table to label them.

    There is a folder for each label of the foundation model; the table's last column is for the true class.
    """
    from cema.cli.data_acts import export as run

    with opened(config) as (settings, store):
        name = one_cohort(settings, cohort)
        classes = _classes(settings, name)
        which = _which(classes, device, class_, since, until)
        run(store, name, which, folder, classes, json=json)


@app.command()
def delete(
    config: Config,
    cohort: OneCohort = None,
    device: Device = None,
    class_: Class = None,
    since: Since = None,
    until: Until = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All samples of the cohort.", show_default="off")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what would be deleted.", show_default="off")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.", show_default="ask")] = False,
    wait: Wait = True,
    json: JsonNotText = False,
) -> None:
    """Delete samples, and have the worker forget them.

    Prints the receipt.
    """
    from cema.cli.data_acts import delete as run

    with opened(config) as (settings, store):
        name = one_cohort(settings, cohort)
        which = _which(_classes(settings, name), device, class_, since, until)
        if which.everything != everything:
            raise ConfigError(
                "expected either --all or at least one of --device, --class, --from and --to: say what is meant"
            )
        run(store, name, which, dry_run=dry_run, yes=yes, wait=wait, json=json)


@app.command()
def receipts(
    config: Config,
    cohort: Annotated[
        str | None, typer.Option(help="Only this cohort.", show_default="all of the store")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="So many of the newest.")] = 100,
    json: AsJson = False,
) -> None:
    """List deletions, and whether they are done."""
    from cema.cli.data_tables import print_receipts
    from cema.cloud.store.data import data_of

    with opened(config) as (_, store):
        print_receipts(data_of(store).receipts(cohort, limit=limit), json=json)


@app.command()
def label(
    file: Annotated[
        Path, typer.Argument(help="CSV with the columns id and true_label, such as the table of an export.")
    ],
    config: Config,
    cohort: OneCohort = None,
    json: JsonNotText = False,
) -> None:
    """Give samples their true classes.

    The worker learns them in place of the foundation model's. Lines that cannot be used are told one by one, and the
    status is 1 then; all others are taken.
    """
    from cema.cli.actor import command_line_actor
    from cema.cli.data_tables import print_labels
    from cema.cloud.data_labels import read_labels, take_labels

    with opened(config) as (settings, store):
        name = one_cohort(settings, cohort)
        table = read_labels(file, _classes(settings, name))
        found = take_labels(store, name, table, actor=command_line_actor(), now=time.time())
    print_labels(found, json=json)
    if found.refused:
        raise typer.Exit(1)


def _classes(config: CloudConfig, cohort: str) -> Classes:
    from cema.cloud.classes import Classes

    return Classes.of(next(each for each in config.cohort if each.name == cohort))


def _which(
    classes: Classes, device: str | None, class_: str | None, since: str | None, until: str | None
) -> DataFilter:
    from cema.cloud.store.data import DataFilter

    return DataFilter(
        device=device,
        label=None if class_ is None else classes.index(class_),
        since=_moment("--from", since),
        until=_moment("--to", until),
    )


def _moment(option: str, text: str | None) -> float | None:
    """Return unix seconds of a moment that is written as those, or as a date with or without a time, UTC."""
    from datetime import UTC, datetime

    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{option}: expected a date such as 2026-03-01 or 2026-03-01T12:00, or unix seconds, got {text!r}"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
