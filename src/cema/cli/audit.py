"""`cema cloud audit`: who did what."""

from __future__ import annotations

import json as json_
from datetime import UTC, datetime
from typing import Annotated

import typer

from cema.cli.cohorts import Config, opened

__all__ = ["audit"]


def audit(
    config: Config,
    limit: Annotated[int, typer.Option(min=1, help="How many acts, the newest.")] = 100,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line.", show_default="a table")
    ] = False,
) -> None:
    """Tell who did what with devices, versions and backups.

    That is: who added, changed and removed devices, who rolled back, pinned, paused, stopped and resumed cohorts, and
    who made and restored backups.
    """
    from cema.cloud.store.audits import audits_of

    with opened(config) as (_, store):
        found = audits_of(store).newest_audit(limit)
    if json:
        for entry in found:
            act = entry.act
            line = {"seq": entry.seq, "time": _moment(entry.at, "T"), "actor": act.actor, "act": act.name}
            typer.echo(json_.dumps({**line, "subject": act.subject, "detail": dict(act.detail)}))
        return
    from rich.text import Text

    from cema.cli.tables import FittedTable, out

    table = FittedTable("time", "who", "act", "subject", "detail")
    for entry in found:
        detail = ", ".join(f"{name}: {value}" for name, value in entry.act.detail.items())
        cells = (_moment(entry.at, " "), entry.act.actor, entry.act.name, entry.act.subject, detail)
        table.add_row(*map(Text, cells))
    out().print(table)


def _moment(seconds: float, between: str) -> str:
    """Return a moment as RFC 3339 has it."""
    return f"{datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat(between, 'seconds')}Z"
