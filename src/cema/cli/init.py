"""`cema init`: a folder with all that a first run needs."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cema.provision.new_fleet import MadeFleet, NewFleet

__all__ = ["init"]

_MODEL, _COHORT, _DEVICE = "digits-cnn", "yard", "camera-1"

_NAMED = "A built-in name, timm:NAME, torchvision:NAME, hf:NAME_OR_DIR, or package.module:function or FILE.py:function"


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A new or an empty folder.", show_default="this folder")
    ] = Path(),
    model: Annotated[
        str | None, typer.Option(help=f"The model that devices run. {_NAMED}.", show_default=_MODEL)
    ] = None,
    foundation: Annotated[
        str | None,
        typer.Option(
            help="The stronger model that teaches it, named in the same way.",
            show_default="the one that goes with a built-in model",
        ),
    ] = None,
    model_weights: Annotated[
        Path | None,
        typer.Option(help="A safetensors file for the model.", show_default="what the model comes with"),
    ] = None,
    foundation_weights: Annotated[
        Path | None,
        typer.Option(help="The same for the stronger one.", show_default="what the model comes with"),
    ] = None,
    cohort: Annotated[
        str | None,
        typer.Option(help="A name for the devices that share model and environment.", show_default=_COHORT),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="The name of the first device.", show_default=_DEVICE)
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address that the cloud listens on; 0.0.0.0 for every one.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65_535, help="The cloud's port.", show_default="8080, or the next that is free"
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="The cloud's address as devices see it.", show_default="of this machine"),
    ] = None,
    yes: Annotated[
        bool,
        typer.Option(
            "--yes", "-y", help="Ask nothing: take the defaults.", show_default="ask, on a terminal"
        ),
    ] = False,
) -> None:
    """Make a fleet to start from: keys, settings, a bundle, tokens, sample images.

    On a terminal it asks for what was not given. Where anything fails, the folder stays as it was.
    """
    from rich.console import Console

    from cema.provision.new_fleet import FOUNDATIONS, NewFleet, write_new_fleet
    from cema.provision.staging import check_empty

    check_empty(folder)
    asks = not yes and sys.stdin.isatty()

    def asked(given: str | None, question: str, default: str) -> str:
        if given is not None or not asks:
            return given or default
        answer: str = typer.prompt(question, default=default, err=True)
        return answer

    model = asked(model, "Model that devices run", _MODEL)
    if foundation is None and asks:
        foundation = typer.prompt("Stronger model that teaches it", default=FOUNDATIONS.get(model), err=True)
    new = NewFleet(
        folder=folder,
        model=model,
        foundation=foundation,
        model_weights=model_weights,
        foundation_weights=foundation_weights,
        cohort=asked(cohort, "Name of the cohort", _COHORT),
        device=asked(device, "Name of the first device", _DEVICE),
        host=host,
        port=port,
        url=url,
    )
    with Console(stderr=True).status("starting") as status:
        made = write_new_fleet(new, status.update)
    _tell(new, made)


def _tell(new: NewFleet, made: MadeFleet) -> None:
    """Say what there is now, and what to do next."""
    manifest = made.report.bundle.manifest
    typer.echo(
        f"made      {new.folder.absolute()}\n"
        f"model     {manifest.model}, {manifest.classes} classes, {made.report.model_bytes / 1e6:.2f} MB\n"
        f"cohort    {new.cohort}, with the device {new.device}\n"
        f"cloud     port {made.port} of {new.host}\n"
        f"images    {made.images} sample images\n\n"
        "Next, the last two in a terminal of their own each:\n"
    )
    here = new.folder.absolute() == Path.cwd()
    commands = ["cema check", "cema cloud serve", "cema edge run --source images"]
    for command in commands if here else [f"cd {shlex.quote(str(new.folder))}", *commands]:
        typer.echo(f"  {command}")
    typer.echo(
        f"\nhttp://127.0.0.1:{made.port}/ in a browser shows the fleet: sign in with what is in admin.token.\n"
        "README.md in the folder says what each file is, and which are secret."
    )
