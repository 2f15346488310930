"""The store of a configured cloud, and its cohorts, for commands that work on it whether it runs or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cema.errors import ConfigError

if TYPE_CHECKING:
    from cema.cloud.config import CloudConfig
    from cema.cloud.store.base import Store

__all__ = ["AsJson", "Config", "EdgeFile", "JsonNotText", "OneCohort", "one_cohort", "opened", "utc"]

Config = Annotated[
    Path,
    typer.Option(
        default_factory=lambda: Path("cloud.toml"),
        show_default="cloud.toml in this folder",
        help="The cloud's configuration (TOML).",
    ),
]
EdgeFile = Annotated[
    Path,
    typer.Option(
        default_factory=lambda: Path("edge.toml"),
        show_default="edge.toml in this folder",
        help="The device's configuration (TOML).",
    ),
]
OneCohort = Annotated[
    str | None, typer.Option(help="The cohort.", show_default="the only one of the configuration")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON in place of a table.", show_default="a table")
]

JsonNotText = Annotated[
    bool, typer.Option("--json", help="Print JSON in place of text.", show_default="text")
]


@contextmanager
def opened(path: Path) -> Iterator[tuple[CloudConfig, Store]]:
    """Open the store of a configured cloud for the block.

    Raises
    ------
    ConfigError, StoreError
        As `CloudConfig.load` and `CloudConfig.open_store`.
    """
    from cema.cloud.config import CloudConfig

    config = CloudConfig.load(path)
    with closing(config.open_store()) as store:
        yield config, store


def one_cohort(config: CloudConfig, given: str | None) -> str:
    """Return the name of a cohort that was given, or of the only one that there is.

    Raises
    ------
    ConfigError
        There are several and none was given, or none of that name.
    """
    names = [cohort.name for cohort in config.cohort]
    if given is None and len(names) == 1:
        return names[0]
    if given not in names:
        told = "no --cohort" if given is None else f"{given!r}"
        raise ConfigError(f"--cohort: expected one of {', '.join(names)}, got {told}")
    return given


def utc(seconds: float | None, *, milliseconds: bool = True) -> str:
    """Return a moment as people read it; empty for None.

    Examples
    --------
    >>> utc(1002.5), utc(1002.5, milliseconds=False), utc(1e300)
    ('1970-01-01 00:16:42.500', '1970-01-01 00:16:42', '1e+300 s')
    """
    if seconds is None:
        return ""
    try:
        text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
    except (ValueError, OverflowError, OSError):  # a device's clock may say anything
        return f"{seconds:.16g} s"
    return text[:-3] if milliseconds else text[:-7]
