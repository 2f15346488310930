"""Which bundle the device has: the one that it was provisioned with, or a newer one that it has fetched since.

::

    bundle.json            the signed notice that was followed, and the base model that the device was provisioned with
    bundle-<base>/         a bundle that was fetched, whole
    bundle-<base>.part/    one that is being fetched

The files are on disk before ``bundle.json`` names them, so that at every moment one whole bundle is chosen. Nothing
here is believed without the signature. The keys are those of the provisioned bundle, whatever is fetched.
"""

from __future__ import annotations

import logging
import math
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec

from cema._util.files import sync_folder, write_atomic
from cema.edge.state import StateFolder
from cema.errors import BundleRejected, CemaError, FormatError
from cema.formats.bundle import Bundle
from cema.formats.bundle_files import KEYS_FOLDER, MODEL_FILE, STATISTICS_FILE, check_digest
from cema.formats.bundle_notice import BundleNotice, NoticeFile, read_notice, verify_notice
from cema.formats.keyring import Keyring

__all__ = ["FetchedBundles"]

logger = logging.getLogger(__name__)

# Left free on the disk for spool and updates when a bundle is fetched.
_RESERVE = 16 << 20


class _Choice(msgspec.Struct, frozen=True, kw_only=True):
    envelope: bytes
    provisioned: str
    format: str = "cema.device-bundle/1"


