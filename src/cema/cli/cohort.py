"""`cema cohort`: what concerns all devices of a cohort at once."""

from __future__ import annotations

import json as json_
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cema._util.units import human_bytes
from cema.cli.actor import command_line_actor
from cema.cli.cohorts import AsJson, Config, JsonNotText, OneCohort, one_cohort, opened, utc

if TYPE_CHECKING:
    from cema.cloud.config import CloudConfig, CohortConfig
    from cema.cloud.migration import Plan
    from cema.cloud.store.base import Store
    from cema.formats.bundle import Bundle
    from cema.models.spec import Model

__all__ = ["app"]

app = typer.Typer(
    help="Bring a cohort to another base model, and see how far it is.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def cohort() -> None:
    """Bring a cohort to another base model, and see how far it is."""


@app.command()
def migrate(
    name: Annotated[str, typer.Argument(help="The cohort.")],
    bundle: Annotated[Path, typer.Option(help="The new bundle.")],
    config: Config,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check, and change nothing.", show_default="off")
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also if the classes are not those of before.", show_default="off"),
    ] = False,
    days: Annotated[float, typer.Option(min=1, help="How long devices may begin to fetch it.")] = 365.0,
    json: JsonNotText = False,
) -> None:
    """Bring a cohort's devices to another base model.

    Devices, tokens, samples and version numbers stay.

    Devices fetch the new bundle, verify it under a key that they trust, and swap while they predict. Then change the
    configuration: this command says which line. For the bundle that the cohort has already, devices are told anew.
    """
    from cema.cloud.migration import carry_out, plan
    from cema.cloud.signing.signers import open_signers
    from cema.formats.bundle import Bundle

    with opened(config) as (settings, store):
        chosen = next(c for c in settings.cohort if c.name == one_cohort(settings, name))
        new = Bundle.load(bundle)
        signers = open_signers(settings.signers)
        foundation = _foundation(chosen)
        now = time.time()
        planned = plan(
            settings, store, chosen, new, foundation=foundation, signers=signers, now=now, force=force
        )
        _try_golden_batch(new)
        if not dry_run:
            carry_out(settings, store, planned, signers, now=now, days=days, actor=command_line_actor())
        told = _told(settings, store, chosen, planned, config) | {"done": not dry_run}
    told["until"] = now + 86_400 * days
    if json:
        typer.echo(json_.dumps(told))
    else:
        _print(told)


@app.command()
def bases(config: Config, cohort: OneCohort = None, json: AsJson = False) -> None:
    """List base models, and how far a migration is.

    It tells how many devices have which.
    """
    from cema.cloud.store.told_bases import bases_told

    with opened(config) as (settings, store):
        told = bases_told(store, one_cohort(settings, cohort))
    if json:
        typer.echo(json_.dumps(told))
        return
    from cema.cli.tables import FittedTable, out

    table = FittedTable("base", "since, UTC", "newest version", "devices", "which")
    for found in told["bases"]:
        mark = " (to have)" if found["base"] == told["base"] else ""
        table.add_row(
            found["base"][:12] + mark,
            utc(found["since"], milliseconds=False),
            str(found["version"] or ""),
            str(len(found["devices"])),
            _few(found["devices"]),
        )
    if told["unknown"]:
        table.add_row("never said", "", "", str(len(told["unknown"])), _few(told["unknown"]))
    out().print(table)


def _few(names: Sequence[str], most: int = 8) -> str:
    """Return some names, and how many more there are.

    Examples
    --------
    >>> _few(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _foundation(cohort: CohortConfig) -> Model:
    from cema.models.registry import resolve

    weights = cohort.foundation_weights
    return resolve(cohort.foundation, weights=Path(weights) if weights else None)


def _try_golden_batch(bundle: Bundle) -> None:
    """Run the bundle's golden batch as devices will, before any of them fetches it."""
    from cema.edge.runtime import build_runtime
    from cema.edge.statistics import StatisticsRuntime

    build_runtime(bundle)
    if bundle.manifest.statistics:
        StatisticsRuntime(bundle, threads=1)


def _told(
    settings: CloudConfig, store: Store, cohort: CohortConfig, planned: Plan, config: Path
) -> dict[str, Any]:
    """Return what was done and what is left to do, JSON-able."""
    from cema.cloud.migration import bundle_line

    status = store.status(cohort.name)
    devices = store.devices([cohort.name]).list()
    new = planned.bundle.path.absolute()
    change: dict[str, Any] | None = None
    if Path(cohort.bundle) != new:
        folder = config.absolute().parent
        written = os.path.relpath(new, folder) if new.is_relative_to(folder) else str(new)
        change = {"file": str(config), "line": bundle_line(config, cohort.name), "bundle": written}
    return {
        "cohort": cohort.name,
        "from": planned.old,
        "to": planned.new,
        "serial": planned.serial,
        "bytes": sum(file.bytes for file in planned.files),
        "files": [file.name for file in planned.files],
        "notes": list(planned.notes),
        "version": status["version"],
        "samples": status["samples"],
        "learned_again": planned.again if planned.exchanges else 0,
        "devices": sum(
            d.role == "device" and d.cohort == cohort.name and d.revoked_at is None for d in devices
        ),
        "change": change,
    }


def _print(told: dict[str, Any]) -> None:
    say = typer.echo
    name, done = told["cohort"], told["done"]
    if told["from"] == told["to"]:
        say(
            f"Cohort {name}: devices {'are' if done else 'would be'} told anew of base model {told['to'][:12]}."
        )
    else:
        verb = "was brought" if done else "can be brought"
        say(f"Cohort {name} {verb} from base model {told['from'][:12]} to {told['to'][:12]}.")
        say(
            f"Kept: {told['devices']} devices with their tokens, versions up to {told['version']}, and "
            f"{told['samples']} samples, of which the newest {min(told['learned_again'], told['samples'])} are learned "
            "from again. "
            "What was learned of the old model goes; its last version stays for devices that have the old bundle."
        )
    say(
        f"Each device fetches {human_bytes(told['bytes'])} (notice {told['serial']}, to be followed until "
        f"{utc(told['until'], milliseconds=False)} UTC)."
    )
    for note in told["notes"]:
        say(f"Note: {note}.")
    if not done:
        say("Nothing was changed (--dry-run).")
    if (change := told["change"]) is not None:
        line = f", line {change['line']}" if change["line"] else f", [[cohort]] {name}"
        say(
            f"{'Now' if done else 'After the migration,'} change {change['file']}{line} to: bundle = "
            f'"{change["bundle"]}"; and `model` and `model_weights` below it to the model that this was exported from.'
        )
        say(
            "A cloud that runs goes on meanwhile: it takes samples, and devices fetch the new bundle. It learns on the "
            "new model within seconds of the change, without a restart; one that does not run starts after the change."
        )
