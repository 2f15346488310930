"""Very many connections without a request, or with half of one: to take all places, and keep honest devices out.

Stopped by a limit of connections, of which the one that has waited the longest without a request makes room for a new
one, and by the time that headers may take (shortened here to half a second). REFUSED: a real device delivers its
samples meanwhile, there are never more connections than the limit, and all silent ones are closed.

    python attacks/silent_connections.py
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, suppress
from functools import partial

from _cloud import Service, service
from _edge import COHORT, Device
from _parts import check, eventually, main
from cema.cloud.http.connections import Connections

MOST, ATTACKERS = 32, 150
HEAD = b"GET /livez HTTP/1.1\r\nHost: cloud\r\n"


def attack(cloud: Service, *, sent: bytes, again: bytes = b"") -> None:
    """Open many more connections than there are places; send each something, and something again and again."""
    device = Device(cloud.new_folder(), cloud.url, token=cloud.token)
    before = cloud.engine.store.backlog(COHORT).samples
    with ExitStack() as stack:
        stack.callback(device.agent.close)
        silent = [stack.enter_context(cloud.connect(sent)) for _ in range(ATTACKERS)]
        selected = device.see(16, seed=before)
        check(device.agent.flush(15), f"a device cannot deliver: {device.agent.status().last_error}")
        for connection in silent:
            with suppress(OSError):
                connection.sendall(again)
        check(len(cloud.connections) <= MOST, f"{len(cloud.connections)} connections are open")
        got = cloud.engine.store.backlog(COHORT).samples - before
        check(got == selected, f"{got} of {selected} samples came")
        cloud.takes_honest_samples()
        for connection in silent:
            with suppress(ConnectionError):
                while connection.recv(4096):
                    pass
    eventually(lambda: len(cloud.connections) == 0, "connections are left")


VARIANTS = {
    "silent": partial(attack, sent=b""),
    "first-byte": partial(attack, sent=b"G"),
    "half-a-head": partial(attack, sent=HEAD),
    "a-header-now-and-then": partial(attack, sent=HEAD, again=b"X-Slow: a\r\n"),
    "after-a-request": partial(attack, sent=HEAD + b"\r\n"),
    "no-http": partial(attack, sent=b"\x16\x03\x01" + bytes(200)),
}

if __name__ == "__main__":
    sys.exit(main(VARIANTS, partial(service, connections=Connections(MOST, header_seconds=0.5)), shared=True))
