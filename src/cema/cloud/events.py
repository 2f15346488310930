"""Every event that the cloud logs: its stable name, its level, what it means, its fields.

docs/reference/log-events.md is made of this module. The suite checks that the code logs these events and no others.
"""

from __future__ import annotations

from logging import DEBUG, ERROR, INFO, WARNING

from cema._util.events import Event

__all__ = ["EVENTS"]

EVENTS: dict[str, Event] = {}
"""By name."""

_COHORT = {"cohort": "the cohort's name"}
_ERROR = {"error": "what failed"}
_REQUEST = {
    "method": "the HTTP method",
    "route": "the route, such as `/v1/cohorts/{cohort}/samples`; never the path itself",
    "status": "the HTTP status",
    "seconds": "from the request to the end of its answer, without what it waited for because it had asked to",
    "device": "whose token it carried; null without a good one",
    "cohort": "the cohort that was asked for, where it is one; else null",
}
_ANSWERED = "%(method)s %(route)s: %(status)d after %(seconds).3f s, device %(device)s"


def _event(name: str, level: int, message: str, meaning: str, fields: dict[str, str] | None = None) -> Event:
    EVENTS[name] = Event(name, level, message, meaning, fields or {})
    return EVENTS[name]


# The server.
REQUEST_WRITTEN = _event(
    "request.written",
    INFO,
    _ANSWERED,
    "A request that changes something was answered, with success.",
    _REQUEST,
)
REQUEST_READ = _event(
    "request.read",
    DEBUG,
    _ANSWERED,
    "A request that changes nothing was answered, with success: polls of devices, above all.",
    _REQUEST,
)
REQUEST_REFUSED = _event(
    "request.refused",
    INFO,
    _ANSWERED,
    "A request was refused (status 4xx). Of one device and one status only some are written in ten seconds.",
    _REQUEST,
)
REQUEST_FAILED = _event(
    "request.failed",
    WARNING,
    _ANSWERED,
    "A request could not be answered (status 5xx): the service is busy, or something fails; other events say what.",
    _REQUEST,
)
SAMPLES_NOT_STORED = _event(
    "samples.not_stored",
    ERROR,
    "samples could not be stored: %(error)s",
    "The store cannot be written now. The device was answered 503 and sends the samples again.",
    _ERROR,
)
VERSIONS_NOT_READ = _event(
    "versions.not_read",
    WARNING,
    "new versions cannot be looked for: %(error)s",
    "Devices that wait for a version learn of it later.",
    _ERROR,
)
OVERVIEW_NOT_READ = _event(
    "overview.not_read",
    WARNING,
    "where the cohorts stand cannot be read: %(error)s",
    "The page shows what it showed before.",
    _ERROR,
)
POLLS_NOT_NOTED = _event(
    "polls.not_noted",
    WARNING,
    "when devices were last heard of could not be noted: %(error)s",
    "The list of devices tells older moments; nothing else depends on it.",
    _ERROR,
)
REPORTS_NOT_NOTED = _event(
    "reports.not_noted",
    WARNING,
    "reports of devices could not be noted: %(error)s",
    "They are lost; a canary rollout waits for the next ones.",
    _ERROR,
)
FETCHES_NOT_NOTED = _event(
    "fetches.not_noted",
    WARNING,
    "who fetched updates could not be noted: %(error)s",
    "Traces of updates miss some devices.",
    _ERROR,
)
HISTORY_NOT_NOTED = _event(
    "history.not_noted",
    WARNING,
    "measures over time could not be noted: %(error)s",
    "The history misses them; nothing else depends on it. The server writes it, and the worker.",
    _ERROR,
)
TOKENS_NOT_NOTED = _event(
    "tokens.not_noted",
    WARNING,
    "which devices have used a new token could not be noted: %(error)s",
    "It is noted when they use it again. Until then the list of devices says that the new token was not used yet.",
    _ERROR,
)
USAGE_NOT_KEPT = _event(
    "usage.not_kept",
    WARNING,
    "how much devices have sent could not be kept: %(error)s",
    "The limits of devices hold all the same; after a restart of the server some devices may send more than they may.",
    _ERROR,
)
DEVICE_EXPIRES = _event(
    "device.expires",
    WARNING,
    "device %(device)s: its token expires in %(days).1f days",
    "The device will be refused then. Give it more time with `cema device expire`. Said once a day of each device that "
    "asks or sends.",
    {"device": "its name", "days": "until then"},
)
BASES_NOT_NOTED = _event(
    "bases.not_noted",
    WARNING,
    "which base models devices have could not be noted: %(error)s",
    "The list of base models tells an older one for some devices; nothing else depends on it.",
    _ERROR,
)
CONNECTIONS_FULL = _event(
    "connections.full",
    WARNING,
    "%(most)d connections are open, closing the one that has waited the longest",
    "More connections came than the process may hold.",
    {"most": "how many it may hold"},
)
CONNECTION_SLOW = _event(
    "connection.slow",
    WARNING,
    "a connection was closed: its %(phase)s took too long",
    "A sender was too slow, or sent nothing.",
    {"phase": "what it was in: `headers` or `request`"},
)
WORKER_NOT_STARTED = _event(
    "worker.not_started",
    ERROR,
    "the worker cannot be started: %(error)s",
    "The machine has no memory or processes left; it is tried again.",
    _ERROR,
)
WORKER_RESTARTED = _event(
    "worker.restarted",
    ERROR,
    "the worker ended with status %(status)d; starting another in %(seconds).1f s",
    "The worker process died. What it had committed is safe; the step in work is done again.",
    {"status": "its exit status; below 0, the signal that ended it", "seconds": "until the next start"},
)
RESTART_NOT_NOTED = _event(
    "restart.not_noted",
    ERROR,
    "the worker's restart could not be noted: %(error)s",
    "The counter of restarts misses one.",
    _ERROR,
)
BUNDLE_NOT_OFFERED = _event(
    "bundle.not_offered",
    ERROR,
    "cohort %(cohort)s: the bundle that devices are to fetch is not in the data folder: %(reason)s",
    "Devices with the old bundle keep it. Make room, or tell them anew: `cema cohort migrate NAME --bundle FOLDER`.",
    {**_COHORT, "reason": "why it could not be copied there"},
)

