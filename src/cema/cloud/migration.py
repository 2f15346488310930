"""Bringing a cohort's devices to another base model: what is checked, what is changed, what the operator does then.

The configuration names the bundle of each cohort. It names the old one until the store has been changed, and has to
name the new one after that. Until it does, the cohort's worker is set aside, and a cloud that is started says which
line to change.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cema.cloud.bundle_folder import BundleFolder
from cema.cloud.config import CloudConfig, CohortConfig
from cema.cloud.signing.trust import cohort_keyring
from cema.cloud.store.base import Store
from cema.cloud.store.bases import BaseStore, Migration, Period, bases_of
from cema.errors import ConfigError, StoreError
from cema.formats.bundle import Bundle
from cema.formats.bundle_manifest import BundleManifest
from cema.formats.bundle_notice import (
    NOTICE_FORMAT,
    BundleNotice,
    NoticeFile,
    list_files,
    read_notice,
    sign_notice,
)
from cema.formats.keys import Signer, key_id

if TYPE_CHECKING:
    from cema.models.spec import Model

__all__ = ["Plan", "bundle_line", "carry_out", "offer_files", "plan"]

DAY = 86_400


@dataclass(frozen=True, slots=True)
class Plan:
    """What a migration would do.

    Attributes
    ----------
    cohort
        The cohort.
    bundle
        The new bundle.
    old, new
        The base models' digests; the same twice where devices are told once more of the bundle that they are to have.
    serial
        Of the notice.
    files
        What devices fetch.
    notes
        What the operator should know of the new model.
    again
        So many of the newest samples are learned from once more.
    """

    cohort: str
    bundle: Bundle
    old: str
    new: str
    serial: int
    files: tuple[NoticeFile, ...]
    notes: tuple[str, ...]
    again: int

    @property
    def exchanges(self) -> bool:
        """Whether the cohort gets another base model."""
        return self.old != self.new


def plan(
    config: CloudConfig,
    store: Store,
    cohort: CohortConfig,
    bundle: Bundle,
    *,
    foundation: Model,
    signers: Sequence[Signer],
    now: float,
    force: bool = False,
) -> Plan:
    """Check a new bundle against a cohort, its devices and its foundation model; nothing is changed.

    Parameters
    ----------
    config
        The cloud's configuration, which names the bundle that devices have.
    store
        The cloud's store.
    cohort
        One of the cohorts of `config`.
    bundle
        The new bundle.
    foundation
        The cohort's foundation model.
    signers
        What signs the notice.
    now
        Unix seconds.
    force
        Whether other classes than before are wanted.

    Raises
    ------
    ConfigError
        The new bundle does not fit, and why; or there is nothing to do.
    StoreError
        The store changes no bases, or cannot be read.
    """
    bases, present = bases_of(store), Bundle.load(Path(cohort.bundle))
    base = present.manifest.base
    if not bases.periods(cohort.name):
        # Not `cohort`'s alone: the store may never have seen it.
        store.open_cohort(cohort.name, base=base)
    old = str(store.status(cohort.name)["base"])
    new = bundle.manifest.base
    _check_configured(cohort, base, old, new)
    if old == new and not bases.periods(cohort.name):
        raise ConfigError(
            f"cohort {cohort.name!r} has this base model already ({new[:12]}), and never had another: there is nothing "
            "to migrate"
        )
    _check_keys(store, cohort.name, present, bundle, signers)
    notes = _compare(present.manifest, bundle.manifest, force=force)
    _check_foundation(bundle.manifest, foundation)
    notice = bases.bundle_notice(cohort.name)
    return Plan(
        cohort=cohort.name,
        bundle=bundle,
        old=old,
        new=new,
        # By the clock: a store that was put back knows nothing of notices that devices have followed since.
        serial=max(int(now), 1, 0 if notice is None else notice[0] + 1),
        files=list_files(bundle),
        notes=tuple(notes),
        again=min(cohort.publish.window, config.worker.max_backlog, config.limits.backlog_samples // 2),
    )


def carry_out(
    config: CloudConfig,
    store: Store,
    planned: Plan,
    signers: Sequence[Signer],
    *,
    now: float,
    days: float,
    actor: str,
) -> tuple[Period, ...]:
    """Do what was planned: copy the files, sign the notice, and change the store, in this order.

    Parameters
    ----------
    config, store
        As for `plan`.
    planned
        What `plan` returned.
    signers
        What signs the notice, all of them each.
    now
        Unix seconds.
    days
        How long a device may begin to follow the notice.
    actor
        Who does it.

    Returns
    -------
    tuple of Period
        The base models of the cohort then.

    Raises
    ------
    SigningError, StoreError
        Nothing was changed.
    """
    notice = BundleNotice(
        base=planned.new,
        cohort=planned.cohort,
        created=int(now),
        expires=int(now + days * DAY),
        files=planned.files,
        format=NOTICE_FORMAT,
        serial=planned.serial,
    )
    envelope = sign_notice(notice, *signers)
    folder = BundleFolder(Path(config.data))
    folder.put(planned.bundle, planned.files)
    change = Migration(
        old=planned.old,
        new=planned.new,
        serial=planned.serial,
        notice=envelope,
        path=str(planned.bundle.path.absolute()),
        again=planned.again if planned.exchanges else 0,
    )
    periods = bases_of(store).migrate(planned.cohort, change, actor=actor, now=now)
    folder.keep_only(file.sha256 for files in _offered(config, store) for file in files)
    return periods


def offer_files(config: CloudConfig, store: Store) -> dict[str, str]:
    """Copy what is missing of the files that devices are to fetch from the configured bundles.

    The data folder of a restored cloud may be without them.

    Returns
    -------
    dict of str to str
        The cohorts whose devices find no files, and why.
    """
    without = {}
    folder = BundleFolder(Path(config.data))
    for cohort in config.cohort:
        found = store.bundle_notice(cohort.name) if isinstance(store, BaseStore) else None
        files = read_notice(found[1]).files if found is not None else ()
        if not folder.missing(files):
            continue
        bundle = Bundle.load(Path(cohort.bundle))
        if list_files(bundle) != files:
            without[cohort.name] = f"the configured one, {cohort.bundle}, is another"
            continue
        try:
            folder.put(bundle, files)
        except StoreError as error:  # devices keep what they have; no reason to take no samples
            without[cohort.name] = str(error)
    return without


def bundle_line(path: Path, cohort: str) -> int | None:
    r"""Return the number of the line of a configuration file that names a cohort's bundle, as far as one is found.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder) / "cloud.toml"
    ...     _ = file.write_text('data = "d"\n[[cohort]]\nbundle = "b"\nname = "north"\n')
    ...     bundle_line(file, "north"), bundle_line(file, "south")
    (3, None)
    """
    table: dict[str, tuple[int, str]] = {}
    inside = False
    for number, line in enumerate([*path.read_text(encoding="utf-8-sig").splitlines(), "["], 1):
        if line.lstrip().startswith("["):
            name = table.get("name", (0, ""))[1]
            if inside and name.strip("\"'") == cohort and "bundle" in table:
                return table["bundle"][0]
            inside, table = re.fullmatch(r"\s*\[\[\s*cohort\s*\]\]\s*(#.*)?", line) is not None, {}
        elif found := re.match(r"\s*(name|bundle)\s*=\s*(\"[^\"]*\"|'[^']*')", line):
            table[found[1]] = number, found[2]
    return None


def _check_configured(cohort: CohortConfig, configured: str, old: str, new: str) -> None:
    """Check that the configuration names the bundle that devices have, or the one that they are to have already."""
    if old in (configured, new):
        return
    if configured == new:
        raise ConfigError(
            f"cohort {cohort.name!r}: `bundle` in the configuration names the new bundle already, and the store has "
            f"base model {old[:12]} still: set it back to the bundle that devices have, migrate, and change it then"
        )
    raise ConfigError(
        f"cohort {cohort.name!r}: the store has base model {old[:12]}, `bundle` in the configuration ({cohort.bundle}) "
        f"has {configured[:12]}: set it to the bundle that devices have, and migrate then"
    )


def _check_keys(
    store: Store, cohort: str, present: Bundle, bundle: Bundle, signers: Sequence[Signer]
) -> None:
    if present.public_keys.keys() != bundle.public_keys.keys():
        raise ConfigError(
            f"cohort {cohort!r}: devices were provisioned with the keys {sorted(present.public_keys)}, the new bundle "
            f"has {sorted(bundle.public_keys)}; a migration changes no keys: export the bundle with the same ones, and "
            "change keys with `cema keys rotate`"
        )
    trusted = cohort_keyring(store, cohort, present).trusted
    names = [key_id(signer.public_key()) for signer in signers]
    if not trusted.keys() & set(names):
        raise ConfigError(
            f"cohort {cohort!r}: devices trust the keys {sorted(trusted)}, and {names} sign here: they would refuse "
            "the bundle; sign with a trusted key"
        )


def _compare(old: BundleManifest, new: BundleManifest, *, force: bool) -> list[str]:
    """Return what is different for who uses the model; ConfigError where the classes are, unless that is wanted."""
    notes, wrong = [], ""
    if new.classes != old.classes:
        wrong = f"the new model has {new.classes} classes, that of now has {old.classes}"
    elif old.labels and new.labels and old.labels != new.labels:
        names = zip(old.labels, new.labels, strict=True)
        place, (before, after) = next((i, pair) for i, pair in enumerate(names) if pair[0] != pair[1])
        wrong = f"class {place} is {before!r} in the model of now, and {after!r} in the new one"
    if wrong and not force:
        raise ConfigError(
            f"{wrong}: programs on devices would take one class for another, and so would whoever reads the labels of "
            "stored samples; with --force it is done all the same, if they go by `Prediction.class_names`"
        )
    if wrong:
        notes.append(f"{wrong}; labels of samples from before are those of the old model")
    before, after = (
        f"{m.preprocessing.height} x {m.preprocessing.width} x {m.preprocessing.channels}" for m in (old, new)
    )
    if before != after:
        notes.append(f"the model's input is {after} pixels, it was {before}; devices scale images as ever")
    if old.upload_side is not None and (new.upload_side is None or new.upload_side > old.upload_side):
        notes.append(
            f"stored samples have a shorter side of up to {old.upload_side} pixels, the new model can use "
            f"{new.upload_side or 'more'}; samples from devices with the new bundle will have that"
        )
    if bool(old.statistics) and not new.statistics:
        notes.append("devices have no statistics of their own with the new bundle, which has none")
    return notes


def _check_foundation(new: BundleManifest, foundation: Model) -> None:
    if foundation.classes != new.classes:
        raise ConfigError(
            f"the new model has {new.classes} classes, the foundation model {foundation.name} has "
            f"{foundation.classes}: it could not teach it; set `foundation` to one with the same classes first"
        )
    if foundation.labels and new.labels and tuple(foundation.labels) != tuple(new.labels):
        raise ConfigError(
            f"the new model and the foundation model {foundation.name} name their classes differently, or in another "
            "order: it would teach wrong labels; set `foundation` to one with the same classes first"
        )


def _offered(config: CloudConfig, store: Store) -> list[tuple[NoticeFile, ...]]:
    found = [bases_of(store).bundle_notice(cohort.name) for cohort in config.cohort]
    return [read_notice(notice[1]).files for notice in found if notice is not None]
