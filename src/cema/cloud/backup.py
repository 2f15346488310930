"""A configured cloud's store: copied, and restored so that no version has a number that devices may have seen.

Devices refuse a version whose number is not above the highest that they accepted. What was published after a backup was
made is not in it. How many versions that can have been follows from the time since, and from how quickly one may follow
another.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from cema.cloud.config import CloudConfig, PublishConfig
from cema.cloud.data_folder import lock_data_folder
from cema.cloud.store.audits import AuditedAct, AuditStore
from cema.cloud.store.backups import Content, Progress, Restored, backups_of, restorer_of
from cema.cloud.store.open import backend_of
from cema.errors import ConfigError, StoreError, StoreFull

__all__ = ["RestoredCloud", "backup", "restore", "versions_since"]

DAY = 86_400
# Seconds by which the clock may have been set meanwhile, or may differ from that of another machine.
CLOCK_SLACK = 3600.0
# Versions out of turn: where the clock was set back, one follows at once.
MORE_VERSIONS = 100
LARGEST = 2**53


@dataclass(frozen=True, slots=True)
class RestoredCloud:
    """What was restored.

    Attributes
    ----------
    content
        What the backup holds.
    store
        What was done with the store.
    next_versions
        By cohort, the number that the next version has at least.
    """

    content: Content
    store: Restored
    next_versions: Mapping[str, int]


def backup(
    config: CloudConfig, path: Path, progress: Progress | None = None, *, actor: str | None = None
) -> Content:
    """Write a checked copy of a cloud's store to a new file; the cloud may be running.

    Parameters
    ----------
    config
        The cloud's configuration.
    path
        A file that does not exist.
    progress
        Told how far it is.
    actor
        Who makes the copy; kept in the store's record of acts, where there is room for it.

    Raises
    ------
    ConfigError
        There is such a file, or it cannot be written.
    StoreError
        The store makes no copies, holds nothing, or is damaged.
    """
    backend, address = backend_of(config.store_url)
    if hasattr(backend, "newest_versions_at") and backend.newest_versions_at(address) is None:
        raise StoreError(
            "there is no store that can be read, it is missing or damaged: check `data` and `store` in the "
            "configuration, or restore a backup"
        )
    # Before the moment that is copied: rather too many versions are expected since than too few.
    now = time.time()
    notes = {"cohorts": {cohort.name: _pace(cohort.publish) for cohort in config.cohort}}
    with closing(config.open_store()) as store:
        copies = backups_of(store)
        try:
            content = copies.backup(path, now=now, notes=notes, progress=progress)
        except FileExistsError as error:
            raise ConfigError(f"{path}: there is such a file already; name another with --out") from error
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be written ({error.strerror}); name another file with --out"
            ) from error
        if actor is not None and isinstance(store, AuditStore):
            with suppress(StoreFull):  # a full store is no reason to have no backup
                store.record_act(AuditedAct(actor, "store.backup", str(path)))
    return content


def restore(
    config: CloudConfig,
    path: Path,
    *,
    replace: bool = False,
    next_version: int | None = None,
    progress: Progress | None = None,
    actor: str | None = None,
) -> RestoredCloud:
    """Make a backup the store of a cloud that does not run.

    Parameters
    ----------
    config
        The cloud's configuration.
    path
        The backup; it stays as it is.
    replace
        Whether there may be a store already. It is kept under another name.
    next_version
        The number that the next version of every cohort has at least, where it is known better than by the time since
        the backup.
    progress
        Told how far it is.
    actor
        Who restores; kept in the restored store's record of acts, where there is room for it.

    Raises
    ------
    ConfigError
        There is no such file; or `next_version` is needed, or too low.
    StoreError
        A cloud is running, there is a store already, or the backup is damaged.
    """
    _check_file(path)
    backend, address = backend_of(config.store_url)
    restorer = restorer_of(backend)
    with lock_data_folder(Path(config.data)):
        content = restorer.inspect(path)
        known = restorer.newest_versions_at(address) or {}
        floors = _floors(config, content, known, next_version, time.time())
        done = restorer.restore(address, path, floors=floors, replace=replace, progress=progress)
        with closing(config.open_store()) as store:  # which also shows that it can be opened
            if actor is not None and isinstance(store, AuditStore):
                with suppress(StoreFull):
                    detail = {"made_at": content.made_at, "next_versions": dict(floors)}
                    store.record_act(AuditedAct(actor, "store.restore", str(path), detail))
    return RestoredCloud(content, done, floors)


def versions_since(seconds: float, *, min_seconds: float, lifetime_days: float) -> float:
    """Return how many versions of a cohort can have been published in some time, at most.

    Parameters
    ----------
    seconds
        The time.
    min_seconds
        Between two new versions, at least; 0 gives infinity.
    lifetime_days
        Half of it after a version, it is signed anew.

    Examples
    --------
    >>> versions_since(3600.0, min_seconds=60.0, lifetime_days=30.0)
    162.0
    """
    if min_seconds <= 0:
        return math.inf
    renewals = seconds / (lifetime_days * DAY / 2)
    return math.ceil(seconds / min_seconds) + math.ceil(renewals) + 1.0 + MORE_VERSIONS


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file; name a backup that `cema cloud backup` has made")
    file = path.resolve()
    log = file.with_name(f"{file.name}-wal")
    if log.exists() and log.stat().st_size:
        raise StoreError(
            f"{path}: expected a backup, got a store in use or its plain copy ({log.name} is a part of it); "
            "make a backup with `cema cloud backup`"
        )


def _floors(
    config: CloudConfig, content: Content, known: Mapping[str, int], given: int | None, now: float
) -> dict[str, int]:
    """Return the number that the next version has at least, of each cohort that is, was or may have been."""
    names = dict.fromkeys([*content.cohorts, *known, *(cohort.name for cohort in config.cohort)])
    floors = {}
    for name in names:
        held = content.cohorts.get(name)
        newest = max(held.version, held.next_version - 1) if held else 0
        seen = max(newest, known.get(name, 0))
        if given is not None:
            if given <= seen:
                raise ConfigError(
                    f"--next-version: expected a number above {seen}, the newest version of cohort {name!r} that is "
                    f"known, got {given}"
                )
            floors[name] = given
        else:
            floors[name] = max(newest + _since(config, content, name, now, seen), seen) + 1
    return floors


def _since(config: CloudConfig, content: Content, name: str, now: float, seen: int) -> int:
    """Return how many versions of a cohort can have been published since the backup; `seen` is the highest known.

    Raises
    ------
    ConfigError
        That cannot be told.
    """
    remedy = (
        f"find the highest version of cohort {name!r} that any device runs (its status says it; {seen} is the highest "
        "that is known here), and name a higher number with --next-version"
    )
    if content.made_at is None:
        raise ConfigError(
            f"nobody knows when this copy was made, so that nobody knows what was published since; {remedy}"
        )
    if now < content.made_at:
        raise ConfigError(
            f"the backup was made {content.made_at - now:.0f} s from now, by the clock; set the clock, or {remedy}"
        )
    then, today = content.notes.get("cohorts", {}), {c.name: _pace(c.publish) for c in config.cohort}
    # One that neither configuration names may have been in one between them.
    paces = [pace[name] for pace in (then, today) if name in pace] or [*then.values(), *today.values()]
    # A setting may have been changed in between: the quickest counts.
    count = versions_since(
        now - content.made_at + CLOCK_SLACK,
        min_seconds=min(pace["min_seconds"] for pace in paces),
        lifetime_days=min(pace["lifetime_days"] for pace in paces),
    )
    if not count < LARGEST:
        raise ConfigError(
            f"cohort {name!r}: any number of versions may have been published since the backup, because "
            f"publish.min_seconds is or was 0; {remedy}"
        )
    return int(count)


def _pace(publish: PublishConfig) -> dict[str, float]:
    return {"min_seconds": publish.min_seconds, "lifetime_days": publish.lifetime_days}
