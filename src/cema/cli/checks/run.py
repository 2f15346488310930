"""All checks of a folder, one after the other, and their lines."""

from __future__ import annotations

import json as json_
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import typer

from cema.cli.checks.base import Check, NotTried, Result, Wrong
from cema.cli.checks.cloud import cloud_checks, is_running
from cema.cli.checks.edge import clock_check, edge_checks

if TYPE_CHECKING:
    from cema.cloud.config import CloudConfig
    from cema.edge.config import EdgeConfig

__all__ = ["check_all"]

_CLOUD, _EDGE = Path("cloud.toml"), Path("edge.toml")
_MARKS = {True: "✓", False: "✗", None: "–"}
_PLAIN_MARKS = {True: "ok", False: "NO", None: "--"}
_WIDTH = 16


def check_all(cloud: Path | None, edge: Path | None, *, json: bool) -> bool:
    """Carry out every check, and print a line for each as it is done.

    Parameters
    ----------
    cloud, edge : Path or None
        The configurations. Where neither is given, those of the current folder.
    json : bool
        Print one JSON object at the end in place of lines.

    Returns
    -------
    bool
        Whether nothing is wrong.
    """
    from rich.console import Console

    if cloud is None and edge is None:
        cloud, edge = (path if path.exists() else None for path in (_CLOUD, _EDGE))
    results: list[Result] = []
    with Console(stderr=True).status("checking") as status:
        for check in _Setup(cloud, edge).checks():
            status.update(f"checking: {check.name}")
            results.append(check.carry_out())
            if not json:
                _print(results[-1])
    well = all(each.ok is not False for each in results)
    if json:
        typer.echo(json_.dumps({"ok": well, "checks": [each.as_dict() for each in results]}))
    return well


class _Setup:
    """What there is to check; each configuration, once it was read."""

    def __init__(self, cloud: Path | None, edge: Path | None) -> None:
        self._cloud_path, self._edge_path = cloud, edge
        self._cloud: CloudConfig | None = None
        self._edge: EdgeConfig | None = None

    def checks(self) -> Iterator[Check]:
        """Yield check after check; each is to be carried out before the next is asked for."""
        remedy = (
            "correct the file; docs/configuration.md explains it, and `cema init DIR` makes one that is right"
        )
        yield Check("cloud.toml", self._read_cloud, remedy)
        yield Check("edge.toml", self._read_edge, remedy)
        if self._cloud is not None:
            yield from cloud_checks(self._cloud)
        if self._edge is not None:
            known = () if self._cloud is None else (cohort.bundle for cohort in self._cloud.cohort)
            other = self._edge.bundle not in known
            yield from edge_checks(self._edge, bundle=other, waits=self._cloud_does_not_run)
        else:
            yield clock_check()

    def _read_cloud(self) -> str:
        from cema.cloud.config import CloudConfig

        if self._cloud_path is None:
            if self._edge_path is None:
                raise Wrong(
                    f"there is no cloud.toml and no edge.toml in {Path.cwd()}",
                    "go to their folder, name them with --config and --device, or make some: cema init DIR",
                )
            raise NotTried("none here: this is a device")
        self._cloud = CloudConfig.load(self._cloud_path)
        names = ", ".join(cohort.name for cohort in self._cloud.cohort)
        return f"{self._cloud_path}: cohort {names}"

    def _read_edge(self) -> str:
        from cema.edge.config import EdgeConfig

        if self._edge_path is None:
            raise NotTried("none here" + (": this is a cloud" if self._cloud_path else ""))
        self._edge = EdgeConfig.load(self._edge_path)
        cohort = (
            "talks to no cloud" if self._edge.cloud is None else f"of the cohort {self._edge.cloud.cohort}"
        )
        return f"{self._edge_path}: a device {cohort}"

    def _cloud_does_not_run(self) -> str | None:
        """Say that the cloud of this very folder was not started yet, where that is so."""
        if self._cloud is None or self._edge is None or self._edge.cloud is None:
            return None
        url = urlsplit(self._edge.cloud.url)
        of_this_machine = {"127.0.0.1", "::1", "localhost", self._cloud.host}
        if url.port != self._cloud.port or url.hostname not in of_this_machine or is_running(self._cloud):
            return None
        return "the cloud does not run yet: `cema cloud serve` starts it"


def _print(result: Result) -> None:
    """Print a line, and the remedy below it; without the marks where the terminal has no such letters."""
    try:
        _MARKS[result.ok].encode(sys.stdout.encoding or "utf-8")
        marks, arrow = _MARKS, "→"
    except UnicodeEncodeError:
        marks, arrow = _PLAIN_MARKS, "->"
    typer.echo(f"{marks[result.ok]} {result.name:<{_WIDTH}} {result.detail}")
    if result.remedy:
        typer.echo(f"  {arrow} {result.remedy}")
