"""The tree of commands."""

from __future__ import annotations

from typing import Annotated

import typer

from cema._util.version import __version__
from cema.cli import (
    bench,
    check,
    cloud,
    cohort,
    cost,
    data,
    demo,
    device,
    edge,
    export,
    init,
    keys,
    top,
    train,
    update,
)

__all__ = ["app"]

app = typer.Typer(
    name="cema",
    help="Keep deployed vision models right: forward-only edges, a cloud that adapts, tiny signed updates.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,  # plain help: what draws boxes takes longer to load than all else
)
app.command("cost", short_help="Compute the bytes and the money that a fleet costs.")(cost.cost)
app.command("demo", short_help="Run a cloud and several devices here, and plot the gain.")(demo.demo)
app.command("export", short_help="Export a torch classifier as a bundle for devices.")(export.export)
app.command("init", short_help="Make a fleet to start from: keys, settings, a bundle, tokens.")(init.init)
app.command("check", short_help="Look whether all is well here; or measure versions on labels.")(check.check)
app.command("top", short_help="Show where every cohort stands, in a terminal.")(top.top)
app.add_typer(bench.app, name="bench", short_help="Measure test-time adaptation on the same streams.")
app.add_typer(cloud.app, name="cloud")
app.add_typer(data.app, name="data")
app.add_typer(cohort.app, name="cohort")
app.add_typer(edge.app, name="edge")
app.add_typer(device.app, name="device")
app.add_typer(keys.app, name="keys")
app.add_typer(train.app, name="train")
app.add_typer(update.app, name="update")


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"cema {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Keep deployed vision models right: forward-only edges, a cloud that adapts, tiny signed updates."""
