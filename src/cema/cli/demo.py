"""`cema demo`: the whole system on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]


def demo(
    model: Annotated[
        str, typer.Option(help="The edge model: any name that `cema export` takes.")
    ] = "digits-cnn",
    foundation: Annotated[str, typer.Option(help="The foundation model.")] = "digits-cnn-foundation",
    images: Annotated[
        Path | None, typer.Option(help="A folder DIR/<class>/*.JPEG.", show_default="the embedded digits")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Predictions per edge; rounded up to whole segments.",
            show_default="6000; 1000 with --images",
        ),
    ] = None,
    edges: Annotated[int, typer.Option(min=1, max=16, help="Edge processes.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Orders the streams and draws the corruptions.")] = 0,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            help="Images per second and edge, whether or not the cloud's worker can follow.",
            show_default="60, or 2 with --images, and slower where the worker needs it",
        ),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="Write the results to this file.", show_default="not written")
    ] = None,
    plot: Annotated[Path, typer.Option(help="Where the plot goes.")] = Path("cema-demo.png"),
    report: Annotated[
        Path | None,
        typer.Option(
            help="Write report.html, one file that opens anywhere, and results.json into this folder.",
            show_default="not written",
        ),
    ] = None,
    open_page: Annotated[
        bool,
        typer.Option(
            "--open", show_default="off", help="Open the cloud's page in a browser, with true accuracy."
        ),
    ] = False,
    workspace: Annotated[
        Path | None,
        typer.Option(
            help="Keep keys, configurations, logs and state in this new folder.",
            show_default="a temporary one",
        ),
    ] = None,
) -> None:
    """Run one cloud and several edge processes on a stream that drifts, beside a frozen copy of the edge model."""
    from rich.console import Console

    from cema.demo.run import run_demo
    from cema.demo.settings import DemoSettings

    settings = DemoSettings.make(
        model=model,
        foundation=foundation,
        images=images,
        samples=samples,
        edges=edges,
        seed=seed,
        rate=rate,
        json=json,
        plot=plot,
        report=report,
        page=open_page,
        workspace=workspace,
    )
    run_demo(settings, Console())
