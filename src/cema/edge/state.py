"""What a device remembers between two starts: its last verified update, and where its selection stood.

::

    update.json             the signed envelope, its cohort, when it was verified, and how it did
    before.json             the same of the last good update, while that in ``update.json`` is on trial or did badly
    update-<digest>.bin     its payload
    floor-<line>.json       the last envelope of another cohort or model that the device was used for before
    keys-<cohort>.json      the keys documents that were accepted for a cohort
    selector.json           the selector's state, and the model it belongs to
    spool.db                the spool (see `cema.edge.spool`)
    bundle.json             which bundle was fetched and chosen (see `cema.edge.fetched_bundles`)
    budget.json             what was sent lately, where there is a budget (see `cema.edge.budget`)

The payload is on disk under its own name before ``update.json`` names it, so that at every moment one whole
update is remembered. Nothing here is believed without the signature: what is read back is verified as if it
came by the network. The floor follows from the signed version alone; no clock lowers it.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import math
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from cema._util.files import keep_private, sync_folder, write_atomic
from cema.edge.runtime import Active, Check, build_active, pack_payload
from cema.errors import CemaError, ConfigError, FormatError, UpdateRejected
from cema.formats.bundle import Bundle
from cema.formats.envelope import content_of
from cema.formats.keyring import Keyring, decode_documents, encode_documents
from cema.formats.update import UpdateManifest, verify_payload, verify_update
from cema.ondevice.selection.base import Selector

__all__ = ["Resumed", "StateFolder"]

logger = logging.getLogger(__name__)

_LEFT_OVER = re.compile(
    r"\.(update|before|floor|keys|selector|budget|bundle)\b.*\.[0-9a-f]{12}\.tmp"
)  # as `write_atomic` calls them
_OURS = (
    "update.json",
    "before.json",
    "update-*.bin",
    "floor-*.json",
    "keys-*.json",
    "selector.json",
    "bundle.json",
    "bundle-*",
)
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


@dataclass(frozen=True)
class Resumed:
    """What was found at a start.

    Attributes
    ----------
    active : Active or None
        None when nothing usable was remembered.
    floor : int
        The newest version that was ever accepted: nothing older will run.
    error : str or None
        Why something that was remembered cannot be used.
    on_trial : bool
        Whether `active` has still to show that it is good here.
    returned : str or None
        The payload's digest of a newer version that the device has gone back from.
    """

    active: Active | None = None
    floor: int = 0
    error: str | None = None
    on_trial: bool = False
    returned: str | None = None


Standing: TypeAlias = Literal["good", "trial", "returned"]
"""How an update did on this device; ``returned``: the device went back from it."""


class _Remembered(msgspec.Struct, frozen=True, kw_only=True):
    envelope: bytes
    cohort: str
    accepted_at: Any = None  # unix seconds of its verification; whatever stands there, the floor is kept
    base: str = ""  # older files do not have it
    standing: Standing = "good"
    format: str = "cema.state/1"

    @property
    def verified_at(self) -> float:
        """When it was verified; infinity, when every update has expired, if that cannot be read."""
        return float(self.accepted_at) if isinstance(self.accepted_at, int | float) else math.inf

    @property
    def line(self) -> tuple[str, str]:
        """Which line of versions it belongs to."""
        return self.cohort, self.base


class _SelectorState(msgspec.Struct, frozen=True, kw_only=True):
    base: str
    state: dict[str, Any]
    rule: str = "entropy-band"


class StateFolder:
    """The folder a device may write to, and nobody else may read.

    A disk that is full or read-only is no reason not to start: what is there is read, and what cannot be
    written raises when it is written.

    Parameters
    ----------
    path : Path
        Created when absent.

    Raises
    ------
    ConfigError
        When there is no such folder and it cannot be created, for another reason than the disk's state.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._make()
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                logger.warning("state: the folder %r cannot be created yet: %s", str(path), error)
                return
            raise ConfigError(
                f"state: the folder {str(path)!r} cannot be created: {error}; name one this user may write to"
            ) from error
        for pattern in _OURS:
            for file in self._files(pattern):
                keep_private(file)

    @property
    def spool_path(self) -> Path:
        """Where the spool lies."""
        return self.path / "spool.db"

    @property
    def budget_path(self) -> Path:
        """Where it is written down what was sent lately."""
        return self.path / "budget.json"

    def clean(self, digest: str | None) -> None:
        """Remove what interrupted writes left over; call it only while no other agent uses the folder.

        Parameters
        ----------
        digest : str or None
            Of the payload that serves: others are of no use. None: they all stay.
        """
        for file in self._files(".*.tmp"):
            if _LEFT_OVER.fullmatch(file.name):
                _remove(file)
        if digest is not None:
            self._remove_payloads_but(digest)

    def save_update(
        self,
        envelope: bytes,
        manifest: UpdateManifest,
        payload: bytes,
        verified_at: float,
        *,
        on_trial: bool = False,
    ) -> None:
        """Remember a verified update durably, then forget the one before, unless this one is on trial.

        Parameters
        ----------
        envelope : bytes
        manifest : UpdateManifest
        payload : bytes
        verified_at : float
            The moment, in unix seconds, with which `cema.formats.update.verify_update` found it right.
        on_trial : bool, default False
            Whether it has still to show that it is good here.

        Raises
        ------
        OSError
            When the disk refuses; the one before is still remembered.
        """
        record = _Remembered(
            envelope=envelope,
            cohort=manifest.cohort,
            accepted_at=verified_at,
            base=manifest.base,
            standing="trial" if on_trial else "good",
        )
        self._put_aside(record.line)
        self._write(self._payload_path(manifest.payload), payload)
        self._keep_before(record.line)
        self._write(self._record_path, msgspec.json.encode(record))
        if not on_trial:
            _remove(self._before_path)
        self._remove_payloads_but(manifest.payload)

    def settle(self, standing: Standing) -> None:
        """Remember durably how the remembered update did; the one before is forgotten once it is good.

        Raises
        ------
        OSError
            When the disk refuses.
        """
        try:
            record = _read_record(self._record_path)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return  # what it says of itself at the next start counts
        if record is None:
            return
        self._write(
            self._record_path, msgspec.json.encode(msgspec.structs.replace(record, standing=standing))
        )
        if standing == "good":
            _remove(self._before_path)
            self._remove_payloads_but(_digest(record))

    def _keep_before(self, line: tuple[str, str]) -> None:
        """Keep the last good update, before another one takes its place."""
        try:
            record = _read_record(self._record_path)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            record = None
        if record is None or record.line != line:
            _remove(self._before_path)
        elif record.standing == "good":
            self._write(self._before_path, msgspec.json.encode(record))

    def put_update_aside(self, base: str) -> None:
        """Forget the remembered update, except for its floor, unless it is for that base.

        Raises
        ------
        OSError
            When the disk refuses.
        """
        try:
            record = _read_record(self._record_path)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return  # what it says of itself at the next start counts
        if record is None or record.base in {"", base}:
            return
        self._put_aside((record.cohort, base))
        self._record_path.unlink()
        _remove(self._before_path)
        sync_folder(self.path)
        for payload in self._files("update-*.bin"):
            _remove(payload)

    def load_payload(self, digest: str) -> bytes | None:
        """Return the remembered payload of that digest, or None when it is missing or damaged."""
        try:
            payload = self._payload_path(digest).read_bytes()
        except OSError:
            return None
        return payload if hashlib.sha256(payload).hexdigest() == digest else None

    def load_update(
        self, bundle: Bundle, *, cohort: str | None, threads: int = 1, check: Check | None = None
    ) -> Resumed:
        """Verify and build the remembered update.

        Its expiry is compared with the moment it was verified: expiry keeps stale updates from being
        *installed*; a device that was without a link for longer goes on with the best model it has.

        Parameters
        ----------
        bundle : Bundle
        cohort : str or None
            None (no cloud is configured): the cohort it was accepted for.
        threads : int, default 1
        check : callable, optional
            See `cema.edge.runtime.build_active`.
        """
        floor, error = 0, None
        keyring = self.keyring(bundle, cohort)
        try:
            record = _read_record(self._record_path)
            if cohort is None and record is not None:
                keyring = self.keyring(bundle, record.cohort)
            floor = self._other_floor(bundle, keyring)
            if record is None:
                return Resumed(None, floor)
            # Whatever a clock said or says: that version was accepted once, and nothing older will run.
            manifest = _verify(record, bundle, keyring, now=-math.inf)
            behind, floor = manifest.version < floor, max(floor, manifest.version)
            if behind:
                raise UpdateRejected("old", f"version {floor} was accepted once")
            if record.standing == "returned":
                before = self.load_before(bundle, keyring, threads=threads, check=check)
                return Resumed(before, floor, returned=manifest.payload)
            active = self._build(record, bundle, keyring, threads=threads, check=check)
            return Resumed(active, floor, on_trial=record.standing == "trial")
        except FileNotFoundError:
            error = f"state: the payload of version {floor} is missing; it will be downloaded again"
        except (CemaError, OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
            error = f"state: the remembered update cannot be used: {problem}"
            floor = max(floor, self._other_floor(bundle, keyring))
        logger.warning("%s", error)
        return Resumed(self.load_before(bundle, keyring, threads=threads, check=check), floor, error)

    def load_before(
        self, bundle: Bundle, keyring: Keyring, *, threads: int = 1, check: Check | None = None
    ) -> Active | None:
        """Verify and build the last good update before the remembered one; None where none can be used."""
        try:
            record = _read_record(self._before_path)
            if record is None:
                return None
            return self._build(record, bundle, keyring, threads=threads, check=check)
        except (CemaError, OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
            logger.warning("state: the update before the remembered one cannot be used: %s", problem)
            return None

    def _build(
        self, record: _Remembered, bundle: Bundle, keyring: Keyring, *, threads: int, check: Check | None
    ) -> Active:
        manifest = _verify(record, bundle, keyring, now=record.verified_at)
        payload = verify_payload(manifest, self._payload_path(manifest.payload).read_bytes())
        norm = pack_payload(bundle, payload)
        return build_active(bundle, manifest, payload, norm, threads=threads, behind=False, check=check)

    def keyring(self, bundle: Bundle, cohort: str | None) -> Keyring:
        """Verify the remembered keys documents of a cohort; those that no longer verify are left out.

        Without any, or where they cannot be read, the bundle's keys are trusted.
        """
        keyring = Keyring.of(cohort or "", bundle.public_keys)
        if cohort is None:
            return keyring
        try:
            documents = decode_documents(self._keys_path(cohort).read_bytes())
        except FileNotFoundError:
            return keyring
        except (FormatError, OSError) as problem:
            logger.warning("state: the remembered keys cannot be used, the bundle's are: %s", problem)
            return keyring
        keyring, rejection = keyring.accept_all(documents, now=None)
        if rejection is not None:
            logger.warning("state: a remembered keys document is left out: %s", rejection)
        return keyring

    def save_keyring(self, keyring: Keyring) -> None:
        """Remember the documents of a keyring durably.

        Raises
        ------
        OSError
            When the disk refuses; those from before are still remembered.
        """
        self._write(self._keys_path(keyring.cohort), encode_documents(keyring.documents))

    def revoked(self, bundle: Bundle, keyring: Keyring) -> bool:
        """Tell whether the remembered update is one that revoked keys alone have signed."""
        try:
            record = _read_record(self._record_path)
            if record is not None:
                _verify(record, bundle, keyring, now=-math.inf)
        except UpdateRejected as rejection:
            return rejection.reason == "revoked_key"
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass  # what it says of itself at the next start counts
        return False

    def floor(self, bundle: Bundle, keyring: Keyring) -> int:
        """Return the highest version that was accepted for this cohort and model by keys that still count, or 0."""
        return self._floor(bundle, keyring, [*self._files("floor-*.json"), self._record_path])

    def _other_floor(self, bundle: Bundle, keyring: Keyring) -> int:
        """Return the highest version that was put aside for this cohort and model, or 0."""
        return self._floor(bundle, keyring, self._files("floor-*.json"))

    @staticmethod
    def _floor(bundle: Bundle, keyring: Keyring, files: list[Path]) -> int:
        floor = 0
        for file in files:
            try:
                record = _read_record(file)
                line = (keyring.cohort, bundle.manifest.base)
                if record is not None and record.line in {line, (keyring.cohort, "")}:
                    floor = max(floor, _verify(record, bundle, keyring, now=-math.inf).version)
            except (CemaError, OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
                logger.warning("state: %s cannot be used: %s", file.name, problem)
        return floor

    def save_selector(self, base: str, rule: str, state: dict[str, Any]) -> None:
        """Remember where the selection stands.

        Raises
        ------
        OSError
            When the disk refuses.
        """
        record = _SelectorState(base=base, state=state, rule=rule)
        self._write(self.path / "selector.json", msgspec.json.encode(record))

    def load_selector(self, base: str, rule: str, selector: Selector) -> None:
        """Let `selector` go on where it stood, if that was with the same model and settings."""
        try:
            record = msgspec.json.decode((self.path / "selector.json").read_bytes(), type=_SelectorState)
            if record.base != base:
                raise FormatError(f"it belongs to the model {record.base}")
            if record.rule != rule:
                raise FormatError(f"it belongs to the rule {record.rule}")
            selector.load_state(record.state)
        except FileNotFoundError:
            return
        except (CemaError, OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
            logger.warning("the remembered selection cannot be used, starting afresh: %s", problem)

    @property
    def _record_path(self) -> Path:
        return self.path / "update.json"

    @property
    def _before_path(self) -> Path:
        return self.path / "before.json"

    def _payload_path(self, digest: str) -> Path:
        return self.path / f"update-{digest}.bin"

    def _keys_path(self, cohort: str) -> Path:
        return self.path / f"keys-{hashlib.sha256(cohort.encode()).hexdigest()[:16]}.json"

    def _files(self, pattern: str) -> list[Path]:
        try:
            return list(self.path.glob(pattern))
        except OSError:  # a folder that cannot be listed now; what has to be written there will say so
            return []

    def _make(self) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        keep_private(self.path)

    def _write(self, path: Path, data: bytes) -> None:
        self._make()  # the disk may have refused it at the start
        write_atomic(path, data, mode=0o600)

    def _remove_payloads_but(self, digest: str) -> None:
        """Remove payloads, except for one and that of the last good update before it."""
        keep = {self._payload_path(digest)}
        with suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            before = _read_record(self._before_path)
            keep |= {self._payload_path(_digest(before))} if before else set()
        for old in self._files("update-*.bin"):
            if old not in keep:
                _remove(old)

    def _put_aside(self, line: tuple[str, str]) -> None:
        """Keep the envelope of another line of versions: the device may be given back to that cohort."""
        try:
            record = _read_record(self._record_path)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return  # it holds no floor that could be lost
        if record is not None and record.line != line:
            name = hashlib.sha256(msgspec.json.encode(record.line)).hexdigest()[:16]
            self._write(self.path / f"floor-{name}.json", msgspec.json.encode(record))


def _read_record(path: Path) -> _Remembered | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return msgspec.json.decode(data, type=_Remembered)


def _digest(record: _Remembered) -> str:
    """Return the digest of a record's payload, unverified."""
    try:
        return msgspec.json.decode(content_of(record.envelope), type=UpdateManifest).payload
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ""


def _verify(record: _Remembered, bundle: Bundle, keyring: Keyring, *, now: float) -> UpdateManifest:
    return verify_update(
        record.envelope,
        public_keys=keyring.known,
        cohort=keyring.cohort,
        base=bundle.manifest.base,
        running_version=0,
        now=now,
        revoked=keyring.revoked_ids,
    )


def _remove(path: Path) -> None:
    """Remove a file that is in nobody's way; a disk that refuses is told about elsewhere."""
    with suppress(OSError):
        path.unlink()
