"""Every metric that the cloud serves, with its labels and what it says."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["METRICS", "Described", "described"]


class Described(NamedTuple):
    """A metric, without its values.

    Attributes
    ----------
    name : str
        As it is made; what is served may have an ending, such as ``_total`` for a counter.
    kind : {"counter", "gauge", "histogram", "summary"}
        Its type.
    labels : tuple of str
        The names of its labels.
    text : str
        What it says.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram", "summary"]
    labels: tuple[str, ...]
    text: str


METRICS = (
    Described(
        "cema_http_request_seconds",
        "histogram",
        ("method", "route", "status"),
        "Time from request to the end of its answer, without what it waited for a new version.",
    ),
    Described(
        "cema_http_errors",
        "counter",
        ("code",),
        "Requests that were answered with an error, by its code; since the server was started.",
    ),
    Described(
        "cema_http_requests_in_progress",
        "gauge",
        (),
        "Requests that are being answered, with those that wait for news.",
    ),
    Described(
        "cema_samples_rejected", "counter", ("cohort", "reason"), "Samples refused at upload, by reason."
    ),
    Described("cema_samples", "counter", ("cohort", "verdict"), "Samples answered at upload, by verdict."),
    Described(
        "cema_uploads_limited",
        "counter",
        ("cohort", "limit"),
        "Uploads refused because the device had sent as much as it may, by limit; since the server was started.",
    ),
    Described(
        "cema_samples_evicted",
        "counter",
        ("cohort", "reason"),
        "Stored samples that left the store, by reason.",
    ),
    Described(
        "cema_labels",
        "counter",
        ("cohort",),
        "True labels of samples that operators brought, new or changed.",
    ),
    Described("cema_worker_events", "counter", ("cohort", "event"), "What the worker did, by event."),
    Described("cema_updates", "counter", ("cohort", "outcome"), "Candidates of an update, by outcome."),
    Described(
        "cema_image_bytes",
        "counter",
        ("cohort", "verdict"),
        "Encoded image bytes of samples answered at upload, by verdict.",
    ),
    Described(
        "cema_reports",
        "counter",
        ("cohort", "outcome"),
        "Reports of devices that came, and those that devices have numbered and that did not.",
    ),
    Described(
        "cema_drawn_samples",
        "counter",
        ("cohort", "event"),
        "Samples that devices drew at random, by what became of them.",
    ),
    Described("cema_step_seconds", "summary", ("cohort",), "Time of the worker's steps."),
    Described("cema_stored_samples", "gauge", ("cohort",), "Samples in the store."),
    Described("cema_backlog_samples", "gauge", ("cohort",), "Samples that wait for the worker."),
    Described("cema_update_version", "gauge", ("cohort",), "Newest published version; 0 before the first."),
    Described(
        "cema_quarantined_devices",
        "gauge",
        ("cohort",),
        "Devices that nothing is learned from: unlike all others, or quarantined by an operator.",
    ),
    Described("cema_seconds_since_commit", "gauge", ("cohort",), "Since the worker's last durable step."),
    Described(
        "cema_agreement_samples",
        "gauge",
        ("cohort", "model"),
        "New samples that the agreement with the foundation model is of, the newest.",
    ),
    Described(
        "cema_agreement_share",
        "gauge",
        ("cohort", "model"),
        "Share of them on which a model chose the foundation model's label.",
    ),
    Described("cema_agreement_standard_error", "gauge", ("cohort", "model"), "Standard error of that share."),
    Described(
        "cema_random_agreement_samples",
        "gauge",
        ("cohort", "model"),
        "Samples drawn at random that the agreement on all that devices see is of, the newest.",
    ),
    Described(
        "cema_random_agreement_share",
        "gauge",
        ("cohort", "model"),
        "Share of all that devices see on which a model chose the foundation model's label, estimated.",
    ),
    Described(
        "cema_random_agreement_standard_error", "gauge", ("cohort", "model"), "Standard error of that share."
    ),
    Described(
        "cema_random_agreement_low",
        "gauge",
        ("cohort", "model"),
        "Lower end of that share's interval of 95 %.",
    ),
    Described(
        "cema_random_agreement_high",
        "gauge",
        ("cohort", "model"),
        "Upper end of that share's interval of 95 %.",
    ),
    Described("cema_store_bytes", "gauge", (), "Bytes of the store in use."),
    Described(
        "cema_backlog_max_samples", "gauge", (), "Samples of a cohort that may wait; more are answered 429."
    ),
    Described(
        "cema_backlog_age_seconds",
        "gauge",
        ("cohort",),
        "Since the oldest sample that waits came; 0 for none.",
    ),
    Described(
        "cema_update_expiry_seconds",
        "gauge",
        ("cohort",),
        "Until the newest version may not be installed any more; below 0 after that. It is signed anew long before.",
    ),
    Described(
        "cema_worker_ready", "gauge", ("cohort",), "1 where the worker has its models and goes on, else 0."
    ),
    Described(
        "cema_seconds_since_worker_report",
        "gauge",
        ("cohort",),
        "Since the worker last said how it is doing.",
    ),
    Described(
        "cema_publishing",
        "gauge",
        ("cohort", "state"),
        "1 for whether and what the worker publishes now, else 0.",
    ),
    Described(
        "cema_act_waiting",
        "gauge",
        ("cohort",),
        "1 while an act of an operator waits for the worker, else 0.",
    ),
    Described(
        "cema_rollout_open",
        "gauge",
        ("cohort", "mode"),
        "1 while a version is for some devices alone, or waits for its release; else 0.",
    ),
    Described(
        "cema_rollout_age_seconds",
        "gauge",
        ("cohort",),
        "Since the open rollout began; 0 where none is open.",
    ),
    Described("cema_registered_devices", "gauge", ("cohort",), "Devices whose tokens are good."),
    Described(
        "cema_seen_devices",
        "gauge",
        ("cohort", "within"),
        "Those of them that were heard of in an hour, or a day.",
    ),
    Described(
        "cema_silent_devices",
        "gauge",
        ("cohort",),
        "Those of them that were not heard of for a day, or never since they were added a day ago or earlier.",
    ),
    Described(
        "cema_expiring_devices", "gauge", ("cohort",), "Those of them whose tokens end within two weeks."
    ),
    Described(
        "cema_problem_devices",
        "gauge",
        ("cohort",),
        "Those of them that were heard of in the last day and reported that something is wrong there.",
    ),
    Described(
        "cema_serving_devices",
        "gauge",
        ("cohort", "version"),
        "Those of them that were heard of in the last day, by the version that serves there, beside the newest one.",
    ),
    Described(
        "cema_reported_counts",
        "gauge",
        ("cohort", "count"),
        "Sums of what all these devices last reported of their whole lives; less once a device is gone.",
    ),
    Described("cema_store_max_bytes", "gauge", (), "What the store may have at most (limits.store_bytes)."),
    Described("cema_build_info", "gauge", ("version",), "1, with the version of CEMA that serves."),
    Described("cema_ready", "gauge", ("check",), "1 where a check of /readyz is well, else 0."),
)
"""Every metric that is served."""
_BY_NAME = {metric.name: metric for metric in METRICS}


def described(name: str) -> Described:
    """Return what is said of a metric."""
    return _BY_NAME[name]
