"""`cema cloud`: run the service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cema.cli import audit as audits
from cema.cli import backup as backups

__all__ = ["app"]

app = typer.Typer(
    help="Run the cloud service, back it up and restore it.", no_args_is_help=True, rich_markup_mode=None
)
app.command("audit")(audits.audit)
app.command("backup")(backups.backup)
app.command("restore")(backups.restore)


@app.callback()
def cloud() -> None:
    """Run the cloud service, back it up and restore it."""


@app.command()
def serve(
    config: Annotated[Path, typer.Option(help="The cloud's configuration (TOML).")],
    stop_on_eof: Annotated[
        bool,
        typer.Option(
            "--stop-on-eof", show_default="off", help="Stop when standard input ends: for a parent process."
        ),
    ] = False,
) -> None:
    """Serve the HTTP API and run the worker that adapts; stops on SIGTERM or Ctrl-C."""
    from cema.cloud.http.server import serve as run

    if stop_on_eof:
        from cema._util import lifetime

        lifetime.stop_on_eof()
    raise typer.Exit(run(config))
