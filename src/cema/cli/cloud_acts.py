"""What an operator has a cohort do, and the versions that it is about: the rest of `cema cloud`."""

from __future__ import annotations

import json as json_
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import typer

from cema.cli.actor import command_line_actor
from cema.cli.cohorts import one_cohort, opened, utc
from cema.cloud.acts_allowed import check_act
from cema.cloud.store.control import Act, Acted, Canary, ControlStore, Release, control_of, name_of
from cema.cloud.store.told import versions_told

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["do", "print_acts", "print_versions"]

# A worker that runs looks for acts several times a second, and is seldom longer than this in one step.
_WAIT_SECONDS = 20.0
_LOOK_SECONDS = 0.2

_WHEN = (
    "Devices that hold a request open get it within seconds, all others with their next question (update.poll_seconds "
    "of each device)."
)
_TOLD = {
    "rollback": "Devices get the content of version {to}. Learning begins anew, and what passes the gate is published.",
    "pin": "Devices get the content of version {to} and keep it until resume. Learning goes on; nothing is published.",
    "release": "All devices are offered version {to}.",
    "stop": "Devices return to the source model and keep it until resume. Learning goes on; nothing is published.",
    "pause": "Devices keep the newest version until resume. Learning goes on; nothing is published.",
    "canary": "From the next version on, {share} of the devices try it first.",
    "resume": "What is learned is published again, once it passes the gate.",
}
_TOLD_OF_DEVICE = {
    "pin": "Device {device} gets the content of version {to} and keeps it until resume, whatever others get.",
    "resume": "Device {device} gets what all others have, and follows them.",
}


def do(path: Path, cohort: str | None, act: Act, *, json: bool, wait: bool) -> None:
    """Write an act down, wait until the worker has done it, and say what devices will do and by when."""
    with opened(path) as (config, store):
        name, control = one_cohort(config, cohort), control_of(store)
        check_act(act, next(each for each in config.cohort if each.name == name))
        acted = control.act(name, act, actor=command_line_actor(), now=time.time())
        if wait:
            acted = _await(control, acted)
    if json:
        typer.echo(json_.dumps(msgspec.to_builtins(acted)))
        return
    typer.echo(f"{name_of(act)} of cohort {name}: act {acted.number}, {acted.state}")
    device = getattr(act, "device", None)
    told = (_TOLD if device is None else _TOLD_OF_DEVICE)[name_of(act)]
    typer.echo(told.format(to=getattr(act, "to", 0), device=device, share=_share_of(act)))
    if acted.state == "waiting":
        typer.echo("The worker has still to sign it: it does with its next step, or once the cloud runs.")
    elif acted.state == "failed":
        typer.echo("It failed: the store had that content no longer (see the cloud's log).", err=True)
        raise typer.Exit(1)
    elif isinstance(act, Release):
        typer.echo(_WHEN)
    elif acted.version is not None:
        typer.echo(f"Version {acted.version} has it. {_WHEN}")


def _share_of(act: Act) -> str:
    first = getattr(act, "first", None)
    return "the configured share" if first is None else f"{first:.3g}"


def _await(control: ControlStore, acted: Acted) -> Acted:
    deadline = time.monotonic() + _WAIT_SECONDS
    while acted.state == "waiting" and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
        acted = next((a for a in control.acts(acted.cohort) if a.number == acted.number), acted)
    return acted


def print_acts(path: Path, cohort: str | None, *, limit: int, json: bool) -> None:
    """Print the newest acts on a cohort, newest first: who asked for what, and what came of it."""
    from cema.cli.tables import FittedTable, out

    with opened(path) as (config, store):
        acts = control_of(store).acts(one_cohort(config, cohort), limit=limit)
    if json:
        typer.echo(json_.dumps(msgspec.to_builtins(acts)))
        return
    table = FittedTable("act", "UTC", "who", "what", "state", "version")
    for acted in acts:
        to = getattr(acted.act, "to", None)
        device = getattr(acted.act, "device", None)
        what = name_of(acted.act) + ("" if to is None else f" to {to}") + (f" of {device}" if device else "")
        what += f" {_share_of(acted.act)}" if isinstance(acted.act, Canary) else ""
        version = "" if acted.version is None else str(acted.version)
        moment = utc(acted.at, milliseconds=False)
        table.add_row(str(acted.number), moment, acted.actor, what, acted.state, version)
    out().print(table)


def print_versions(path: Path, cohort: str | None, *, json: bool) -> None:
    """Print the versions of a cohort that are kept, oldest first, with how they came about and how they do."""
    from cema.cli.tables import out

    with opened(path) as (config, store):
        name = one_cohort(config, cohort)
        publishing = control_of(store).control(name).publishing
        versions = versions_told(store, name)
    if json:
        typer.echo(json_.dumps({"cohort": name, "publishing": publishing, "versions": versions}))
        return
    console = out()
    console.print(_versions_table(versions))
    console.print(f"Publishing is {publishing}.", highlight=False)
    console.print(
        "Agreement: on which share of the samples that came while it was the newest version it chose the foundation "
        "model's label, with its standard error, and the source model on the same samples, in per cent. Fetched: "
        "devices that were first given it, of the first 64.",
        highlight=False,
    )


def _versions_table(versions: Sequence[Mapping[str, Any]]) -> Table:
    from cema.cli.tables import FittedTable

    table = FittedTable(
        "version", "created, UTC", "how", "samples", "gate", "agreement", "source", "fetched", "content"
    )
    for found in versions:
        trace = found["trace"] or {}
        gate = trace.get("gate") or {}
        table.add_row(
            str(found["version"]),
            utc(found["created"], milliseconds=False),
            _how(trace),
            str(trace.get("samples", "")),
            f"{100 * gate['adapted']:.1f}" if gate.get("count") else "",
            *(_share(found["agreement"].get(model)) for model in ("running", "source")),
            str(sum(d["fetched_at"] is not None for d in trace.get("devices", {}).values())),
            found["digest"][:12],
        )
    return table


def _how(trace: Mapping[str, Any]) -> str:
    kind = trace.get("kind", "")
    return f"{kind} to {trace['content_of']}" if trace.get("content_of") else kind


def _share(found: Mapping[str, Any] | None) -> str:
    return "" if found is None else f"{100 * found['share']:.1f} ± {100 * found['standard_error']:.1f}"
