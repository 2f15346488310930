"""Which acts a cohort's configuration allows: what no store knows."""

from __future__ import annotations

from cema.cloud.config import CohortConfig
from cema.cloud.store.control import Act, ActRefused, Canary

__all__ = ["check_act"]


def check_act(act: Act, cohort: CohortConfig) -> None:
    """Refuse an act that would change nothing with this configuration.

    Raises
    ------
    ActRefused
        It sets the share of canary devices, and versions do not come to canary devices first.
    """
    if isinstance(act, Canary) and act.first is not None and cohort.rollout.mode != "canary":
        raise ActRefused(
            f"cohort {cohort.name!r} has no canary devices: new versions go out by the mode {cohort.rollout.mode!r}; "
            'set mode = "canary" in [cohort.rollout] of cloud.toml, and start the cloud again'
        )
