"""The cloud's page, opened while a demonstration runs: with true accuracy, since the demonstration has labels."""

from __future__ import annotations

import sys
import time
import webbrowser
from collections.abc import Sequence

import httpx2
from rich.console import Console

from cema.cloud.http.access import PAGE_HEADER
from cema.demo.tally import EdgeTally

__all__ = ["LivePage"]

# Between two measures: the cloud adds them up in bins of some seconds.
SECONDS = 2.0


class LivePage:
    """Opens the page in a browser, signed in, and tells the cloud how accurate the models are.

    Parameters
    ----------
    url : str
        The cloud's address.
    cohort : str
    token : str
        Of an admin.
    console : Console
        Where the page's address is printed: a browser may not be there, or on another machine.
    """

    def __init__(self, url: str, cohort: str, token: str, console: Console) -> None:
        self._client = httpx2.Client(base_url=url, timeout=5.0, trust_env=False)
        self._client.headers |= {"Authorization": f"Bearer {token}", PAGE_HEADER: "1"}
        self._path = f"/v1/cohorts/{cohort}/measures"
        self._booked = {"adapted": 0, "frozen": 0}
        self._seen = 0
        self._next = 0.0
        self._console = console
        address = f"{url}/#sign-in={token}"
        console.print(f"page: {address}", highlight=False, soft_wrap=True)
        webbrowser.open(address)

    def update(self, tallies: Sequence[EdgeTally], *, now: bool = False) -> None:
        """Tell the cloud what was scored since the last time, every two seconds or at once."""
        if not now and time.monotonic() < self._next:
            return
        self._next = time.monotonic() + SECONDS
        seen = sum(tally.seen for tally in tallies)
        right = {
            name: sum(int(getattr(tally, name)[: tally.seen].sum()) for tally in tallies)
            for name in self._booked
        }
        measures = {
            f"labelled.{name}": [seen - self._seen, right[name] - self._booked[name]] for name in right
        }
        if seen == self._seen:
            return
        try:
            self._client.post(self._path, json={"measures": measures}).raise_for_status()
        except httpx2.HTTPError:  # the end of the cloud is noticed where its events are read
            return
        self._seen, self._booked = seen, right

    def stay(self) -> None:
        """Keep the page until Enter is pressed, where somebody is there to press it."""
        if sys.stdin.isatty():
            self._console.input("The page stays until you press Enter.")

    def close(self) -> None:
        """Tell nothing any more."""
        self._client.close()
