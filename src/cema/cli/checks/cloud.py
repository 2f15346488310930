"""Checks of a configured cloud."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cema._util.machine import address_here, listening_socket
from cema.cli.checks.base import Check, NotTried, Wrong
from cema.cli.checks.files import check_bundle, check_folder, check_secret

if TYPE_CHECKING:
    from cema.cloud.config import CloudConfig, CohortConfig

__all__ = ["cloud_checks", "is_running"]

_ANSWER_SECONDS = 2.0


def cloud_checks(config: CloudConfig) -> Iterator[Check]:
    """Yield the checks of a cloud, the quick ones first."""
    yield Check(
        "port", partial(_check_port, config), "stop what uses it, or set another `port` in cloud.toml"
    )
    folder = partial(check_folder, may_take=config.limits.store_bytes, setting="limits.store_bytes")
    yield Check(
        "disk (cloud)", partial(folder, Path(config.data)), "name another folder as `data` in cloud.toml"
    )
    yield Check(
        "keys", partial(_check_keys, config), "see that `signing_key` in cloud.toml is the right file"
    )
    for cohort in config.cohort:
        yield Check(
            f"bundle {cohort.name}",
            partial(check_bundle, Path(cohort.bundle)),
            "export it again: cema export BUNDLE --model MODEL --public-key keys/signing.pub",
        )
    for cohort in config.cohort:
        yield Check(
            f"models {cohort.name}",
            partial(_check_models, config, cohort),
            "see that `model` and `foundation` in cloud.toml are right, and that this machine has what they need",
        )


def is_running(config: CloudConfig) -> bool:
    """Tell whether a cloud answers at the configured address."""
    return _ask(config, "/livez") is not None


def _check_port(config: CloudConfig) -> str:
    """See that the port is free, or that a cloud is already there and well."""
    place = f"{config.host} port {config.port}"
    try:
        listening_socket(config.host, config.port).close()
    except (OSError, OverflowError) as error:
        alive = _ask(config, "/livez")
        if alive is None:
            raise Wrong(
                f"{place}: {error}", "stop what uses it, or set another `host` or `port` in cloud.toml"
            ) from error
        if not _in_use(Path(config.data)):
            raise Wrong(
                f"{place}: another CEMA cloud runs there, not that of {config.data}",
                "set another `port` in cloud.toml, and in `url` of edge.toml",
            ) from error
        ready = _ask(config, "/readyz")
        if ready is None or ready.get("status") != "ok":
            told = (ready or {}).get("error", {}).get("message", "it does not answer whether it is ready")
            raise Wrong(
                f"{place}: a CEMA cloud runs there, and is not well: {told}",
                "check again in a moment; if it stays so, see the log of the cloud",
            ) from error
        return f"{place}: a CEMA cloud ({alive.get('version')}) runs there already, and is well"
    return "a free one is taken at the start" if config.port == 0 else f"{place} is free"


def _in_use(data: Path) -> bool:
    """Tell whether a running cloud has this data folder."""
    from cema.cloud.data_folder import lock_data_folder
    from cema.errors import StoreError

    try:
        lock_data_folder(data).close()
    except StoreError:
        return True
    return False


def _ask(config: CloudConfig, path: str) -> dict[str, Any] | None:
    """Ask what listens at the configured address; None where no cloud answers."""
    if config.port == 0:
        return None
    # Through no proxy: it is this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    url = f"http://{address_here(config.host)}:{config.port}{path}"
    try:
        with opener.open(url, timeout=_ANSWER_SECONDS) as answer:
            body = answer.read(1 << 16)
    except urllib.error.HTTPError as error:
        body = error.read(1 << 16)
    except OSError:
        return None
    try:
        found = json.loads(body)
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.keys() & {"status", "error"} else None


def _check_keys(config: CloudConfig) -> str:
    """See that the keys can be read, by not everybody, and that devices trust one of them."""
    from contextlib import closing

    from cema.cloud.signing.signers import signing_public_keys
    from cema.cloud.signing.trust import check_signers
    from cema.formats.bundle import Bundle
    from cema.formats.keys import key_id

    for signer in config.signers:
        if signer.key is not None:
            check_secret(Path(signer.key))
    keys = signing_public_keys(config.signers)
    trusted = []
    with closing(config.open_store()) as store:
        for cohort in config.cohort:
            try:
                bundle = Bundle.load(Path(cohort.bundle))
            except Exception:  # noqa: S112 - the bundle has a check of its own
                continue
            check_signers(store, cohort.name, bundle, keys)
            trusted.append(cohort.name)
    names = ", ".join(key_id(key)[:12] for key in keys)
    return f"{names}: devices of {', '.join(trusted) or 'no cohort that can be read'} trust what is signed"


def _check_models(config: CloudConfig, cohort: CohortConfig) -> str:
    """Load both models, and compare the edge model with its bundle."""
    from cema.cloud.worker.publisher import Publisher
    from cema.cloud.worker.rounds import load_models, usable_device
    from cema.formats.bundle import Bundle

    try:
        bundle = Bundle.load(Path(cohort.bundle))
    except Exception as error:
        raise NotTried("its bundle has to be right first") from error
    edge, foundation = load_models(cohort, bundle)
    if edge.classes != foundation.classes:
        raise Wrong(
            f"{edge.name} has {edge.classes} classes, {foundation.name} has {foundation.classes}",
            "name a foundation model with the same classes",
        )
    Publisher(edge, bundle, cohort.name, (), cohort.publish)  # compares the logits of the golden images
    device = usable_device(config.worker)
    return f"{edge.name} is what the bundle was exported from; {foundation.name} teaches it, on {device}"