# The worker.
WORKER_FENCED = _event(
    "worker.fenced",
    ERROR,
    "%(error)s",
    "Another worker has taken a cohort over; this one ends.",
    _ERROR,
)
WORKER_MISCONFIGURED = _event(
    "worker.misconfigured",
    ERROR,
    "%(error)s",
    "The worker cannot work with the configuration, or with a file that it names. Correct it.",
    _ERROR,
)
WORKER_FAILED = _event(
    "worker.failed", ERROR, "%(error)s", "No cohort can go on in this process; another is started.", _ERROR
)
QUARANTINE_CHANGED = _event(
    "quarantine.changed",
    INFO,
    "cohort %(cohort)s: operators have quarantined [%(quarantined)s] and released [%(released)s]",
    "The worker has seen what operators say, of devices of any cohort: nothing is learned from those quarantined.",
    {**_COHORT, "quarantined": "names, with commas", "released": "names, with commas"},
)
LAYERS_LEFT_OUT = _event(
    "layers.left_out",
    WARNING,
    "cohort %(cohort)s: %(side)s model: not adapted: %(layers)s",
    "A model has normalisation that CEMA does not adapt.",
    {**_COHORT, "side": "`edge` or `foundation`", "layers": "which"},
)
SAMPLES_POSTPONED = _event(
    "samples.postponed",
    INFO,
    "cohort %(cohort)s: %(samples)d samples are replayed later",
    "Samples came quicker than they can be learned from. The oldest go to the replay buffer without a step of their "
    "own.",
    {**_COHORT, "samples": "how many"},
)
SAMPLES_UNREADABLE = _event(
    "samples.unreadable",
    WARNING,
    "%(samples)d samples of device %(device)r cannot be read, the first: %(error)s",
    "The images are damaged inside. They are counted, and nothing is learned from them.",
    {"samples": "how many", "device": "who sent them", "error": "what is wrong with the first"},
)
SAMPLE_LOST = _event(
    "sample.lost",
    WARNING,
    "a stored sample cannot be read: %(error)s",
    "A sample that was to be replayed is damaged in the store.",
    _ERROR,
)
DRAWN_UNREADABLE = _event(
    "drawn.unreadable",
    WARNING,
    "a sample of cohort %(cohort)r that was drawn at random cannot be read: %(error)s",
    "The image is damaged inside. It is counted, and the agreement on all that devices see lacks it.",
    {**_COHORT, "error": "what is wrong with it"},
)
DRAWN_NOT_MEASURED = _event(
    "drawn.not_measured",
    ERROR,
    "cohort %(cohort)r: samples that were drawn at random could not be measured",
    "They are tried again one by one, and each is given up after three tries. Nothing else depends on them.",
    _COHORT,
)
DEVICE_QUARANTINED = _event(
    "device.quarantined",
    WARNING,
    "cohort %(cohort)s: device %(device)s is unlike all others and quarantined",
    "Nothing is learned from what the device sends. See what its camera shows, and whether it belongs to the cohort.",
    {**_COHORT, "device": "which"},
)
DEVICE_RELEASED = _event(
    "device.released",
    WARNING,
    "cohort %(cohort)s: device %(device)s is like the others again",
    "What the device sends is learned from again.",
    {**_COHORT, "device": "which"},
)
ROLLOUT_BEGUN = _event(
    "rollout.begun",
    INFO,
    "cohort %(cohort)s: version %(version)d is not for all devices yet (%(mode)s); for these first: %(devices)s",
    "A version waits for an operator's release, or is tried by canary devices.",
    {**_COHORT, "version": "its number", "mode": "`manual` or `canary`", "devices": "the canary devices"},
)
ROLLOUT_RELEASED = _event(
    "rollout.released",
    INFO,
    "cohort %(cohort)s: version %(version)d is for all devices now",
    "Its canary devices have done well with it.",
    {**_COHORT, "version": "its number"},
)
ROLLOUT_TAKEN_BACK = _event(
    "rollout.taken_back",
    WARNING,
    "cohort %(cohort)s: version %(version)d is taken back: %(reasons)s",
    "Canary devices did badly with it: the content before goes out under the next number, and learning begins anew.",
    {**_COHORT, "version": "its number", "reasons": "the devices, and how each did badly"},
)
UPDATE_PUBLISHED = _event(
    "update.published",
    INFO,
    "cohort %(cohort)s: version %(version)d published",
    "A new version is durable, and devices are offered it.",
    {**_COHORT, "version": "its number"},
)
ACT_DONE = _event(
    "act.done",
    WARNING,
    "cohort %(cohort)s: %(act)s (act %(number)d of %(actor)s): devices have it as version %(version)d",
    "What an operator asked for is durable, and devices are offered it.",
    {
        **_COHORT,
        "act": "what was asked for: `rollback`, `pin` or `stop`",
        "number": "the number of the act",
        "actor": "who asked for it",
        "version": "the version that devices have of it",
    },
)
ACT_FAILED = _event(
    "act.failed",
    ERROR,
    "cohort %(cohort)s: act %(number)d: the store has its content no longer",
    "An older CEMA has deleted the version that was asked for: devices keep what they have.",
    {**_COHORT, "number": "the number of the act"},
)
UPDATE_NOT_SIGNED = _event(
    "update.not_signed",
    ERROR,
    "cohort %(cohort)s: version %(version)d is not signed: %(error)s",
    "A signer failed or took too long. Learning goes on, and it is tried again later.",
    {**_COHORT, "version": "the number that it would have had", **_ERROR},
)
KEY_REVOKED = _event(
    "key.revoked",
    WARNING,
    "cohort %(cohort)s: the signing keys %(keys)s are revoked; remove them from the settings",
    "Devices refuse what these keys alone sign.",
    {**_COHORT, "keys": "the ids of the keys"},
)
STEP_MADE_AGAIN = _event(
    "step.made_again",
    INFO,
    "%(error)s",
    "An operator acted while a step was made: it is made again, under what was asked for.",
    {**_COHORT, **_ERROR},
)
SAMPLES_EXPIRED = _event(
    "samples.expired",
    INFO,
    "cohort %(cohort)s: %(samples)d samples are older than %(days)g days and deleted",
    "What has reached the cohort's `retention_days` is removed from the store; the worker forgets it next.",
    {**_COHORT, "samples": "how many", "days": "`retention_days`"},
)
DATA_FORGOTTEN = _event(
    "data.forgotten",
    INFO,
    "cohort %(cohort)s: deletion %(number)d of %(actor)s is done, %(samples)d samples",
    "Neither the store's files nor the worker's state hold anything any more of samples that were deleted.",
    {
        **_COHORT,
        "number": "the number of the deletion",
        "actor": "who asked for it, or `retention`",
        "samples": "how many",
    },
)
CLOCK_WRONG = _event(
    "clock.wrong",
    WARNING,
    "cohort %(cohort)s: version %(version)d was made %(seconds).0f s in the future; see that the clock is right",
    "The clock is wrong now, or was when the version was made.",
    {**_COHORT, "version": "the newest version", "seconds": "how far its moment is ahead"},
)
ADAPTATION_RESET = _event(
    "adaptation.reset",
    ERROR,
    "cohort %(cohort)s: %(candidates)d candidates held back, beginning anew",
    "So many candidates in a row were worse than what devices run; the adaptation begins with the source models.",
    {**_COHORT, "candidates": "how many"},
)
STEP_FAILED = _event(
    "step.failed",
    ERROR,
    "cohort %(cohort)s: a step failed and was undone",
    "An error while learning; its traceback is logged. Smaller batches follow, until the sample that causes it is "
    "found.",
    _COHORT,
)
STEP_ABANDONED = _event(
    "step.abandoned",
    ERROR,
    "cohort %(cohort)s: %(processes)d processes died at this step, leaving it out",
    "The samples of a step are passed over, because every process that learned from them died.",
    {**_COHORT, "processes": "how many"},
)
COHORT_SET_ASIDE = _event(
    "cohort.set_aside",
    ERROR,
    "cohort %(cohort)s: set aside, next try in %(seconds).0f s: %(error)s",
    "The cohort cannot go on now; others do.",
    {**_COHORT, "seconds": "until it is tried again", **_ERROR},
)
COHORT_RESUMED = _event(
    "cohort.resumed", INFO, "cohort %(cohort)s: goes on", "A cohort that was set aside works again.", _COHORT
)
REPORT_NOT_WRITTEN = _event(
    "report.not_written",
    ERROR,
    "cohort %(cohort)s: its report could not be written: %(error)s",
    "The status of the cohort is not up to date.",
    {**_COHORT, **_ERROR},
)

# The store, in either process.
TABLES_NOT_KEPT = _event(
    "tables.not_kept",
    WARNING,
    "the store keeps no %(what)s: %(error)s",
    "A full store from before got no tables for them; commands that read them find nothing.",
    {"what": "what it does without", **_ERROR},
)
