"""`cema cloud backup` and `cema cloud restore`."""

from __future__ import annotations

import json as json_
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cema.cli.actor import command_line_actor
from cema.cli.cohorts import Config, JsonNotText, utc

if TYPE_CHECKING:
    from cema.cloud.backup import RestoredCloud
    from cema.cloud.store.backups import Content

__all__ = ["backup", "restore"]


def backup(
    config: Config,
    out: Annotated[Path, typer.Option(help="The backup: a new file, readable by you alone.")],
    json: JsonNotText = False,
) -> None:
    """Copy the store of a cloud, running or not, to one checked file.

    The file holds samples, updates, the state of the adaptation and the hashes of tokens. It holds neither the
    configuration nor the signing key nor models: keep those too.
    """
    from cema.cloud.backup import backup as run
    from cema.cloud.config import CloudConfig

    loaded = CloudConfig.load(config)
    with _progress("copying", shown=not json) as tell:
        content = run(loaded, out, tell, actor=command_line_actor())
    if json:
        typer.echo(json_.dumps({"backup": str(out), **_content(content)}))
        return
    typer.echo(f"{out}: {_told(content)}")
    for name, held in content.cohorts.items():
        typer.echo(f"  cohort {name}: version {held.version}, {held.samples} samples")


def restore(
    file: Annotated[Path, typer.Argument(help="The backup. It stays as it is.")],
    config: Config,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            show_default="off",
            help="Take the place of a store, which is kept under another name.",
        ),
    ] = False,
    next_version: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2**53 - 1,
            help="The number that the next version of every cohort has at least.",
            show_default="above all that may have been published since the backup",
        ),
    ] = None,
    json: JsonNotText = False,
) -> None:
    """Make a backup the store of a cloud that does not run.

    No number of a version is used again that devices may have seen since the backup was made.
    """
    from cema.cloud.backup import restore as run
    from cema.cloud.config import CloudConfig

    loaded = CloudConfig.load(config)
    with _progress("restoring", shown=not json) as tell:
        done = run(
            loaded,
            file,
            replace=replace,
            next_version=next_version,
            progress=tell,
            actor=command_line_actor(),
        )
    if json:
        typer.echo(json_.dumps(_restored(file, done)))
        return
    typer.echo(f"restored {file}: {_told(done.content)}")
    for name, version in done.next_versions.items():
        typer.echo(f"  cohort {name}: the next version has at least number {version}")
    if done.store.kept:
        typer.echo(f"what was there is kept: {', '.join(map(str, done.store.kept))}")
    typer.echo(_tokens(done))


def _tokens(done: RestoredCloud) -> str:
    made_at = _moment(done.content.made_at)
    text = (
        f"tokens and revocations are those of the backup ({made_at}): what was added, renewed or revoked since has to "
        "be done again"
    )
    back = done.store.tokens_back
    if back is None:
        return f"{text}; see `cema device list`"
    return f"{text}; tokens that are good again: {', '.join(back) or 'none'}"


def _restored(file: Path, done: RestoredCloud) -> dict[str, Any]:
    back = done.store.tokens_back
    return {
        "restored": str(file),
        **_content(done.content),
        "next_versions": dict(done.next_versions),
        "kept": [str(path) for path in done.store.kept],
        "tokens_back": None if back is None else list(back),
    }


def _content(content: Content) -> dict[str, Any]:
    return {
        "made_at": content.made_at,
        "bytes": content.size,
        "cohorts": {
            name: {"version": held.version, "samples": held.samples} for name, held in content.cohorts.items()
        },
        "devices": content.devices,
        "revoked": content.revoked,
    }


def _told(content: Content) -> str:
    return (
        f"{content.size} bytes, made at {_moment(content.made_at)}, cohorts: {len(content.cohorts)}, "
        f"devices and operators: {content.devices} (revoked: {content.revoked}); checked"
    )


def _moment(seconds: float | None) -> str:
    return "an unknown time" if seconds is None else f"{utc(seconds, milliseconds=False)} UTC"


@contextmanager
def _progress(what: str, *, shown: bool) -> Iterator[Callable[[int, int], None]]:
    """Give what draws how far a copy is, on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not (shown and console.is_terminal)
    ) as bar:
        task = bar.add_task(what, total=None)

        def tell(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield tell
