"""`cema edge`: run a device."""

from __future__ import annotations

import enum
import sys
from typing import Annotated

import typer

from cema.cli.cohorts import EdgeFile

__all__ = ["app"]


class _Form(enum.StrEnum):
    TEXT = "text"
    JSON = "json"


app = typer.Typer(help="Run an edge device.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def edge() -> None:
    """Run an edge device."""


@app.command()
def run(
    source: Annotated[
        str,
        typer.Option(
            help="A folder of images, a .npy file of uint8 NHWC images, a video file, the URL of a stream (rtsp://, "
            "rtmp://, http:// …), camera:0, or env:NAME: what that variable holds."
        ),
    ],
    config: EdgeFile,
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
    every: Annotated[
        float,
        typer.Option(help="Of a video, stream or camera, one frame in so many seconds; 0: all frames."),
    ] = 0.0,
    lines: Annotated[
        _Form | None,
        typer.Option(
            help="What is printed: a plain line for each image, or JSON with all that is known.",
            show_default="text on a terminal, else json",
        ),
    ] = None,
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
    """Predict a source image by image and print what happens.

    Each image has a line with its file or frame, its class and the probability of that; a terminal gets it as text, a
    program as JSON.
    """
    from cema._util.logs import start_logging
    from cema.edge.config import EdgeConfig
    from cema.edge.lines import as_json, as_text
    from cema.edge.program import run as run_program

    permits = None
    if step_on_line or stop_on_eof:
        from cema._util import lifetime

        if step_on_line:
            permits = lifetime.count_lines()
        else:
            lifetime.stop_on_eof()
    settings = EdgeConfig.load(config)
    text = sys.stdout.isatty() if lines is None else lines is _Form.TEXT
    # Libraries of HTTP log addresses, and in detail headers: only their warnings are of use here.
    # What is a warning is a line of the text, too: a person need not read it twice.
    level = "error" if text and settings.log.level == "warning" else settings.log.level
    start_logging("edge", form=settings.log.format, level=level, others="warning")
    status = run_program(
        settings,
        source,
        rate=rate,
        batch=batch,
        linger=linger,
        follow=follow,
        every=every,
        out=sys.stdout,
        form=as_text() if text else as_json,
        permits=permits,
    )
    raise typer.Exit(status)
