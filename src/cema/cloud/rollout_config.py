"""How a new version comes to a cohort's devices: the tables ``[cohort.rollout]`` and ``[cohort.rollout.stop_if]``."""

from __future__ import annotations

from typing import Literal

import msgspec

from cema._util.checks import require_at_least

__all__ = ["RolloutConfig", "StopConfig"]


class StopConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a canary device has spoiled a version.

    Attributes
    ----------
    guarded : float
        The share of its predictions, 0 to 1, above which the guard has put the source model in the version's place. 1:
        never.
    entropy : float
        How many times as high as before the mean entropy of its predictions is, above which it has; at least 1. 0:
        never.
    agreement : float
        By how much, as a share, its samples agree less with the foundation model than all devices' did with the version
        before, where the intervals of 95 % of both are apart, too. 1: never.
    refused : bool
        Whether it has when it could not install the version, or went back from it.
    devices : float
        The share of the canary devices, 0 to 1, that must have spoiled the version for it to be taken back; one at
        least. One broken or hostile device among many cannot hold all others up.
    """

    guarded: float = 0.5
    entropy: float = 1.5
    agreement: float = 0.1
    refused: bool = True
    devices: float = 0.2

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name in ("guarded", "agreement", "devices"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a share from 0 to 1, got {value}")
        if self.entropy != 0:
            require_at_least(self, 1, "entropy", finite=True)


class RolloutConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a version that passes the gate comes to the devices.

    Attributes
    ----------
    mode : {"immediate", "manual", "canary"}
        ``immediate``: to all at once. ``manual``: to none until an operator releases it. ``canary``: to some devices
        first, and to all once those have done well; or else the content before goes out again.
    first : float
        The share of the cohort's devices that are canary devices, above 0 to 1; one at least. The same ones each time,
        by a hash of their names, of those that were heard of in the last day.
    wait : float
        Seconds for which the canary devices are watched, at least; and the seconds after which a newer version may take
        the place of one that waits for its release.
    least : int
        Images that a canary device must have predicted with the version before it counts; half of them must count.
    stop_if : StopConfig
        When a version is taken back.
    """

    mode: Literal["immediate", "manual", "canary"] = "immediate"
    first: float = 0.1
    wait: float = 600.0
    least: int = 64
    stop_if: StopConfig = StopConfig()

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if not 0 < self.first <= 1:
            raise ValueError(f"first: expected a share above 0, up to 1, got {self.first}")
        require_at_least(self, 0, "wait", finite=True)
        require_at_least(self, 1, "least")