class FetchedBundles:
    """The bundles of one device. Not for several threads at once.

    Parameters
    ----------
    state : StateFolder
    provisioned : Bundle
        The one that the device was provisioned with: its keys are the ones that count.
    cohort : str or None
        The device's. None (no cloud is configured): the one that the notice was made for.

    Attributes
    ----------
    error : str or None
        Why the bundle that was chosen cannot be used.
    serial : int
        That of the notice that was followed last, whatever became of its files; 0 for none that counts.
    """

    def __init__(self, state: StateFolder, provisioned: Bundle, cohort: str | None) -> None:
        self.provisioned = provisioned
        self.error: str | None = None
        self.serial = 0
        self._state, self._cohort = state, cohort
        self._envelope: bytes | None = None

    def chosen(self) -> Bundle:
        """Return the bundle to begin with; without one that was fetched and is right, the provisioned one."""
        try:
            choice = msgspec.json.decode(self._record.read_bytes(), type=_Choice)
            if choice.provisioned != self.provisioned.manifest.base:
                logger.info(
                    "state: the device was provisioned with another bundle since; it begins with that"
                )
                self._forget()
                return self.provisioned
            notice = self._verify(choice.envelope)
            # Whatever becomes of its files: an older notice is never followed.
            self.serial, self._envelope = notice.serial, choice.envelope
            return self._load(notice)
        except FileNotFoundError:
            return self.provisioned
        except BundleRejected as rejection:
            if rejection.reason == "wrong_cohort":
                logger.info("state: the device is in another cohort now; it begins with its own bundle")
                return self.provisioned
            self.give_up(rejection)
            return self.provisioned
        except (CemaError, OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
            self.give_up(problem)
            return self.provisioned

    def give_up(self, problem: Exception) -> None:
        """Take note that the chosen bundle cannot be used; it is asked for again."""
        self.error = (
            f"state: the bundle that was fetched cannot be used, the provisioned one serves: {problem}"
        )
        logger.warning("%s", self.error)

    def revoked(self, keyring: Keyring) -> bool:
        """Tell whether the notice that was followed is one that revoked keys alone have signed."""
        if self._envelope is None:
            return False
        try:
            self._verify(self._envelope, keyring)
        except BundleRejected as rejection:
            return rejection.reason == "revoked_key"
        return False

    def missing(self, notice: BundleNotice) -> tuple[NoticeFile, int] | None:
        """Return the next file to fetch, and how many of its bytes are there; None when all are."""
        part = self._part(notice)
        if notice.base == self.provisioned.manifest.base or (
            self._folder(notice).is_dir() and not part.is_dir()
        ):
            return None
        for file in notice.files:
            if not (part / file.name).is_file():
                arriving = part / f".{file.name}"
                there = arriving.stat().st_size if arriving.is_file() else 0
                return file, min(there, file.bytes)
        return None

    def add(self, notice: BundleNotice, file: NoticeFile, data: bytes) -> None:
        """Add what has arrived of a file; once it is whole it is verified, durably there, and has its name.

        Raises
        ------
        BundleRejected
            It is whole and not what the notice says; it is fetched anew.
        OSError
            The disk refuses; where it is full, what was fetched is removed, so that samples and updates have room.
        """
        part = self._part(notice)
        arriving = part / f".{file.name}"
        try:
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
            with arriving.open("ab") as stream:
                stream.write(data)
                stream.flush()
                if stream.tell() < file.bytes:
                    return
                os.fsync(stream.fileno())
        except OSError:
            if self._free() < _RESERVE:
                self._remove(part)
            raise
        try:
            check_digest(arriving, file.sha256)
        except FormatError as error:
            arriving.unlink()
            raise BundleRejected("file_mismatch", str(error)) from error
        os.replace(arriving, part / file.name)
        sync_folder(part)

    def check_room(self, notice: BundleNotice) -> None:
        """Raise CemaError where the disk has no room for what is missing of a bundle."""
        part = self._part(notice)
        there = sum(entry.stat().st_size for entry in part.iterdir()) if part.is_dir() else 0
        needed = notice.total_bytes - there + _RESERVE
        if notice.base != self.provisioned.manifest.base and self._free() < needed:
            raise CemaError(
                f"the new bundle waits: it needs {needed} bytes of the disk (with {_RESERVE} left for samples), "
                f"{self._free()} are free; make room in {self._state.path}"
            )

    def open(self, notice: BundleNotice) -> Bundle:
        """Return the bundle of a notice, all of whose files are there.

        Raises
        ------
        BundleRejected
            It is not whole, or another one; it is fetched anew.
        OSError
            The disk refuses.
        """
        if notice.base == self.provisioned.manifest.base:
            return self.provisioned
        part, folder = self._part(notice), self._folder(notice)
        if part.is_dir():
            # Whatever was there under this name was not good enough, or it would not have been fetched again.
            self._remove(folder)
            (part / KEYS_FOLDER).mkdir(mode=0o700, exist_ok=True)
            sync_folder(part)
            os.rename(part, folder)
            sync_folder(folder.parent)
        try:
            return self._load(notice)
        except FormatError as error:
            self._remove(folder)
            raise BundleRejected("file_mismatch", str(error)) from error

    def choose(self, notice: BundleNotice, envelope: bytes) -> None:
        """Remember durably that the bundle of a verified notice is the device's, also after a restart.

        Raises
        ------
        OSError
            The disk refuses; the one before is still chosen.
        """
        choice = _Choice(envelope=envelope, provisioned=self.provisioned.manifest.base)
        write_atomic(self._record, msgspec.json.encode(choice), mode=0o600)
        self.serial, self._envelope, self.error = notice.serial, envelope, None

    def return_to_provisioned(self) -> None:
        """Forget the choice, durably."""
        self._record.unlink(missing_ok=True)
        sync_folder(self._state.path)
        self.serial, self._envelope = 0, None

    def clean(self, serving: str, notice: BundleNotice | None = None) -> None:
        """Remove the files of all bundles but the serving base's, and that of a notice which is being followed."""
        keep = {f"bundle-{serving}"}
        if notice is not None:
            keep |= {self._folder(notice).name, self._part(notice).name}
        with suppress(OSError):
            for entry in self._state.path.glob("bundle-*"):
                if entry.name not in keep:
                    self._remove(entry)

    @property
    def _record(self) -> Path:
        return self._state.path / "bundle.json"

    def _folder(self, notice: BundleNotice) -> Path:
        return self._state.path / f"bundle-{notice.base}"

    def _part(self, notice: BundleNotice) -> Path:
        return self._state.path / f"bundle-{notice.base}.part"

    def _verify(self, envelope: bytes, keyring: Keyring | None = None) -> BundleNotice:
        """Verify a notice that was followed before."""
        cohort = read_notice(envelope).cohort if self._cohort is None else self._cohort
        keys = self._state.keyring(self.provisioned, cohort) if keyring is None else keyring
        return verify_notice(
            envelope,
            public_keys=keys.known,
            cohort=cohort,
            serial=0,
            now=-math.inf,
            revoked=keys.revoked_ids,
        )

    def _load(self, notice: BundleNotice) -> Bundle:
        if notice.base == self.provisioned.manifest.base:
            return self.provisioned
        folder = self._folder(notice)
        for file in notice.files:
            if file.name not in {MODEL_FILE, STATISTICS_FILE}:  # the manifest has their digests
                check_digest(folder / file.name, file.sha256)
        bundle = Bundle.load(folder)
        if bundle.manifest.base != notice.base:
            raise FormatError(f"{folder}: expected the base {notice.base}, got {bundle.manifest.base}")
        return replace(bundle, public_keys=self.provisioned.public_keys)

    def _forget(self) -> None:
        with suppress(OSError):
            self.return_to_provisioned()
        self.clean(self.provisioned.manifest.base)

    def _free(self) -> int:
        try:
            disk = os.statvfs(self._state.path)
        except OSError:
            return 0
        return disk.f_bavail * disk.f_frsize

    @staticmethod
    def _remove(folder: Path) -> None:
        import shutil  # noqa: PLC0415 - slow to load, and bundles are rare

        shutil.rmtree(folder, ignore_errors=True)
