"""Coming to another base model: ask, verify, fetch piece by piece, build beside the running model, hand it over."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

from cema.edge.background import BackgroundThread, Clock, Pause
from cema.edge.client import CloudClient
from cema.edge.config import UpdateConfig
from cema.edge.device_model import DeviceModel
from cema.edge.fetched_bundles import FetchedBundles
from cema.edge.retry import Backoff, LinkError
from cema.edge.spool import Spool
from cema.edge.system import run_behind
from cema.errors import BundleRejected, CemaError, LogitsError
from cema.formats.bundle import Bundle
from cema.formats.bundle_notice import BundleNotice, verify_notice
from cema.formats.keyring import Keyring

__all__ = ["Migrator"]

logger = logging.getLogger(__name__)

# Of a file in one request, at most; half as much after each request that brought nothing, down to the least.
_PIECE, _LEAST_PIECE = 512 << 10, 16 << 10
# Between two questions for a notice of which the last was refused for good, give or take a tenth.
_HOUR = 3600.0
# Rejections that another attempt may cure.
_CURABLE = {"expired", "file_mismatch"}


class Migrator(BackgroundThread):
    """Bring the device to the bundle that its cohort is to have, on a thread of its own.

    It sleeps until the updater has heard of another base. What it has prepared is handed to the updater, which lets it
    serve between two updates: so no update of the old base is ever installed over the new model.

    Parameters
    ----------
    link : CloudClient
    bundles : FetchedBundles
        Where bundles are kept, and which one is chosen.
    cohort : str
    config : UpdateConfig
    behind : bool
        Leave the processor to predictions while a model is built (`cema.edge.runtime.build_active`).
    build : callable
        Makes the model of a bundle, and tries its golden batch.
    base : callable
        Returns the base that serves.
    counters : Spool
        Keeps ``bytes_down``, ``migrations`` and ``rejected_bundle.REASON``.
    clock, backoff, on_change
        See :class:`~cema.edge.background.BackgroundThread`.

    Attributes
    ----------
    on_ready : callable
        Called, on this thread, when a model is ready to be taken.
    """

    def __init__(
        self,
        link: CloudClient,
        bundles: FetchedBundles,
        cohort: str,
        *,
        config: UpdateConfig,
        behind: bool,
        build: Callable[[Bundle], DeviceModel],
        base: Callable[[], str],
        counters: Spool,
        clock: Clock,
        backoff: Backoff,
        on_change: Callable[[], None],
    ) -> None:
        super().__init__("migrator", clock=clock, backoff=backoff, on_change=on_change)
        self._link, self._bundles, self._cohort, self._config = link, bundles, cohort, config
        self._behind, self._build, self._base, self._counters = behind, build, base, counters
        self._keyring: Keyring | None = None
        self._wanted: str | None = None  # the base that the cloud has named
        self._handed: str | None = None  # the base of the model that waits to be taken
        self._ready: SimpleQueue[DeviceModel] = SimpleQueue()
        self._keys_changed = threading.Event()
        self._piece = _PIECE
        self._noted = ""  # digest of the notice that came last
        self._due = float("-inf")  # of the next question, after one that was settled
        self._counted = ("", "")
        self.on_ready: Callable[[], None] = lambda: None

    def told(self, base: str | None, keyring: Keyring) -> None:
        """Take note of the base that the cloud has named, and of the keys that are trusted; wakes the thread."""
        if keyring is not self._keyring:
            self._keyring = keyring
            self._keys_changed.set()
            self.notify()
        if base != self._wanted:
            self._due = float("-inf")  # what was refused was another one
        if base != self._wanted or (
            base is not None and base != self._base() and self.clock.monotonic() >= self._due
        ):
            self._wanted = base
            self.notify()

    def take(self) -> DeviceModel | None:
        """Return the model that is ready, for the updater to let it serve."""
        try:
            return self._ready.get_nowait()
        except Empty:
            return None

    def taken(self, base: str) -> None:
        """Take note that a model serves: the files of others are of no use."""
        self._bundles.clean(base)
        self._counters.count("migrations")

    def step(self) -> Pause:
        """Do what the cloud's last answer calls for, if anything."""
        if self._keys_changed.is_set():
            self._keys_changed.clear()
            self._due = float("-inf")  # what was refused may be right now
            self._drop_revoked()
        serving = self._handed or self._base()
        if self._wanted in {None, serving}:
            self.last_error = None
            return Pause(None)
        if self.clock.monotonic() < self._due:
            return Pause(None)
        try:
            self._follow(serving)
        except BundleRejected as rejection:
            self._count(rejection)
            if rejection.reason in _CURABLE:
                raise
            logger.warning("%s", rejection)
            self.backoff.reset()
            self.last_error = f"migrator: {rejection}"
            self._due = self.clock.monotonic() + _HOUR * self.backoff.random.uniform(0.9, 1.1)
            return Pause(None)
        self.succeeded()
        return Pause(None)

    def _follow(self, serving: str) -> None:
        """Ask for the notice, and follow it to the end."""
        reply = self._link.bundle_notice()
        if reply.status != 200:
            self._wanted = None  # no cloud of today names a base and has no notice
            return
        self._counters.count("bytes_down", len(reply.body))
        self._noted = hashlib.sha256(reply.body).hexdigest()
        notice = self._verify(reply.body)
        if notice.base == serving:
            self._wanted = serving
            return
        self._check_owner(notice)
        self._fetch(notice)
        bundle = self._bundles.open(notice)
        started = self.clock.monotonic()
        model = self._make(bundle)
        # Chosen first: what has served is the device's after a loss of power, too.
        self._choose(notice, reply.body)
        self._hand_over(model)
        logger.info(
            "the bundle with base %s is there (%.3f s to build); it serves from the next step of the updater on",
            notice.base[:12],
            self.clock.monotonic() - started,
        )

    def _verify(self, envelope: bytes) -> BundleNotice:
        keyring = self._keyring
        assert keyring is not None  # noqa: S101 - for the type; whoever names a base tells the keys
        return verify_notice(
            envelope,
            public_keys=keyring.trusted,
            cohort=self._cohort,
            serial=self._bundles.serial,
            now=self.clock.now(),
            revoked=keyring.revoked_ids,
        )

    def _check_owner(self, notice: BundleNotice) -> None:
        if not self._config.accept_bundles:
            raise BundleRejected(
                "forbidden",
                f"the cohort is to have the base {notice.base[:12]}, and update.accept_bundles is false; set it to "
                "true, or provision the device with that bundle",
            )
        if notice.total_bytes > self._config.bundle_bytes:
            raise BundleRejected(
                "too_large",
                f"it has {notice.total_bytes} bytes, update.bundle_bytes allows {self._config.bundle_bytes}; raise "
                "that, or provision the device with that bundle",
            )

    def _fetch(self, notice: BundleNotice) -> None:
        """Fetch what is missing; what has arrived stays, whatever happens."""
        self._bundles.clean(self._base(), notice)
        self._bundles.check_room(notice)
        while (missing := self._bundles.missing(notice)) is not None:
            file, there = missing
            size = min(self._piece, file.bytes - there)
            try:
                data = self._link.bundle_piece(file.sha256, there, size) if size else b""
            except LinkError as error:
                if error.status is None:  # too slow for so much, perhaps
                    self._piece = max(min(_LEAST_PIECE, _PIECE), self._piece // 2)
                raise
            self._piece = min(_PIECE, 2 * self._piece)
            self._counters.count("bytes_down", len(data))
            try:
                self._bundles.add(notice, file, data)
            except OSError as error:
                raise CemaError(
                    f"the new bundle cannot be written: {error}; check the disk's space and health"
                ) from error
            self.backoff.reset()  # there was progress: a link that breaks often is not slowed down more and more

    def _make(self, bundle: Bundle) -> DeviceModel:
        try:
            return run_behind(lambda: self._build(bundle)) if self._behind else self._build(bundle)
        except LogitsError as error:
            raise BundleRejected("golden_mismatch", str(error)) from error

    def _choose(self, notice: BundleNotice, envelope: bytes) -> None:
        try:
            self._bundles.choose(notice, envelope)
        except OSError as error:
            raise CemaError(
                f"the new bundle waits, for it cannot be remembered: {error}; check the disk's space and health"
            ) from error

    def _drop_revoked(self) -> None:
        """Return to the provisioned bundle where the keys that have signed for the one that serves are revoked."""
        if self._keyring is None or not self._bundles.revoked(self._keyring):
            return
        provisioned = self._bundles.provisioned
        logger.warning("the bundle that serves is of a revoked key; the provisioned one serves")
        try:
            self._bundles.return_to_provisioned()
        except OSError as error:  # after a restart the notice is refused all the same
            logger.warning("state: the revoked bundle cannot be forgotten yet: %s", error)
        if self._base() != provisioned.manifest.base:
            self._hand_over(self._make(provisioned))

    def _hand_over(self, model: DeviceModel) -> None:
        self._handed = model.bundle.manifest.base
        self._ready.put(model)
        self.on_ready()

    def _count(self, rejection: BundleRejected) -> None:
        """Count a rejection once for as long as the notice stays, not once a question."""
        if (self._noted, rejection.reason) != self._counted:
            self._counted = (self._noted, rejection.reason)
            self._counters.count(f"rejected_bundle.{rejection.reason}")
