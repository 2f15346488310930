"""From a norm state to a signed update: rounding, golden logits, the signature."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cema._util.events import report
from cema.adapt.base import Learner
from cema.cloud import events
from cema.cloud.config import PublishConfig
from cema.cloud.store.base import PublishedUpdate
from cema.cloud.worker.gate import Agreement, AgreementWindow, decide
from cema.cloud.worker.learned import Carried, Learned, read_learned
from cema.cloud.worker.unsigned import Signed, Unsigned
from cema.errors import FormatError, ModelError, SigningError
from cema.formats.bundle import Bundle, check_golden
from cema.formats.envelope import signed_by
from cema.formats.keys import Signer, key_id
from cema.formats.payload import NormState, decode_payload, encode_payload, round_norm_state
from cema.formats.update import UPDATE_FORMAT, UpdateManifest, sign_update
from cema.models.copying import copy_module
from cema.models.device import memory_format
from cema.models.norm_state import ensure_affine, load_folded, norm_layers
from cema.models.spec import Model
from cema.ondevice.batch import Batch
from cema.ondevice.drift import Domain

__all__ = ["DAY", "Candidate", "Publisher"]

log = logging.getLogger(__name__)

CHUNK = 32
DAY = 86_400
"""Seconds."""
# Seconds by which the clocks of two processes, or of one before and after it was set, may well differ.
CLOCK_SLACK = 60.0
# How far ahead of ours a device's version may be and still be believed.
MOST_AHEAD = 1_000_000


@dataclass(frozen=True)
class Candidate:
    """What the gate said of a norm state.

    Attributes
    ----------
    outcome
        ``published``, ``waiting`` (too few new samples were seen to tell), ``gated`` (the adapted model agrees
        less with the foundation model than the source or the running version), ``reverted`` (and the source model
        better than what devices run: it goes back to them as a new version), ``not_finite``, ``unsigned`` (it would
        have been published or reverted, and there was no signature: it is tried again) or ``renewed`` (the last
        version's payload goes out again).
    update
        The signed update when published, reverted or renewed.
    agreement
        What the decision was made on.
    """

    outcome: Signed
    update: PublishedUpdate | None = None
    agreement: Agreement | None = None


class Publisher:
    """Makes one cohort's updates.

    Where the bundle lists layers with statistics, each device has statistics of its own, which the cloud does not know.
    Updates carry weights and biases apart then, and models are compared with one set of statistics for all: those that
    the learner has, in place of the devices' own.

    Parameters
    ----------
    model
        The edge model that the bundle was exported from.
    bundle
        What the devices were provisioned with.
    cohort
        The cohort's name.
    signers
        Sign the updates, all of them each; devices must trust one of the keys at least
        (`cema.cloud.signing.trust.check_signers`). A single one may be given as it is.
    config
        Lifetime and gate.
    device
        Where new samples are predicted. Golden logits are always computed on the CPU in float32, as devices do.

    Raises
    ------
    ModelError
        The model does not give the bundle's golden logits: it is not the one that was exported.
    """

    def __init__(
        self,
        model: Model,
        bundle: Bundle,
        cohort: str,
        signers: Signer | Sequence[Signer],
        config: PublishConfig,
        *,
        device: str = "cpu",
    ) -> None:
        self._signers = tuple(signers) if isinstance(signers, Sequence) else (signers,)
        self.bundle = bundle
        self.cohort = cohort
        self.config = config
        self.unsigned = Unsigned()
        self._preprocessing = model.preprocessing
        # By the bundle's own preprocessing: what the devices feed the exported model.
        self._golden_inputs = bundle.manifest.preprocessing(bundle.golden_images)
        self._cpu = _Device(copy_module(model))
        self._fast = self._cpu if device == "cpu" else _Device(copy_module(model).to(device))
        self._layers = bundle.manifest.statistics
        self._statistics = bundle.statistics()
        self._source = Carried(bundle.affine_state(), unfolded=bool(self._layers))
        self._running = self._source
        self._payload = b""  # of the last version; before the first there is nothing to renew
        self._other_keys = False  # whether the last version has other signatures than the next one will have
        self.version = 0
        self.created = 0.0
        self._devices_run = 0
        self._floor = 0
        self._check_model(model)

    def _check_model(self, model: Model) -> None:
        manifest = self.bundle.manifest
        try:
            golden = self._cpu.logits(self.bundle.norm_state(), self._golden_inputs)
            check_golden(golden, self.bundle.golden_logits, manifest.tolerance)
        except ValueError as error:
            raise ModelError(
                f"model {model.name!r} is not what the bundle {self.bundle.path} was exported from "
                f"({manifest.model!r}): {error}; name the same model and weights, or export the bundle again"
            ) from error

    def resume(self, latest: PublishedUpdate | None) -> None:
        """Continue after the version that devices were last offered."""
        self.unsigned.forget()
        if latest is not None:
            payload = decode_payload(latest.payload)
            self._running = Carried(payload.norm_state, payload.unfolded)
            self._payload = latest.payload
            names = [key_id(signer.public_key()) for signer in self._signers]
            self._other_keys = signed_by(latest.envelope) != names
            self.version = latest.version
            self.created = latest.created

    def not_below(self, version: int) -> None:
        """Give the next version at least this number: a restored store knows that devices may have seen lower ones."""
        self._floor = max(self._floor, version)

    def ahead(self, now: float) -> bool:
        """Tell whether the last version was made in the future: the clock was wrong then, or is wrong now."""
        return self.created > now + CLOCK_SLACK

    def due(self, now: float) -> bool:
        """Tell whether enough time has passed since the last version; after one from the future, at once.

        After a signature that did not come, enough time since that.
        """
        passed = self.ahead(now) or now >= self.created + self.config.min_seconds
        return passed and self.unsigned.may_try(now)

    def renewal_due(self, now: float) -> bool:
        """Tell whether the last version is past half of its life: devices could soon not install it.

        Or whether it is signed with other keys than those that sign now, or something could not be signed.
        """
        if not self.unsigned.may_try(now):
            return False
        half = self.created + self.config.lifetime_days * DAY / 2
        past = self.version > 0 and (self.ahead(now) or now >= half or self._other_keys)
        return past or self.unsigned.waiting is not None

    def devices_run(self, version: int) -> None:
        """Take note of a version that a device has: the next one must be newer, also after a store was restored.

        Versions that are far ahead are ignored. A device may say anything, and numbers must not run out.
        """
        if self._devices_run < version <= max(self.version, self._devices_run, self._floor) + MOST_AHEAD:
            self._devices_run = version

    @property
    def next_version(self) -> int:
        """The number of the next version."""
        return max(self.version + 1, self.config.first_version, self._devices_run + 1, self._floor)

    def learned(self, learner: Learner[Any]) -> Learned:
        """Return what a learner has learned, as `predictions` and `consider` take it.

        Raises
        ------
        ConfigError
            When its layers with statistics are not the bundle's.
        FormatError
            When something that it has learned is not finite.
        """
        return read_learned(learner, self._layers)

    def predictions(
        self,
        batch: Batch,
        adapted: Mapping[str, npt.NDArray[np.float32]],
        statistics: npt.NDArray[np.float32] | None = None,
    ) -> list[npt.NDArray[np.int64]]:
        """Return the labels (N,) that three models choose for images, each as a device with it would.

        Parameters
        ----------
        batch : Batch
            New samples.
        adapted : mapping of str to ndarray
            The norm state of the model that is being adapted; weights and biases where `statistics` are given.
        statistics : ndarray of float32 (2, K), optional
            What is folded into all three; the bundle's when left out, and `adapted` is folded then. A version from a
            store from before, into which statistics are folded already, runs as it is.

        Returns
        -------
        list of ndarray of int64 (N,)
            Those of the model with `adapted` as an update would carry it, of the version that devices run, and of the
            source model. Two that are the same make one pass.
        """
        inputs = batch.inputs(self._preprocessing)
        rounded = Carried.of(Learned(adapted, statistics), self.bundle.manifest.tolerance)
        found: list[tuple[NormState, npt.NDArray[np.int64]]] = []
        for carried in (rounded, self._running, self._source):
            state = self._folded(carried, statistics)
            known = next((labels for earlier, labels in found if _same(earlier, state)), None)
            labels = self._fast.logits(state, inputs).argmax(axis=1) if known is None else known
            found.append((state, labels))
        return [labels for _, labels in found]

    def consider(
        self,
        norm_state: Mapping[str, npt.NDArray[np.float32]],
        window: AgreementWindow,
        now: float,
        domain: Domain | None = None,
        statistics: npt.NDArray[np.float32] | None = None,
    ) -> Candidate:
        """Make an update of a norm state, unless devices would be worse off with it.

        Parameters
        ----------
        norm_state
            Float32; folded, or weights and biases where `statistics` are given.
        window
            How the adapted model, the version that devices run and the source model did on new samples.
        now
            Unix seconds.
        domain
            What the inputs looked like that the norm state was learned from; devices guard themselves with it.
        statistics
            What it was learned with, (2, K).
        """
        verdict = decide(window, self.config)
        if verdict.decision == "reverted":
            return self._signed("reverted", self.source_payload(), now, verdict.agreement)
        if verdict.decision != "publish":
            return Candidate(verdict.decision, None, verdict.agreement)
        rounded = Carried.of(Learned(norm_state, statistics), self.bundle.manifest.tolerance)
        try:
            golden = self._golden(rounded)
        except FormatError:  # with the bundle's statistics folded in it is beyond float32
            return Candidate("not_finite", None, verdict.agreement)
        if not np.isfinite(golden).all():
            return Candidate("not_finite", None, verdict.agreement)
        told = statistics if self.config.statistics else None
        return self._signed("published", self._encode(rounded, golden, domain, told), now, verdict.agreement)

    def renew(self, now: float) -> Candidate:
        """Sign what could not be signed; or, if there is no such thing, the last version again.

        That is its payload as the next version with a new life: the very same bytes, so that devices see from the
        digest that there is nothing to fetch.
        """
        return self._signed(*(self.unsigned.waiting or ("renewed", self._payload)), now)

    def _signed(
        self, outcome: Signed, payload: bytes, now: float, agreement: Agreement | None = None
    ) -> Candidate:
        try:
            update = self._sign(payload, now)
        except SigningError as error:
            self.unsigned.failed(outcome, payload, now, error)
            report(
                log, events.UPDATE_NOT_SIGNED,
                cohort=self.cohort, version=self.next_version, error=str(error),
            )  # fmt: skip
            return Candidate("unsigned", None, agreement)
        self.unsigned.succeeded()
        return Candidate(outcome, update, agreement)

    def offers(self, payload: bytes, now: float) -> bool:
        """Tell whether devices are offered this very content already, for long enough."""
        return self.version > 0 and payload == self._payload and not self.renewal_due(now)

    def again(self, payload: bytes, now: float) -> PublishedUpdate | None:
        """Sign a payload that was published before, as the next version; None when it cannot be signed now."""
        update = self._signed("again", payload, now).update
        if update is None:
            self.unsigned.forget()  # who wants it keeps it
        return update

    def source_payload(self) -> bytes:
        """Return the source model as an update carries it."""
        source = self._source_state()
        return self._encode(source, self._golden(source))

    def published(self, update: PublishedUpdate, *, to_all: bool = True) -> None:
        """Take note that an update is durable and offered from now on; to some devices alone unless `to_all`."""
        if to_all:
            self.resume(update)
        self.not_below(update.version + 1)

    def _source_state(self) -> Carried:
        """Return the source model as an update carries it."""
        state, unfolded = self._source
        if not unfolded:
            return self._source  # which is rounded only when it is encoded, as it always was
        return Carried(round_norm_state(state, self.bundle.manifest.tolerance), unfolded)

    def _folded(self, carried: Carried, statistics: npt.NDArray[np.float32] | None = None) -> NormState:
        """Return what a device runs with some statistics; by default the bundle's."""
        known = self._statistics if statistics is None else statistics
        return carried.norm_state if known is None else carried.folded(known, self._layers)

    def _encode(
        self,
        carried: Carried,
        golden: npt.NDArray[np.float32],
        domain: Domain | None = None,
        statistics: npt.NDArray[np.float32] | None = None,
    ) -> bytes:
        return encode_payload(
            carried.norm_state,
            golden,
            domain=domain,
            tolerance=self.bundle.manifest.tolerance,
            unfolded=carried.unfolded,
            statistics=statistics,
        )

    def _sign(self, payload: bytes, now: float) -> PublishedUpdate:
        created = int(now)
        manifest = UpdateManifest(
            cohort=self.cohort,
            version=self.next_version,
            base=self.bundle.manifest.base,
            created=created,
            expires=created + math.ceil(self.config.lifetime_days * DAY),
            payload=hashlib.sha256(payload).hexdigest(),
            payload_bytes=len(payload),
            format=UPDATE_FORMAT,
        )
        return PublishedUpdate(
            version=manifest.version,
            digest=manifest.payload,
            envelope=sign_update(manifest, *self._signers),
            payload=payload,
            created=now,
            expires=manifest.expires,
        )

    def _golden(self, carried: Carried) -> npt.NDArray[np.float32]:
        """Return the golden logits: with the bundle's statistics, whichever devices have."""
        return self._cpu.logits(self._folded(carried), self._golden_inputs)


def _same(one: NormState, other: NormState) -> bool:
    return one is other or all(np.array_equal(value, other[key]) for key, value in one.items())


class _Device:
    """The edge model as a device runs it: with one folded norm state after another."""

    def __init__(self, module: torch.nn.Module) -> None:
        ensure_affine(module)
        self._memory = memory_format(module)
        self._module = module.to(memory_format=self._memory)  # type: ignore[call-overload]
        self._layers = norm_layers(module)

    @torch.inference_mode()
    def logits(self, norm_state: NormState, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return logits (N, C) as a device with this norm state computes them."""
        load_folded(self._module, norm_state, self._layers)
        device = next(self._module.parameters()).device
        chunks = (torch.from_numpy(inputs[i : i + CHUNK]) for i in range(0, len(inputs), CHUNK))
        # A copy: the array may be another model's input too, and a network may change its own in place.
        parts = [
            self._module(chunk.to(device, copy=True, memory_format=self._memory)).float().cpu().numpy()
            for chunk in chunks
        ]
        logits: npt.NDArray[np.float32] = np.concatenate(parts)
        return logits
