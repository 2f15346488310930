"""How far a cohort is on its way to another base model, as operators are told it."""

from __future__ import annotations

from typing import Any

from cema.cloud.store.base import Store
from cema.cloud.store.bases import bases_of

__all__ = ["bases_told"]


def bases_told(store: Store, cohort: str) -> dict[str, Any]:
    """Return the base models of a cohort, JSON-able: oldest first, each with its newest version and its devices.

    Returns
    -------
    dict
        ``cohort``; ``base``, that devices are to have; ``bases``, each with ``base``, ``since`` (unix seconds, or None
        where nobody noted it), ``version`` (the newest kept one for it, or 0) and ``devices``, the names of those that
        have said that they have it; ``unknown``, the names of devices that have never said which they have.

    Raises
    ------
    StoreError
        The store's back end changes no bases, or does not know the cohort.
    """
    bases = bases_of(store)
    current, periods = str(store.status(cohort)["base"]), bases.periods(cohort)
    since: dict[str, float | None] = {period.base: period.at or None for period in periods}
    since.setdefault(current, None)
    registered = [
        device.name
        for device in store.devices([cohort]).list()
        if device.role == "device" and device.cohort == cohort and device.revoked_at is None
    ]
    said = {note.device: note.base for note in bases.device_bases(cohort)}
    for base in said.values():
        since.setdefault(base, None)  # of no bundle that the cohort has had
    found = []
    for base, at in since.items():
        tag = bases.tag_of(cohort, base) if periods else None
        version = (
            tag.version
            if tag
            else (store.status(cohort)["version"] if not periods and base == current else 0)
        )
        having = [name for name in registered if said.get(name) == base]
        found.append({"base": base, "since": at, "version": version, "devices": having})
    unknown = [name for name in registered if name not in said]
    return {"cohort": cohort, "base": current, "bases": found, "unknown": unknown}
