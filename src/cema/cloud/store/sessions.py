"""What a store keeps of operators who are signed in at the page: a secret of their browser, in place of their token.

A back end may do without; `sessions_of` tells.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from cema.cloud.store.base import Store
from cema.cloud.store.devices import Device

__all__ = ["SESSIONS_OF_ONE", "SESSION_SECONDS", "SessionStore", "sessions_of"]

SESSION_SECONDS = 12 * 3600.0
"""How long a session lasts: a day's work."""
SESSIONS_OF_ONE = 16
"""Sessions of one token at one time; a further one ends the oldest."""


@runtime_checkable
class SessionStore(Protocol):
    """The part of a store that keeps sessions; see `cema.cloud.store.base.Store` for what every method may raise.

    A session stands for the token that it was opened with: it ends with that token, also where the operator is revoked,
    removed, or has a new token. Only the SHA-256 of a session's secret is kept.
    """

    def open_session(self, token: str, *, now: float) -> str | None:
        """Open a session for the holder of a token, for `SESSION_SECONDS`.

        Parameters
        ----------
        token : str
        now : float
            Unix seconds.

        Returns
        -------
        str or None
            The session's secret; None where the token is nobody's.
        """
        ...

    def session(self, secret: str, *, now: float) -> Device | None:
        """Return whose session this is, revoked or expired or not; None where it is none, or has ended."""
        ...

    def end_session(self, secret: str) -> None:
        """End a session; one that is not there has ended already."""
        ...


def sessions_of(store: Store) -> SessionStore | None:
    """Return a store that keeps sessions as one, or None."""
    return store if isinstance(store, SessionStore) else None
