"""`cema update`: how updates came about."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cema.cli.cohorts import AsJson, Config, OneCohort, one_cohort, opened, utc
from cema.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["app"]

app = typer.Typer(help="See how updates came about.", no_args_is_help=True)

# Versions that an error names, the newest.
NAMED = 10


@app.callback()
def update() -> None:
    """See how updates came about."""


@app.command()
def trace(
    version: Annotated[int, typer.Argument(min=1, help="The version.")],
    config: Config,
    cohort: OneCohort = None,
    json: AsJson = False,
) -> None:
    """Tell the way of one version from the samples that it learned from to the devices that run it.

    Moments of capture are by the devices' clocks, which may be wrong; all others are by the cloud's.
    """
    from cema.cli.tables import out

    found = _find(config, cohort, version)
    if json:
        typer.echo(json_.dumps(found))
        return
    console = out()
    clocks = (
        "Moments of capture are by the devices' clocks, which may be wrong; all others are by the cloud's."
    )
    for text, table in (
        (f"Version {found['version']} of {found['cohort']}", _way(found)),
        (_counts(found), _steps(found)),
        ("First of each device", _devices(found)),
        (clocks, None),
    ):
        console.print(text, highlight=False, markup=False, soft_wrap=True)
        if table is not None:
            console.print(table)


def _find(path: Path, cohort: str | None, version: int) -> dict[str, Any]:
    """Return a trace from the store of a configured cloud, running or not."""
    from cema.cloud.store.traces import traces_of

    with opened(path) as (config, store):
        name = one_cohort(config, cohort)
        traces = traces_of(store)
        found, known = traces.trace(name, version), traces.traced(name)
    if found is None:
        newest = ", ".join(map(str, known[-NAMED:]))
        have = (
            f"these are known: {newest}" if len(known) <= NAMED else f"{len(known)} are known, last {newest}"
        )
        raise ConfigError(
            f"there is no trace of version {version} of cohort {name!r}; {have if known else 'none is known yet'} "
            "(versions that an older CEMA published have none, and old ones are dropped)"
        )
    return {"cohort": name, **found}


def _way(found: dict[str, Any]) -> Table:
    """Return the way in the order of its moments, as far as they are known."""
    from cema.cli.tables import FittedTable

    table = FittedTable("moment", "UTC", "seconds")
    before = None
    for name, moment in way_of(found):
        table.add_row(name, utc(moment), "" if before is None else f"{moment - before:+.3f}")
        before = moment
    return table


def way_of(found: dict[str, Any]) -> list[tuple[str, float]]:
    """Return the moments of a trace by name, in the order in which they belong.

    Examples
    --------
    >>> step = {"begin": 7.0, "seconds": 1.0, "captured": [2.0, 4.0], "received": [3.0, 5.0]}
    >>> trace = {"steps": [step], "evidence_at": 8.0, "published_at": 8.5, "devices": {}}
    >>> [moment for _, moment in way_of(trace)]
    [2.0, 4.0, 3.0, 5.0, 7.0, 8.0, 8.0, 8.5]
    """
    steps, devices = found["steps"], found["devices"].values()
    moments: list[tuple[str, float | None]] = []
    if steps:
        moments += [
            ("first sample captured", min(step["captured"][0] for step in steps)),
            ("last sample captured", max(step["captured"][1] for step in steps)),
            ("first sample received", min(step["received"][0] for step in steps)),
            ("last sample received", max(step["received"][1] for step in steps)),
            ("first step began", steps[0]["begin"]),
            ("last step ended", steps[-1]["begin"] + steps[-1]["seconds"]),
        ]
    moments += [("the gate had its samples", found["evidence_at"]), ("published", found["published_at"])]
    for name, key in (("first fetched", "fetched_at"), ("first reported running", "received_at")):
        moments.append((name, min((d[key] for d in devices if d[key] is not None), default=None)))
    return [(name, moment) for name, moment in moments if moment is not None]


def _counts(found: dict[str, Any]) -> str:
    counts = f"{found['samples']} samples, {found['replays']} replay-only steps"
    said = ", ".join(f"{count} {outcome}" for outcome, count in found["outcomes"].items())
    rest = found["steps_left_out"]
    left_out = f"; {rest} steps after the first are not told" if rest else ""
    return f"{counts}; the gate: {said or 'was not asked'}{left_out}"


def _steps(found: dict[str, Any]) -> Table:
    from cema.cli.tables import FittedTable

    table = FittedTable("step began", "seconds", "samples", "devices")
    for step in found["steps"]:
        table.add_row(
            utc(step["begin"]), f"{step['seconds']:.3f}", str(step["samples"]), str(step["devices"])
        )
    return table


def _devices(found: dict[str, Any]) -> Table:
    from cema.cli.tables import FittedTable

    table = FittedTable("device", "fetched", "first sample of it received", "captured")
    for name, device in found["devices"].items():
        table.add_row(name, *(utc(device[key]) for key in ("fetched_at", "received_at", "captured_at")))
    return table
