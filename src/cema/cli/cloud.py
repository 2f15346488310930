"""`cema cloud`: run the service, and see where it stands."""

from __future__ import annotations

from typing import Annotated

import typer

from cema.cli.cohorts import AsJson, Config

__all__ = ["app"]

app = typer.Typer(
    help="Run the cloud service, and see where it stands.", no_args_is_help=True, rich_markup_mode=None
)


@app.callback()
def cloud() -> None:
    """Run the cloud service, and see where it stands."""


@app.command()
def serve(
    config: Config,
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


@app.command()
def status(
    config: Config,
    cohort: Annotated[
        str | None, typer.Option(help="Only this cohort.", show_default="all of the configuration")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on until Ctrl-C, every two seconds.", show_default="once")
    ] = False,
    json: AsJson = False,
) -> None:
    """Tell where cohorts stand and whether adaptation helps, from the store of a cloud that runs or not."""
    from cema.cli.cloud_status import read_status, status_tables, watched
    from cema.cli.cohorts import opened

    with opened(config) as (settings, store):
        watched(lambda: read_status(settings, store, cohort), status_tables, json=json, again=watch)
