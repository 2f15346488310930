"""Whether devices trust what signs, and the documents that change which keys they trust."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from cema._util.events import report
from cema.cloud import events
from cema.cloud.store.audits import AuditedAct
from cema.cloud.store.base import Store
from cema.cloud.store.keys import KeysStore, keys_of
from cema.errors import ConfigError
from cema.formats.bundle import Bundle
from cema.formats.keyring import KEYS_FORMAT, Keyring, KeysDocument, sign_keys
from cema.formats.keys import Signer, key_id

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

__all__ = ["change_keys", "check_signers", "cohort_keyring"]

log = logging.getLogger(__name__)

DAY = 86_400


def cohort_keyring(store: Store, cohort: str, bundle: Bundle) -> Keyring:
    """Return what a device of a cohort trusts that has its bundle and has seen all of the cohort's keys documents."""
    keyring = Keyring.of(cohort, bundle.public_keys)
    documents = store.keys_documents(cohort) if isinstance(store, KeysStore) else []
    return keyring.accept_all(documents, now=None)[0]


def check_signers(store: Store, cohort: str, bundle: Bundle, keys: Sequence[Ed25519PublicKey]) -> None:
    """Check that a cohort's devices accept what some keys sign together.

    Raises
    ------
    ConfigError
        They trust none of the keys: neither the bundle nor a keys document of the cohort names one.
    """
    keyring = cohort_keyring(store, cohort, bundle)
    names = [key_id(key) for key in keys]
    if not keyring.trusted.keys() & set(names):
        raise ConfigError(
            f"cohort {cohort!r}: devices with the bundle {bundle.path} trust the keys {sorted(keyring.trusted)}, "
            f"updates are signed with {names}: they would refuse every update; sign with a trusted key, make this one "
            "trusted (`cema keys rotate`), or export the bundle with it"
        )
    if revoked := keyring.revoked_ids & set(names):
        report(log, events.KEY_REVOKED, cohort=cohort, keys=", ".join(sorted(revoked)))


def change_keys(
    store: Store,
    cohort: str,
    bundle: Bundle,
    signers: Sequence[Signer],
    *,
    trust: Collection[Ed25519PublicKey] = (),
    retire: Collection[str] = (),
    revoke: Collection[str] = (),
    now: float,
    days: float,
    actor: str | None = None,
) -> Keyring:
    """Make a keys document, sign it, and keep it: devices of the cohort get it from then on.

    Parameters
    ----------
    store
        Where the documents are.
    cohort, bundle
        The cohort, and what its devices were provisioned with.
    signers
        Those sign whose keys are trusted before or after it, and not revoked.
    trust
        Public keys that are trusted from now on, beside those that are already.
    retire, revoke
        Ids of trusted keys that sign nothing new from now on; of revoked ones nothing counts that they have signed.
    now
        Unix seconds.
    days
        How long a device that does not have it yet may accept it.
    actor
        Who does it, for the store's record of acts; None leaves none.

    Returns
    -------
    Keyring
        What devices trust then.

    Raises
    ------
    ConfigError
        An id is of no key that is or was trusted, or no key would be left, or no signer may sign the document.
    KeysRejected
        Devices would refuse the document.
    SigningError
        A signer does not sign now.
    StoreError
        The store keeps no documents, or cannot be written.
    """
    keeper, keyring = keys_of(store), cohort_keyring(store, cohort, bundle)
    known = {name: key.public_bytes_raw().hex() for name, key in keyring.known.items()}
    for name in (*retire, *revoke):
        if name not in known:
            raise ConfigError(
                f"cohort {cohort!r}: expected the id of one of the keys {sorted(known)}, got {name!r}"
            )
    revoked = keyring.revoked | {known[name] for name in revoke}
    kept = {name: known[name] for name in keyring.trusted if name not in {*retire, *revoke}}
    kept |= {key_id(key): key.public_bytes_raw().hex() for key in trust}
    if not kept:
        raise ConfigError(f"cohort {cohort!r}: no key would be left; name another one to trust first")
    try:
        document = KeysDocument(
            cohort=cohort, serial=keyring.serial + 1, keys=tuple(sorted(kept.values())), revoked=tuple(sorted(revoked)),
            created=int(now), expires=int(now + days * DAY), format=KEYS_FORMAT,
        )  # fmt: skip
    except ValueError as error:
        raise ConfigError(f"cohort {cohort!r}: the keys document would be wrong: {error}") from error
    may_sign = (kept.keys() | keyring.trusted.keys()) - set(revoke)
    chosen = [signer for signer in signers if key_id(signer.public_key()) in may_sign]
    devices_trust = sorted(keyring.trusted.keys() - set(revoke))
    if not [signer for signer in chosen if key_id(signer.public_key()) in devices_trust]:
        raise ConfigError(
            f"cohort {cohort!r}: the document has to be signed by one of the keys {devices_trust}, and none of these "
            "is among the signing keys; add it to the settings while keys are exchanged"
        )
    envelope = sign_keys(document, *chosen)
    after = keyring.accept(envelope, now=now)  # as a device does
    act = None
    if actor is not None:
        detail = {
            "serial": document.serial,
            "trusted": sorted(after.trusted),
            "revoked": sorted(after.revoked_ids),
        }
        act = AuditedAct(actor, "keys.revoke" if revoke else "keys.rotate", cohort, detail)
    keeper.put_keys_document(cohort, document.serial, envelope, act=act)
    return after
