"""`cema check`: whether all is well here, or the accuracy of every stored version on labelled images."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cema.cli.cohorts import AsJson, OneCohort, one_cohort, opened, utc
from cema.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from rich.table import Table

    from cema.cloud.store.base import Store
    from cema.edge.check import Answered, InstalledVersion
    from cema.edge.config import EdgeConfig

__all__ = ["check"]


def check(
    labels: Annotated[
        str | None,
        typer.Option(
            help="Measure versions on labelled images: a folder with a folder for each class, or what `cema bench "
            "--data` takes.",
            show_default="look whether all is well",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="The cloud's configuration (TOML).", show_default="cloud.toml in this folder"),
    ] = None,
    cohort: OneCohort = None,
    version: Annotated[
        list[int] | None,
        typer.Option(
            help="Only this version, beside the source model; may be repeated.",
            show_default="all that are kept",
        ),
    ] = None,
    device: Annotated[
        Path | None,
        typer.Option(
            help="A device's configuration (TOML); with --labels, answer as it would.",
            show_default="edge.toml in this folder; with --labels, the defaults of a device",
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="So many images, drawn at random.", show_default="all")
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws and orders the images.")] = 0,
    json: AsJson = False,
) -> None:
    """Look whether all is well: settings, keys, bundle, models, port, disk, clock, connection.

    It looks at what this folder has of cloud.toml and edge.toml, and ends with status 1 where something is wrong.

    With --labels it measures the accuracy of the source model and of every stored version on labelled images. Each
    version answers as a new device would that has it installed, with statistics of its own.
    """
    if labels is None:
        from cema.cli.checks.run import check_all

        given = {"--cohort": cohort, "--version": version, "--samples": samples}
        if only := [name for name, value in given.items() if value]:
            raise ConfigError(f"{', '.join(only)}: only for --labels; leave it out, or name labelled images")
        raise typer.Exit(0 if check_all(config, device, json=json) else 1)
    from cema.data.dataset import open_dataset

    dataset = open_dataset(labels, cache=None, seed=seed, limit=samples)
    with opened(config or Path("cloud.toml")) as (settings, store):
        name = one_cohort(settings, cohort)
        bundle = next(each.bundle for each in settings.cohort if each.name == name)
        kept = _versions(store, name, bundle, version)
    found = _measure(dataset, _device(device, bundle), kept, seed, show=not json)
    found = {"cohort": name, "labels": labels, **found}
    if json:
        typer.echo(json_.dumps(found))
        return
    from rich.console import Console

    console = Console()
    if found["classes"]:
        console.print(found["classes"], highlight=False)
    console.print(_table(found["versions"]))


def _device(path: Path | None, bundle: str) -> EdgeConfig:
    from cema.edge.config import EdgeConfig

    if path is None:
        return EdgeConfig(bundle=bundle, state="")
    import msgspec

    return msgspec.structs.replace(EdgeConfig.load(path), bundle=bundle)


def _versions(
    store: Store, cohort: str, bundle: str, wanted: Sequence[int] | None
) -> list[tuple[float, InstalledVersion]]:
    """Return the versions to measure, each with when it was created."""
    from cema.cloud.signing.trust import cohort_keyring
    from cema.cloud.store.bases import base_at, periods_of
    from cema.cloud.store.control import control_of
    from cema.edge.check import InstalledVersion
    from cema.formats.bundle import Bundle

    loaded, periods = Bundle.load(Path(bundle)), periods_of(store, cohort)
    keyring = cohort_keyring(store, cohort, loaded)
    # Versions for a base model of before run on no device with this bundle.
    records = {
        record.version: record
        for record in control_of(store).versions(cohort)
        if base_at(periods, record.version) in {None, loaded.manifest.base}
    }
    if missing := sorted(set(wanted or ()) - records.keys()):
        raise ConfigError(
            f"--version: expected one that is kept ({', '.join(map(str, records)) or 'none yet'}), got "
            f"{', '.join(map(str, missing))}"
        )
    found = []
    for record in records.values():
        payload = store.artifact(cohort, record.digest)
        if payload is not None and (not wanted or record.version in wanted):
            installed = InstalledVersion(record.version, record.envelope, payload, keyring)
            found.append((record.created, installed))
    return found


def _measure(
    dataset: Any, device: EdgeConfig, kept: Sequence[tuple[float, InstalledVersion]], seed: int, *, show: bool
) -> dict[str, Any]:
    """Let a device answer once with each version, and compare with the labels."""
    import numpy as np
    from rich.console import Console
    from rich.progress import Progress

    from cema.data.class_order import class_columns
    from cema.edge.check import answers
    from cema.formats.bundle import Bundle

    manifest = Bundle.load(Path(device.bundle)).manifest
    columns, said = class_columns(dataset, manifest.classes, manifest.labels, manifest.model)
    clean = dataset.clean()
    # In the order of their folders images of one class would follow each other: no camera sees that.
    order = np.random.default_rng(seed).permutation(len(clean))
    images, truth = [clean.images[i] for i in order], np.asarray(clean.labels)[order]
    scored = dataset.logits if columns is None else columns
    rows = []
    with Progress(console=Console(stderr=True), disable=not show, transient=True) as progress:
        task = progress.add_task("images", total=len(images) * (len(kept) + 1))
        for created, installed in [(None, None), *kept]:
            answered = answers(device, images, installed=installed)
            progress.advance(task, len(images))
            version = 0 if installed is None else installed.version
            rows.append({"version": version, "created": created} | _score(answered, truth, scored))
    return {"classes": said, "versions": rows}


def _score(answered: Answered, truth: np.ndarray, scored: Any) -> dict[str, Any]:
    import msgspec

    from cema._util.proportion import proportion

    logits = answered.logits if scored is None else answered.logits[:, list(scored)]
    found = proportion(len(truth), int((logits.argmax(axis=1) == truth).sum()))
    return {"accuracy": msgspec.to_builtins(found), "guarded": answered.guarded}


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table("version", "created, UTC", "accuracy, %", "standard error", "images", "guarded")
    for row in rows:
        accuracy = row["accuracy"]
        table.add_row(
            "source" if row["version"] == 0 else str(row["version"]),
            utc(row["created"], milliseconds=False),
            f"{100 * accuracy['share']:.1f}",
            f"{100 * accuracy['standard_error']:.1f}",
            str(accuracy["samples"]),
            str(row["guarded"]),
        )
    return table
