"""Somebody on the way answers a device's uploads in the cloud's place.

Stopped by the spool: a sample leaves it only with a readable verdict of its own, by its id. (Without TLS such an
attacker can still forge the very ids that were sent, and those samples are lost; docs/protocol.md, section 9.) REFUSED:
nothing that was not acknowledged by its id leaves the spool, and the honest cloud gets every such sample afterwards.

    python attacks/forged_verdicts.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial

from _edge import Pair, device_and_cloud, verdicts_of
from _parts import check, eventually, main
from cema.formats.sample import Sample

Forge = Callable[[list[Sample]], bytes]


def attack(pair: Pair, *, forge: Forge, acknowledged: int = 0) -> None:
    """Answer some uploads with forged verdicts, of which `acknowledged` are right ones, in the first answer."""
    device, cloud = pair.device, pair.cloud
    lost: set[str] = set()
    uploads = cloud.uploads
    cloud.stored.clear()

    def answer(samples: list[Sample]) -> bytes:
        if acknowledged and not lost:
            lost.update(sample.id for sample in samples[:acknowledged])
            return forge(samples)
        return verdicts_of([]) if acknowledged else forge(samples)

    cloud.verdicts = answer
    selected = device.see(24, seed=uploads)
    check(selected > 16, f"only {selected} samples were selected")
    eventually(lambda: not device.agent.status().queued, "the samples do not come into the spool")
    eventually(lambda: cloud.uploads >= uploads + 3, "the device sends nothing more")
    left = device.agent.status().spooled
    check(
        left == selected - acknowledged,
        f"{left} of {selected} samples are left, {acknowledged} were acknowledged",
    )
    cloud.verdicts = cloud.honest
    check(device.agent.flush(15), f"the device does not recover: {device.agent.status().last_error}")
    got = len(set(cloud.stored) - lost)
    check(got == selected - acknowledged, f"the cloud has {got} of {selected} samples")
    check(not device.agent.status().dropped, f"dropped: {device.agent.status().dropped}")


def ids(change: Callable[[str], object]) -> Forge:
    """Give verdicts on changed ids."""
    return lambda samples: verdicts_of(change(sample.id) for sample in samples)


def told(verdict: str) -> Forge:
    return lambda samples: verdicts_of([sample.id for sample in samples], verdict)


def bare(samples: list[Sample]) -> bytes:
    return json.dumps({"verdicts": [sample.id for sample in samples]}).encode()


FORGED: dict[str, Forge] = {
    "samples-never-sent": lambda _: verdicts_of([f"{i:064x}" for i in range(100)]),
    "no-verdicts": lambda _: verdicts_of([]),
    "no-answer": lambda _: b"",
    "no-json": lambda _: b"stored",
    "a-login-page": lambda _: b"<!doctype html><title>Log in</title>",
    "ids-in-capitals": ids(str.upper),
    "ids-cut-short": ids(lambda id_: id_[:32]),
    "ids-with-blanks": ids(lambda id_: f" {id_} "),
    "ids-in-lists": ids(lambda id_: [id_]),
    "unknown-verdict": told("accepted"),
    "verdict-in-capitals": told("STORED"),
    "ids-without-verdicts": bare,
    "answer-cut-short": lambda samples: verdicts_of(sample.id for sample in samples)[:-2],
    "nested-without-end": lambda _: b'{"verdicts":' + b"[" * 100_000,
    "ten-thousand-strangers": lambda _: verdicts_of([f"{i:064x}" for i in range(10_000)]),
}
VARIANTS: dict[str, Callable[[Pair], None]] = {
    **{name: partial(attack, forge=forge) for name, forge in FORGED.items()},
    # One sample of the first batch is acknowledged, a hundred times: only that one may go.
    "one-sample-a-hundred-times": partial(
        attack, forge=lambda samples: verdicts_of([samples[0].id] * 100), acknowledged=1
    ),
    "every-verdict-twice-but-one": partial(
        attack, forge=lambda samples: verdicts_of([s.id for s in samples[:2]] * 2), acknowledged=2
    ),
}

if __name__ == "__main__":
    sys.exit(main(VARIANTS, device_and_cloud, shared=True))
