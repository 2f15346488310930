"""`cema cloud status` and `cema cloud versions`: what a store knows, as tables."""

from __future__ import annotations

import json as json_
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

from cema._util.units import ago
from cema.cloud.store.told import more_status
from cema.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

    from cema.cloud.config import CloudConfig
    from cema.cloud.store.base import Store

__all__ = ["read_status", "status_tables", "watched"]

WATCH_SECONDS = 2.0

# Standard errors of a difference beyond which it is not told as chance.
_SURE = 2.0


def read_status(config: CloudConfig, store: Store, cohort: str | None) -> dict[str, Any]:
    """Return where all cohorts stand, or one: JSON-able, with the members of the API's status.

    Raises
    ------
    ConfigError
        There is no such cohort.
    """
    names = [known.name for known in config.cohort]
    if cohort is not None and cohort not in names:
        raise ConfigError(f"--cohort: expected one of {', '.join(names)}, got {cohort!r}")
    return {
        "time": time.time(),
        "store_bytes": config.limits.store_bytes,
        "used_bytes": store.used_bytes(),
        "cohorts": [_read(store, name) for name in (names if cohort is None else [cohort])],
    }


def _read(store: Store, cohort: str) -> dict[str, Any]:
    try:
        found = store.status(cohort)
    except StoreError as error:  # no cloud was ever started with it
        return {"cohort": cohort, "error": str(error)}
    return found | more_status(store, cohort)


def status_tables(found: Mapping[str, Any]) -> Group:
    """Return what `read_status` found as tables for a terminal."""
    from rich.console import Group

    from cema.cli.tables import FittedTable

    now = found["time"]
    table = FittedTable(
        "cohort", "version", "published", "publishing", "samples", "waiting", "worker", "heard of"
    )
    agreement = FittedTable("cohort", "model", "agreement, %", "standard error", "samples")
    at_random = FittedTable("cohort", "model", "agreement on all, %", "95 % interval", "samples")
    told: list[str] = []
    for cohort in found["cohorts"]:
        name = cohort["cohort"]
        if "error" in cohort:
            table.add_row(name, "", "", "", "", "", "never started", "")
            continue
        table.add_row(name, *_cells(cohort, now))
        for model, share in cohort["agreement"].items():
            agreement.add_row(name, model, *_share_cells(share))
        for model, share in cohort["random_agreement"].items():
            at_random.add_row(name, model, *_interval_cells(share))
        told += _told(name, cohort)
    parts: list[Any] = [table]
    if agreement.row_count:
        parts.append(agreement)
        told.append("Agreement: on how many new samples a model chose the foundation model's label.")
    if at_random.row_count:
        parts.append(at_random)
        told.append(
            "Agreement on all: the same on all that devices see, from samples that were drawn at random."
        )
    return Group(*parts, *told)


def watched(
    read: Callable[[], dict[str, Any]],
    tables: Callable[[Mapping[str, Any]], RenderableType],
    *,
    json: bool,
    again: bool,
) -> None:
    """Print what is read, as JSON of one line or as tables; again and again, until Ctrl-C, where that is asked for."""
    from rich.live import Live

    from cema.cli.tables import out

    def show(live: Live | None) -> None:
        found = read()
        if json:
            print(json_.dumps(found), flush=True)
        elif live is None:
            out().print(tables(found), highlight=False)
        else:
            live.update(tables(found), refresh=True)

    if not again:
        show(None)
        return
    with suppress(KeyboardInterrupt), nullcontext() if json else Live(auto_refresh=False) as live:
        while True:
            show(live)
            time.sleep(WATCH_SECONDS)


def _cells(cohort: Mapping[str, Any], now: float) -> Iterable[str]:
    update, worker = cohort["update"], cohort["worker"]
    yield str(cohort["version"])
    yield "never" if update is None else ago(now - update["created"])
    yield cohort.get("publishing", "on")
    yield f"{cohort['samples']:,}"
    yield f"{cohort['backlog']:,}"
    yield "never ready" if worker is None else ("ready" if worker.get("ready") else "not ready")
    yield "" if worker is None else ago(now - worker["seen_at"])


def _share_cells(share: Mapping[str, Any]) -> tuple[str, str, str]:
    return f"{100 * share['share']:.1f}", f"{100 * share['standard_error']:.1f}", f"{share['samples']:,}"


def _interval_cells(share: Mapping[str, Any]) -> tuple[str, str, str]:
    interval = f"{100 * share['low']:.1f} to {100 * share['high']:.1f}"
    return f"{100 * share['share']:.1f}", interval, f"{share['samples']:,}"


def _rollout_lines(name: str, cohort: Mapping[str, Any]) -> Iterable[str]:
    rollout = cohort.get("rollout")
    if cohort.get("pinned"):
        yield f"{name}: pinned devices: {', '.join(cohort['pinned'])}."
    if rollout is None:
        return
    version, devices, serving = rollout["version"], rollout["devices"], rollout["serving"]
    if rollout["state"] == "taken_back":
        reasons = "; ".join(f"{device} {reason}" for device, reason in rollout["reasons"].items())
        yield f"{name}: version {version} was taken back: {reasons}."
    elif rollout["state"] == "open" and rollout["mode"] == "manual":
        yield f"{name}: version {version} waits for its release: cema cloud release --to {version}."
    elif rollout["state"] == "open":
        images = sum(served["predicted"] for served in serving.values())
        yield (
            f"{name}: version {version} is tried by {len(devices)} canary devices ({', '.join(devices)}), of which "
            f"{len(serving)} have reported {images:,} images with it."
        )


def _told(name: str, cohort: Mapping[str, Any]) -> list[str]:
    """Return what the agreement comes to, in words, and what is wrong."""
    lines = []
    agreement = cohort["agreement"]
    if {"running", "source"} <= set(agreement):
        running, source = agreement["running"], agreement["source"]
        points = 100 * (running["share"] - source["share"])
        error = 100 * (running["standard_error"] ** 2 + source["standard_error"] ** 2) ** 0.5
        sure = "" if abs(points) > _SURE * error else ", which may be chance"
        lines.append(
            f"{name}: agreement of the newest version minus that of the source model: {points:+.1f} points{sure}."
        )
    lines += _rollout_lines(name, cohort)
    if (cohort["worker"] or {}).get("error"):
        lines.append(f"{name}: the last error of the worker: {cohort['worker']['error']}")
    return lines
