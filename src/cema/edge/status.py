"""What an agent reports: a prediction, and how things are."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

__all__ = ["BudgetStatus", "EdgeStatus", "LimitStatus", "Prediction"]


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the model says about a batch, and what the agent makes of it.

    Attributes
    ----------
    logits : ndarray of float32 (N, C)
    labels : ndarray of int64 (N,)
    entropy : ndarray of float64 (N,)
        In nats.
    selected : ndarray of bool (N,)
        Whether the sample is worth sending.
    version : int
        Of the norm state that predicted; 0 is the one the device was provisioned with.
    guarded : bool
        Whether that is so because the inputs are not what the installed update was made for.
    captured_at : float
        Unix seconds; the samples of this prediction that are sent carry it too.
    drawn : ndarray of bool (N,)
        Whether the sample is sent whatever its entropy, by chance alone.
    base : str
        The base model that predicted, of the bundle that served.
    class_names : tuple of str or None
        That bundle's names for its classes, where it has any: another bundle may have others.
    """

    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    entropy: npt.NDArray[np.float64]
    selected: npt.NDArray[np.bool_]
    version: int
    guarded: bool
    captured_at: float
    drawn: npt.NDArray[np.bool_]
    base: str = ""
    class_names: tuple[str, ...] | None = None


class LimitStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How one limit of the budget is used.

    Attributes
    ----------
    used : int
        Bytes or samples that count in the window now.
    allowed : int
    projected : int
        What a whole window would use at the rate of its latest quarter.
    on_course : bool
        Whether that is allowed, and nothing waits for this limit.
    """

    used: int
    allowed: int
    projected: int
    on_course: bool


class BudgetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How the budget is used.

    Attributes
    ----------
    limits : dict of str to LimitStatus
        By their names in the configuration.
    waits_for : str or None
        The limit that keeps samples waiting, or ``quiet_hours``; None when none does.
    waits_until : float or None
        When they may be sent, in unix seconds by the device's clock.
    text : str
        The same in words.
    """

    limits: dict[str, LimitStatus]
    waits_for: str | None
    waits_until: float | None
    text: str


class EdgeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How an agent is doing. Counts go on over restarts; the latest may be lost when the process is killed.

    Attributes
    ----------
    version : int
        The newest one that was installed; it serves unless `drifted`.
    drifted : bool
        Whether the source model serves, because the latest inputs are not what the update was made for.
    digest : str or None
        SHA-256 of its payload; None for the one the device was provisioned with.
    base : str
        The base model of the bundle that serves.
    model, cohort : str, str or None
    predicted, selected, guarded : int
        Images: all, those worth sending, and those that the source model predicted in an update's place.
    left_out : dict of str to int
        Images that the selection did not take, by reason.
    drawn : int
        Images that were drawn at random, to be sent whatever the selection says; some of them are selected too.
    drawn_uploaded, drawn_lost : int
        Samples of those that the cloud answered ``stored`` or ``duplicate`` on, and those that were dropped. An image
        that is drawn again while it waits is one sample.
    queued, spooled : int
        Samples waiting for the spool, and in it.
    uploaded : int
        Samples the cloud answered ``stored`` or ``duplicate`` on.
    bytes_up : int
        Their encoded image bytes.
    bytes_down : int
        Bytes of update envelopes and payloads.
    requests : int
        Uploads tried.
    dropped : dict of str to int
        Samples that were lost, by reason.
    rejected_updates : dict of str to int
        By reason.
    rejected_bundles : dict of str to int
        Bundles that were offered and refused, by reason.
    swaps : int
        Updates that came to serve while the agent ran.
    on_trial : bool
        Whether the newest one has still to show that it is good here (:mod:`cema.edge.probation`).
    own_statistics : bool
        Whether the device's own statistics are used, where an update allows it.
    read : int
        Images that statistics were read from.
    domain_changes : int
        How often the device saw, since it was started, that the domain had changed, and began anew.
    selection : dict of str to float
        The numbers that decide now about what is sent; what the selection rule calls them.
    e_max : float or None
        The upper threshold among them, in nats; None for a rule without one.
    spool_bytes : int
        Encoded image bytes in the spool.
    budget : BudgetStatus or None
        None where neither limits nor quiet hours are configured, or no cloud.
    last_error : str or None
        What is wrong in the background right now; None when everything works.
    """

    version: int
    drifted: bool
    digest: str | None
    base: str
    model: str
    cohort: str | None
    predicted: int
    selected: int
    guarded: int
    left_out: dict[str, int]
    drawn: int
    drawn_uploaded: int
    drawn_lost: int
    queued: int
    spooled: int
    uploaded: int
    bytes_up: int
    bytes_down: int
    requests: int
    dropped: dict[str, int]
    rejected_updates: dict[str, int]
    rejected_bundles: dict[str, int]
    swaps: int
    on_trial: bool
    own_statistics: bool
    read: int
    domain_changes: int
    selection: dict[str, float]
    e_max: float | None
    spool_bytes: int
    budget: BudgetStatus | None
    last_error: str | None
