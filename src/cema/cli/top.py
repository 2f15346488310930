"""`cema top`: where every cohort stands, in a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cema.cli.cohorts import AsJson, Config, opened
from cema.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Group

    from cema.cli.tables import Newest

__all__ = ["top"]

DAY = 86_400.0
# Columns of the trend: three quarters of an hour each.
TREND = 32
# Bars from low to high agreement.
BARS = "▁▂▃▄▅▆▇█"
# The trend of a day moves slowly.
TREND_SECONDS = 30.0
LEVELS = {"ok": ("✓ ok", "green"), "warn": ("! look", "yellow"), "bad": ("✗ bad", "red")}

Read = Callable[[], dict[str, Any]]


def top(
    config: Config,
    url: Annotated[
        str | None,
        typer.Option(
            help="Ask a cloud over HTTP in place of reading its store.", show_default="the store of --config"
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="With --url: a file with an operator's token.", show_default="needed with --url"),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", show_default="again and again", help="Print it once, and stop.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Show where every cohort stands, every two seconds, until Ctrl-C: the overview of the page."""
    from cema.cli.cloud_status import watched

    with _reader(config, url, token_file) as read:
        watched(read, overview_tables, json=json, again=not once)


@contextmanager
def _reader(config: Path, url: str | None, token_file: Path | None) -> Iterator[Read]:
    if url is None:
        if token_file is not None:
            raise ConfigError(
                "--token-file: there is no --url that it is for; leave it out, or name the cloud"
            )
        with _of_store(config) as read:
            yield read
        return
    if token_file is None:
        raise ConfigError("--url: expected --token-file with an operator's token beside it")
    with _of_cloud(url, token_file) as read:
        yield read


@contextmanager
def _of_store(path: Path) -> Iterator[Read]:
    from cema.cloud.store.history import history_of
    from cema.cloud.store.overview import Overview

    with opened(path) as (config, store):
        traffic, names = config.traffic, [cohort.name for cohort in config.cohort]
        overview = Overview(store, price=traffic.price, currency=traffic.currency)
        history = history_of(store)

        def trend(cohort: str, since: float, until: float, seconds: int) -> list[tuple[float, float, float]]:
            bins = [] if history is None else history.history(cohort, since, until, seconds)
            known = ((each.at, each.measures.get(_RUNNING)) for each in bins)
            return [(at, *found) for at, found in known if found is not None]

        trends = _Trends(trend)

        def read() -> dict[str, Any]:
            at, cohorts = overview.read(names)
            return {"at": at, "cohorts": [one | {"trend": trends.of(one["cohort"], at)} for one in cohorts]}

        yield read


@contextmanager
def _of_cloud(url: str, token_file: Path) -> Iterator[Read]:
    import httpx2

    from cema._util.toml import read_text

    try:
        token = read_text(token_file).strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--token-file: {error}; put an operator's token there") from error
    headers = {"Authorization": f"Bearer {token}"}
    with httpx2.Client(base_url=url, headers=headers, timeout=10.0) as client:

        def get(path: str, **query: float) -> dict[str, Any]:
            try:
                answer = client.get(path, params=query)
                found: dict[str, Any] = answer.json()
            except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
                raise ConfigError(
                    f"--url: {url} does not answer as a cloud does: {error}; check it"
                ) from error
            if "error" in found:
                told = found["error"]
                raise ConfigError(f"--url: {url} refused: {told['message']}; {told['remedy']}")
            return found

        def trend(cohort: str, since: float, until: float, seconds: int) -> list[tuple[float, float, float]]:
            found = get(f"/v1/cohorts/{cohort}/history", since=since, until=until, points=TREND)
            sums = found["measures"].get(_RUNNING, {"count": [], "total": []})
            known = zip(found["at"], sums["count"], sums["total"], strict=False)
            return [(at, count, total) for at, count, total in known if count is not None]

        trends, last = _Trends(trend), dict[str, Any]()

        def read() -> dict[str, Any]:
            try:
                found = get("/v1/overview")
                cohorts = [one | {"trend": trends.of(one["cohort"], found["at"])} for one in found["cohorts"]]
            except ConfigError as error:
                if not last:
                    raise
                return last | {"error": str(error)}  # it may come back; what was known is still of use
            last.update(found | {"cohorts": cohorts})
            return dict(last)

        yield read


_RUNNING = "agreement.running"


class _Trends:
    """The agreement of running versions over a day, read every half a minute.

    Parameters
    ----------
    read : callable
        Given a cohort, since and until (unix seconds) and the width of a bin, returns for each bin its moment, the
        samples, and those on which the foundation model agreed.
    """

    def __init__(self, read: Callable[[str, float, float, int], list[tuple[float, float, float]]]) -> None:
        self._read = read
        self._known: dict[str, tuple[float, list[float | None]]] = {}

    def of(self, cohort: str, now: float) -> list[float | None]:
        """Return the share of each three quarters of an hour, oldest first; None where nothing is known."""
        until, found = self._known.get(cohort, (float("-inf"), []))
        if time.monotonic() >= until:
            found = self._shares(cohort, now)
            self._known[cohort] = time.monotonic() + TREND_SECONDS, found
        return found

    def _shares(self, cohort: str, now: float) -> list[float | None]:
        sums = [(0.0, 0.0)] * TREND
        for at, count, agreed in self._read(cohort, now - DAY, now + 1, 900):
            place = min(TREND - 1, max(0, int((at - now + DAY) / DAY * TREND)))
            sums[place] = sums[place][0] + count, sums[place][1] + agreed
        return [agreed / count if count else None for count, agreed in sums]


def overview_tables(found: Mapping[str, Any]) -> Group:
    """Return an overview as a table for a terminal, with a sentence for each cohort below."""
    from rich.console import Group
    from rich.text import Text

    from cema.cli.tables import FittedTable

    table = FittedTable(
        "", "cohort", "now, %", "source, %", "a day", "version", "devices", "silent", "up", "down", "cost"
    )
    lines = [Text(found["error"], "red")] if "error" in found else []
    for one in found["cohorts"]:
        word, colour = LEVELS[one["level"]]
        table.add_row(Text(word, colour), one["cohort"], *_cells(one))
        lines.append(Text.assemble((f"{one['cohort']}: ", "bold"), one["sentence"]))
        lines += [Text(f"  {problem}", colour) for problem in one["problems"]]
    return Group(table, *lines)


def _cells(one: Mapping[str, Any]) -> Iterator[str | Newest]:
    from cema._util.units import human_bytes
    from cema.cli.tables import Newest
    from cema.cloud.store.overview import told_agreement

    _, now, source = told_agreement(one) or ("", None, None)
    for share in (now, source):
        yield f"{100 * share['share']:.1f}" if share else "–"
    yield Newest(sparkline(one["trend"]), TREND // 4)
    yield str(one["version"] or "–")
    devices, day = one["devices"], one["day"]
    yield str(devices["registered"])
    yield str(devices["silent"])
    yield human_bytes(day["bytes_up"])
    yield human_bytes(day["bytes_down"])
    yield "–" if day["cost"] is None else f"{day['cost']:.2f} {day['currency']}"


def sparkline(shares: Sequence[float | None]) -> str:
    """Return shares as bars from 0 to 1, with a space where nothing is known.

    Examples
    --------
    >>> sparkline([0.0, 0.5, None, 1.0])
    '▁▅ █'
    """
    return "".join(
        " " if share is None else BARS[min(len(BARS) - 1, int(share * len(BARS)))] for share in shares
    )
