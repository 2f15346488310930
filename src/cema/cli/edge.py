"""`cema edge`: run a device."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(help="Run an edge device.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def edge() -> None:
    """Run an edge device."""


@app.command()
def run(
    config: Annotated[Path, typer.Option(help="The device's configuration (TOML).")],
    source: Annotated[Path, typer.Option(help="A folder of images, or a .npy file of uint8 NHWC images.")],
    rate: Annotated[
        float | None,
        typer.Option(help="Images per second at most, over 0.", show_default="as fast as it goes"),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per prediction.")] = 1,
    linger: Annotated[float, typer.Option(help="Seconds (0 or more) to wait at the end for uploads.")] = 30.0,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            show_default="off",
            help="Go on with images that come into the folder, until a signal.",
        ),
    ] = False,
    stop_on_eof: Annotated[
        bool,
        typer.Option(
            "--stop-on-eof", show_default="off", help="Stop when standard input ends: for a parent process."
        ),
    ] = False,
    step_on_line: Annotated[
        bool,
        typer.Option(
            "--step-on-line",
            show_default="off",
            help="Predict one batch for each line of standard input, and stop when it ends: for a parent process.",
        ),
    ] = False,
) -> None:
    """Predict a source image by image and print what happens as JSON lines."""
    from cema._util.logs import start_logging
    from cema.edge.config import EdgeConfig
    from cema.edge.program import run as run_program

    permits = None
    if step_on_line or stop_on_eof:
        from cema._util import lifetime

        if step_on_line:
            permits = lifetime.count_lines()
        else:
            lifetime.stop_on_eof()
    settings = EdgeConfig.load(config)
    # Libraries of HTTP log addresses, and in detail headers: only their warnings are of use here.
    start_logging("edge", form=settings.log.format, level=settings.log.level, others="warning")
    status = run_program(
        settings,
        source,
        rate=rate,
        batch=batch,
        linger=linger,
        follow=follow,
        out=sys.stdout,
        permits=permits,
    )
    raise typer.Exit(status)
