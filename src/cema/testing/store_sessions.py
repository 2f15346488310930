"""Tests of a store: sessions of operators, if it keeps them."""

from __future__ import annotations

import pytest

from cema.cloud.store.base import Store
from cema.cloud.store.fleet import FleetRegister, Remove, Renew
from cema.cloud.store.sessions import SESSION_SECONDS, SESSIONS_OF_ONE, SessionStore
from cema.testing.store_case import StoreCase

__all__ = ["SessionTests"]


class SessionTests(StoreCase):
    """A session stands for the token that it was opened with, until either ends."""

    @pytest.fixture
    def sessions(self, store: Store) -> SessionStore:
        """Return the store, if it keeps sessions."""
        if not isinstance(store, SessionStore):
            pytest.skip("this store keeps no sessions")
        return store

    @pytest.fixture
    def token(self, store: Store) -> str:
        """Return the token of an operator, ``ann``."""
        return store.devices(["north"]).add("ann", cohort="north", role="operator")

    def test_a_session_is_its_token_s_holder_until_it_ends(self, sessions: SessionStore, token: str) -> None:
        assert sessions.open_session("nobody's", now=1.0) is None
        assert sessions.session("nobody's", now=1.0) is None
        secret, other = (sessions.open_session(token, now=1.0) for _ in range(2))
        assert secret
        assert other
        assert len({secret, other, token}) == 3
        found = sessions.session(secret, now=1.0)
        assert found is not None
        assert (found.name, found.role, found.cohort) == ("ann", "operator", "north")
        assert sessions.session(token, now=1.0) is None, "a token is no session"
        sessions.end_session(secret)
        sessions.end_session(secret)
        assert sessions.session(secret, now=1.0) is None
        assert sessions.session(other, now=0.5 + SESSION_SECONDS) is not None
        assert sessions.session(other, now=1.0 + SESSION_SECONDS) is None

    def test_a_session_tells_that_its_holder_is_revoked(
        self, store: Store, sessions: SessionStore, token: str
    ) -> None:
        secret = sessions.open_session(token, now=1.0)
        store.devices(["north"]).revoke("ann", now=2.0)
        found = sessions.session(secret or "", now=3.0)
        assert found is not None
        assert found.revoked_at == 2.0

    def test_a_session_ends_with_its_token(self, store: Store, sessions: SessionStore, token: str) -> None:
        secret = sessions.open_session(token, now=1.0)
        again = store.devices(["north"]).renew("ann")
        assert sessions.session(secret or "", now=2.0) is None
        secret = sessions.open_session(again, now=2.0)
        register = store.devices(["north"])
        if not isinstance(register, FleetRegister):
            pytest.skip("its register takes no acts")
        newest = register.act("ann", Renew(overlap=60.0)).token
        assert sessions.session(secret or "", now=3.0) is not None, (
            "the older token is good for a minute more"
        )
        register.act("ann", Remove())
        assert sessions.session(secret or "", now=3.0) is None
        assert sessions.open_session(newest or "", now=3.0) is None

    def test_a_clock_that_was_ahead_leaves_no_session_that_lasts(
        self, sessions: SessionStore, token: str
    ) -> None:
        year = 365 * 86_400.0
        secret = sessions.open_session(token, now=1.0 + year)
        assert sessions.session(secret or "", now=1.0 + year) is not None
        assert sessions.session(secret or "", now=1.0) is None
        # Set back a little, it is still the same day's work.
        assert sessions.session(secret or "", now=year - 60.0) is not None

    def test_too_many_sessions_of_one_token_end_the_oldest(self, sessions: SessionStore, token: str) -> None:
        opened = [sessions.open_session(token, now=float(now)) for now in range(1, SESSIONS_OF_ONE + 3)]
        alive = [sessions.session(secret or "", now=30.0) is not None for secret in opened]
        assert alive == [False, False] + [True] * SESSIONS_OF_ONE
