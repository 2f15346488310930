"""Checks of a configured device."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cema.cli.checks.base import Check, NotTried, Wrong
from cema.cli.checks.files import check_bundle, check_folder, check_secret, plausible_clock

if TYPE_CHECKING:
    from collections.abc import Callable

    from cema.edge.config import CloudLink, EdgeConfig

__all__ = ["clock_check", "edge_checks"]

_ANSWER_SECONDS = 3.0
# An answer's date has whole seconds; a device whose clock is off by more takes good updates for expired ones at last.
_CLOCK_SLACK = 60.0


def edge_checks(config: EdgeConfig, *, bundle: bool, waits: Callable[[], str | None]) -> Iterator[Check]:
    """Yield the checks of a device.

    Parameters
    ----------
    config : EdgeConfig
    bundle : bool
        Whether its bundle is to be looked at; a cloud beside it may have the same.
    waits : callable
        Says why the cloud cannot answer yet, where that is no fault; else None.
    """
    folder = partial(check_folder, may_take=config.upload.spool_bytes, setting="upload.spool_bytes")
    yield Check(
        "disk (device)", partial(folder, Path(config.state)), "name another folder as `state` in edge.toml"
    )
    if bundle:
        yield Check(
            "bundle (device)",
            partial(check_bundle, Path(config.bundle)),
            "copy the bundle from the cloud again, and see that `bundle` in edge.toml names it",
        )
    yield Check("token", partial(_check_token, config), "put the token there that `cema device add` printed")
    asked = _Asked()
    yield Check(
        "connection",
        partial(_check_connection, config, asked, waits),
        "see that the cloud runs, and that `url`, `cohort` and the token in edge.toml are those that it knows: "
        "`cema device list` on its machine",
    )
    yield clock_check(asked)


def clock_check(asked: _Asked | None = None) -> Check:
    """Return the check of this machine's clock, against the cloud's where that has answered."""
    return Check("clock", partial(_check_clock, asked), "set the clock, for example by NTP")


class _Asked:
    """What the cloud answered."""

    def __init__(self) -> None:
        self.date: str | None = None

    def status(self, link: CloudLink) -> dict[str, Any]:
        """Return what the cloud says to a device that asks how its cohort stands."""
        from cema.edge.background import Clock
        from cema.edge.client import CloudClient

        client = CloudClient(
            link.url, link.cohort, link.read_token, _ANSWER_SECONDS, Clock(), ca_file=link.ca_file
        )
        try:
            reply = client.status()
        finally:
            client.close()
            client.release()
        self.date = reply.headers.get("date")
        found = json.loads(reply.body)
        return found if isinstance(found, dict) else {}


def _check_token(config: EdgeConfig) -> str:
    link = config.cloud
    if link is None:
        raise NotTried("edge.toml has no [cloud]: the device talks to nobody")
    link.read_token()
    if link.token_file is None:
        return "it is in edge.toml"
    check_secret(Path(link.token_file))
    return f"{link.token_file} can be read"


def _check_connection(config: EdgeConfig, asked: _Asked, waits: Callable[[], str | None]) -> str:
    """Ask the cloud as the device does: address, token, cohort and base model."""
    from cema.edge.proxy import without_password
    from cema.formats.bundle import Bundle

    link = config.cloud
    if link is None:
        raise NotTried("edge.toml has no [cloud]: the device talks to nobody")
    if reason := waits():
        raise NotTried(reason)
    try:
        base = Bundle.load(Path(config.bundle)).manifest.base
    except Exception as error:
        raise NotTried("the bundle has to be right first") from error
    status = asked.status(link)
    wanted = str(
        status.get("base") or base
    )  # a cloud that has not heard of the cohort's models yet says none
    if wanted != base:
        raise Wrong(
            f"the cloud adapts the base model {wanted[:12]}, the device's bundle has {base[:12]}",
            "copy the folder `bundle` of the cloud to the device",
        )
    update = status.get("update")
    news = (
        f"version {update.get('version')} is ready"
        if isinstance(update, dict)
        else "no update is published yet"
    )
    return (
        f"{without_password(link.url)} takes the token, for the cohort {link.cohort} and this bundle; {news}"
    )


def _check_clock(asked: _Asked | None) -> str:
    text = plausible_clock()
    if asked is None or asked.date is None:
        return f"{text}, which may be right"
    ahead = time.time() - parsedate_to_datetime(asked.date).timestamp()
    if abs(ahead) > _CLOCK_SLACK:
        way = "ahead of" if ahead > 0 else "behind"
        raise Wrong(
            f"{text}, {abs(ahead):.0f} s {way} the cloud's", "set the clock that is wrong, for example by NTP"
        )
    return f"{text}, as the cloud's"
