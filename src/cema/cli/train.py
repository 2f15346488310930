"""`cema train`: the recipes of the weights that ship with the package."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(
    help="Train the models that ship with the package.", no_args_is_help=True, rich_markup_mode=None
)


class _Pair(enum.StrEnum):
    CNN = "cnn"
    VIT = "vit"
    ALL = "all"


@app.callback()
def train() -> None:
    """Train the models that ship with the package."""


@app.command()
def digits(
    out: Annotated[Path, typer.Option(help="The folder that gets the weights and their records.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of initialisation, order and augmentation.")] = 0,
    pair: Annotated[
        _Pair,
        typer.Option(
            help="Convolutional networks (two minutes), Vision Transformers (a quarter of an hour), or all."
        ),
    ] = _Pair.CNN,
) -> None:
    """Train a digits pair: a plainly trained edge model and a robust foundation model."""
    from rich.console import Console
    from rich.progress import Progress

    from cema.recipes.digits import train_digits

    console = Console()
    with Progress(console=console) as progress:
        tasks = {}

        def show(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total)
            progress.update(tasks[name], completed=done)

        records = train_digits(out, seed=seed, pair=pair.value, progress=show)
    for name, record in records.items():
        console.print(f"{name}: {record['clean_accuracy']:.2f} % on clean test images, {record['seconds']} s")
    console.print(f"weights and records: {out}")
