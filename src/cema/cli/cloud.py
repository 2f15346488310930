"""`cema cloud`: run the service, see where it stands, and have it do things."""

from __future__ import annotations

from typing import Annotated

import typer

from cema.cli import audit as audits
from cema.cli import backup as backups
from cema.cli.cohorts import AsJson, Config, JsonNotText, OneCohort

__all__ = ["app"]

To = Annotated[
    int, typer.Option("--to", min=1, help="The version; `cema cloud versions` lists those that are kept.")
]
OneDevice = Annotated[
    str | None, typer.Option("--device", help="The one device.", show_default="all of the cohort")
]
Wait = Annotated[
    bool,
    typer.Option(help="Wait until the worker has signed it, for 20 seconds at most.", show_default="wait"),
]

app = typer.Typer(
    help="Run the cloud service, watch it, act on it, back it up.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command("audit")(audits.audit)
app.command("backup")(backups.backup)
app.command("restore")(backups.restore)


@app.callback()
def cloud() -> None:
    """Run the cloud service, watch it, act on it, back it up."""


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
    """Serve the HTTP API and run the worker.

    It stops on SIGTERM or Ctrl-C.
    """
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
    """Tell where cohorts stand and whether it helps.

    It reads the store of a cloud that runs or not.
    """
    from cema.cli.cloud_status import read_status, status_tables, watched
    from cema.cli.cohorts import opened

    with opened(config) as (settings, store):
        watched(lambda: read_status(settings, store, cohort), status_tables, json=json, again=watch)


@app.command()
def versions(config: Config, cohort: OneCohort = None, json: AsJson = False) -> None:
    """List the versions that are kept.

    It tells when and how they came about, and how well they do.
    """
    from cema.cli.cloud_acts import print_versions

    print_versions(config, cohort, json=json)


@app.command()
def rollback(
    to: To, config: Config, cohort: OneCohort = None, wait: Wait = True, json: JsonNotText = False
) -> None:
    """Give devices the content of an earlier version.

    It is signed anew. What was learned is forgotten, and learning goes on.
    """
    from cema.cli.cloud_acts import do
    from cema.cloud.store.control import Rollback

    do(config, cohort, Rollback(to=to), json=json, wait=wait)


@app.command()
def pin(
    to: To,
    config: Config,
    cohort: OneCohort = None,
    device: OneDevice = None,
    wait: Wait = True,
    json: JsonNotText = False,
) -> None:
    """Give devices one version, and nothing else.

    Nothing else is published until resume. With --device, one device alone keeps the content of the version.
    """
    from cema.cli.cloud_acts import do
    from cema.cloud.store.control import Pin

    do(config, cohort, Pin(to=to, device=device), json=json, wait=wait)


@app.command()
def release(to: To, config: Config, cohort: OneCohort = None, json: JsonNotText = False) -> None:
    """Let a version that waits be for all devices.

    It was for canary devices, or for none yet.
    """
    from cema.cli.cloud_acts import do
    from cema.cloud.store.control import Release

    do(config, cohort, Release(to=to), json=json, wait=False)


@app.command()
def canary(
    config: Config,
    first: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="The share of devices that try a version first.", show_default="as configured"
        ),
    ] = None,
    cohort: OneCohort = None,
    json: JsonNotText = False,
) -> None:
    """Let more or fewer devices try new versions first.

    It holds until the next such command, over restarts too. Without --first, the share is as configured again.
    """
    from cema.cli.cloud_acts import do
    from cema.cloud.store.control import Canary
    from cema.errors import ConfigError

    if first is not None and not 0 < first <= 1:
        raise ConfigError(f"--first: expected a share above 0, up to 1, got {first:g}")
    do(config, cohort, Canary(first=first), json=json, wait=False)


@app.command()
def pause(config: Config, cohort: OneCohort = None, json: JsonNotText = False) -> None:
    """Publish nothing until resume.

    Devices keep the newest version.
    """
    from cema.cli.cloud_acts import do
    from cema.cloud.store.control import Pause

    do(config, cohort, Pause(), json=json, wait=False)


@app.command()
def resume(
    config: Config,
    cohort: OneCohort = None,
    device: OneDevice = None,
    wait: Wait = True,
    json: JsonNotText = False,
) -> None:
    """Publish again what is learned.

    It is the end of pause, pin and stop. With --device, one device gets again what all others have.
    """
    from cema.cli.cloud_acts import do
    from cema.cloud.store.control import Resume

    do(config, cohort, Resume(device=device), json=json, wait=wait)


@app.command()
def stop(config: Config, cohort: OneCohort = None, wait: Wait = True, json: JsonNotText = False) -> None:
    """In an emergency: give devices the source model.

    Nothing else is published until resume.
    """
    from cema.cli.cloud_acts import do
    from cema.cloud.store.control import Stop

    do(config, cohort, Stop(), json=json, wait=wait)


@app.command()
def acts(
    config: Config,
    cohort: OneCohort = None,
    limit: Annotated[int, typer.Option(min=1, help="So many of the newest.")] = 100,
    json: AsJson = False,
) -> None:
    """List what operators had a cohort do.

    It tells when, who, what, and the version that came of it.
    """
    from cema.cli.cloud_acts import print_acts

    print_acts(config, cohort, limit=limit, json=json)
