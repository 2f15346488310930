"""What a device remembers between two starts: its last verified update, and where its selection stood.

::

    update.json             the signed envelope, its cohort, and when it was accepted
    update-<digest>.bin     its payload
    selector.json           the selector's state, and the model it belongs to
    spool.db                the spool (see `cema.edge.spool`)

The payload is on disk under its own name before ``update.json`` names it, so that at every moment one whole
update is remembered. Nothing here is believed without the signature: what is read back is verified as if it
came by the network.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from cema._util.files import write_atomic
from cema.edge.runtime import Active, build_active, pack_payload
from cema.errors import CemaError, ConfigError, FormatError
from cema.formats.bundle import Bundle
from cema.formats.update import UpdateManifest, verify_payload, verify_update
from cema.ondevice.selection.base import Selector

__all__ = ["Resumed", "StateFolder"]

logger = logging.getLogger(__name__)


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
    """

    active: Active | None = None
    floor: int = 0
    error: str | None = None


class _Remembered(msgspec.Struct, frozen=True, kw_only=True):
    envelope: bytes
    cohort: str
    accepted_at: float
    format: str = "cema.state/1"


class _SelectorState(msgspec.Struct, frozen=True, kw_only=True):
    base: str
    state: dict[str, Any]
    rule: str = "entropy-band"


class StateFolder:
    """The folder a device may write to.

    Parameters
    ----------
    path : Path
        Created when absent.

    Raises
    ------
    ConfigError
        When there is no such folder and it cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            raise ConfigError(
                f"state: the folder {str(path)!r} cannot be created: {error}; name one this user may write to"
            ) from error

    @property
    def spool_path(self) -> Path:
        """Where the spool lies."""
        return self.path / "spool.db"

    def save_update(
        self, envelope: bytes, manifest: UpdateManifest, payload: bytes, accepted_at: float
    ) -> None:
        """Remember a verified update durably, then forget the one before.

        Raises
        ------
        OSError
            When the disk refuses; the one before is still remembered.
        """
        name = self._payload_path(manifest.payload)
        write_atomic(name, payload)
        record = _Remembered(envelope=envelope, cohort=manifest.cohort, accepted_at=accepted_at)
        write_atomic(self.path / "update.json", msgspec.json.encode(record))
        for old in self.path.glob("update-*.bin"):
            if old != name:
                old.unlink(missing_ok=True)

    def load_payload(self, digest: str) -> bytes | None:
        """Return the remembered payload of that digest, or None when it is missing or damaged."""
        try:
            payload = self._payload_path(digest).read_bytes()
        except OSError:
            return None
        return payload if hashlib.sha256(payload).hexdigest() == digest else None

    def load_update(self, bundle: Bundle, *, cohort: str | None, threads: int = 1) -> Resumed:
        """Verify and build the remembered update.

        Its expiry is compared with the moment it was accepted: expiry keeps stale updates from being
        *installed*; a device that was without a link for longer goes on with the best model it has.

        Parameters
        ----------
        bundle : Bundle
        cohort : str or None
            None (no cloud is configured): the cohort it was accepted for.
        threads : int, default 1
        """
        floor = 0
        try:
            record = msgspec.json.decode((self.path / "update.json").read_bytes(), type=_Remembered)
            manifest = verify_update(
                record.envelope,
                public_keys=bundle.public_keys,
                cohort=record.cohort if cohort is None else cohort,
                base=bundle.manifest.base,
                running_version=0,
                now=record.accepted_at,
            )
            floor = manifest.version
            payload = verify_payload(manifest, self._payload_path(manifest.payload).read_bytes())
            norm = pack_payload(bundle, payload)
            return Resumed(build_active(bundle, manifest, payload, norm, threads=threads), floor)
        except FileNotFoundError:
            if not floor:
                return Resumed()
            error = f"state: the payload of version {floor} is missing; it will be downloaded again"
        except (CemaError, OSError, msgspec.MsgspecError, UnicodeDecodeError) as problem:
            error = f"state: the remembered update cannot be used: {problem}"
        logger.warning("%s", error)
        return Resumed(None, floor, error)

    def save_selector(self, base: str, rule: str, state: dict[str, Any]) -> None:
        """Remember where the selection stands.

        Raises
        ------
        OSError
            When the disk refuses.
        """
        record = _SelectorState(base=base, state=state, rule=rule)
        write_atomic(self.path / "selector.json", msgspec.json.encode(record))

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
        except (CemaError, OSError, msgspec.MsgspecError, UnicodeDecodeError) as problem:
            logger.warning("the remembered selection cannot be used, starting afresh: %s", problem)

    def _payload_path(self, digest: str) -> Path:
        return self.path / f"update-{digest}.bin"
