"""The JSON bodies of the API: what they hold and what the OpenAPI document says of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "ActRecord",
    "Acts",
    "Agreement",
    "BaseModels",
    "BaseOfDevices",
    "CanaryAct",
    "CheckResult",
    "Envelope",
    "Error",
    "ErrorBody",
    "Health",
    "KeysDocuments",
    "PinAct",
    "Ready",
    "Refused",
    "Report",
    "ResumeAct",
    "Served",
    "Signature",
    "Status",
    "UpdateSummary",
    "Verdict",
    "Verdicts",
    "Version",
    "VersionAct",
    "VersionlessAct",
    "Versions",
]

Seconds = Annotated[float, Field(description="Unix time in seconds.")]


class Error(BaseModel):
    """Why a request failed."""

    code: str = Field(min_length=1, description="For programs.")
    message: str = Field(min_length=1, description="What was expected and what came; for people, may change.")
    remedy: str = Field(min_length=1, description="What to do; for people, may change.")


class ErrorBody(BaseModel):
    """The body of every error."""

    error: Error


class Verdict(BaseModel):
    """The verdict on one sample of a frame."""

    id: str = Field(description="The sample's identity, as it was sent; at most 80 characters of it.")
    verdict: Literal["stored", "duplicate", "rejected"]
    reason: str | None = Field(description="Why it was rejected; for people. Otherwise null.")


class Verdicts(BaseModel):
    """One verdict for each sample, in the frame's order."""

    verdicts: list[Verdict]


class Signature(BaseModel):
    """An Ed25519 signature of a manifest."""

    key: str = Field(description="Which key: the first 16 hexadecimal digits of its SHA-256.")
    signature: str = Field(description="Base64 of 64 bytes.")


class Envelope(BaseModel):
    """A signed manifest; a device must check its bytes as they came."""

    manifest: str = Field(description="Base64 of the manifest's canonical JSON.")
    signatures: list[Signature]


class KeysDocuments(BaseModel):
    """Signed documents that say which keys devices trust."""

    documents: list[Envelope] = Field(
        description="Oldest first; a device checks each one's bytes as they came."
    )


class UpdateSummary(BaseModel):
    """The newest update of a cohort."""

    version: int
    digest: str = Field(description="SHA-256 of the payload.")
    created: Seconds
    expires: Seconds


class WorkerReport(BaseModel):
    """What the worker last said; all but `ready` is for people."""

    model_config = ConfigDict(extra="allow")

    ready: bool


class Agreement(BaseModel):
    """On which share of the newest new samples a model chose the foundation model's label."""

    samples: int
    share: float
    standard_error: float
    low: float = Field(description="Of Wilson's interval of 95 %.")
    high: float


class VersionAct(BaseModel):
    """Give devices the content of an earlier version, or let a version be for all."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["rollback", "release"]
    to: int = Field(ge=1, le=2**53, description="The version.")


class PinAct(BaseModel):
    """Give devices the content of an earlier version, and nothing else until it is resumed."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["pin"]
    to: int = Field(ge=1, le=2**53, description="The version.")
    device: str | None = Field(None, description="The one device that gets it; null for all.")


class Served(BaseModel):
    """What a version did on a device since it began to serve there."""

    version: int = Field(ge=0, lt=2**53, description="0 for the model that the device was provisioned with.")
    predicted: int = Field(0, ge=0, lt=2**53, description="Images.")
    guarded: int = Field(0, ge=0, lt=2**53, description="Those that the source model predicted in its place.")
    entropy: float = Field(0.0, ge=0, description="Mean entropy of the others, in nats.")


class Refused(BaseModel):
    """A version that the device does not run, and why."""

    version: int = Field(ge=0, lt=2**53, description="0 where its number could not be read.")
    reason: str = Field(pattern="^[a-z_]{1,40}$")


class Report(BaseModel):
    """What a device says of itself. Members that are not known are ignored."""

    format: Literal["cema.report/1"]
    boot: str = Field(pattern="^[0-9a-f]{16}$", description="Drawn when the device's program starts.")
    number: int = Field(ge=1, lt=2**53, description="The reports that were tried since then.")
    serving: Served
    before: Served | None = None
    refused: Refused | None = Field(None, description="The last version that it does not run.")
    counts: dict[str, int] = Field({}, description="Counters of the device's whole life.", max_length=32)
    selection: dict[str, int] = Field(
        {}, description="Images of its whole life by what the selection made of them.", max_length=16
    )
    thresholds: dict[str, float] = Field({}, description="`low` and `high`, in nats.", max_length=4)
    problem: str | None = Field(None, description="What is wrong on the device right now, in its own words.")
    sent_at: float | None = Field(None, ge=0, description="Unix time in seconds, by the device's clock.")


class VersionlessAct(BaseModel):
    """Publish nothing, or give devices the source model."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["pause", "stop"]


class ResumeAct(BaseModel):
    """Go on; or end the pin of one device."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["resume"]
    device: str | None = Field(None, description="The device that was pinned; null for the cohort.")


class CanaryAct(BaseModel):
    """Let another share of the devices try new versions first."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["canary"]
    first: float | None = Field(None, gt=0, le=1, description="The share; null as configured.")


class ActRecord(BaseModel):
    """An act as it was written down."""

    number: int
    cohort: str
    at: Seconds
    actor: str = Field(description="`token:` and its name, or `os:` and the user of the command line.")
    act: VersionAct | PinAct | VersionlessAct | ResumeAct | CanaryAct
    content: str | None = Field(
        description="The payload's digest, or `source`; null where no version is needed."
    )
    state: Literal["waiting", "done", "superseded", "failed"]
    done_at: Seconds | None
    version: int | None = Field(description="The version that devices have of it.")


class Acts(BaseModel):
    """Acts on a cohort."""

    acts: list[ActRecord]


class Version(BaseModel):
    """A version that can be given to devices again. Members may be added."""

    model_config = ConfigDict(extra="allow")

    version: int
    digest: str = Field(description="SHA-256 of the payload.")
    created: Seconds
    expires: Seconds
    payload_bytes: int
    agreement: dict[str, Agreement] = Field(description="While it was the newest version, by who answered.")
    trace: dict[str, Any] | None = Field(description="How it came about; for people.")


class Versions(BaseModel):
    """The versions of a cohort that are kept."""

    cohort: str
    publishing: Literal["on", "paused", "pinned", "stopped"]
    versions: list[Version]


class BaseOfDevices(BaseModel):
    """A base model, and who has it. Members may be added."""

    model_config = ConfigDict(extra="allow")

    base: str
    since: Seconds | None = Field(
        description="When devices were last told to have it; null for the first one."
    )
    version: int = Field(description="The newest version for it that is kept; 0 for none.")
    devices: list[str] = Field(description="Devices that have said last that they have it.")


class BaseModels(BaseModel):
    """How far a cohort is on its way to another base model."""

    cohort: str
    base: str = Field(description="The base that devices are to have.")
    bases: list[BaseOfDevices] = Field(description="Oldest first.")
    unknown: list[str] = Field(description="Devices that have never said which one they have.")


class Status(BaseModel):
    """Where a cohort stands. Members may be added."""

    model_config = ConfigDict(extra="allow")

    cohort: str
    base: str = Field(description="The base of the bundle that updates are for.")
    cursor: int = Field(description="Sequence number of the last sample that the worker is done with.")
    committed_at: Seconds | None
    samples: int = Field(description="Samples in the store.")
    last_sample: int = Field(description="Sequence number of the last sample stored.")
    backlog: int = Field(description="Samples that wait for the worker.")
    used_bytes: int = Field(description="Bytes of the whole store, of all cohorts.")
    version: int = Field(description="The newest published version; 0 before the first.")
    update: UpdateSummary | None
    counts: dict[str, float] = Field(description="Counters by dotted name; those at 0 are left out.")
    worker: WorkerReport
    healthy: bool
    agreement: dict[str, Agreement] = Field(
        description="By who answered (`device`, `running`, `adapted`, `source`), where anything is known."
    )
    random_agreement: dict[str, Agreement] = Field(
        description="The same on all that devices see, from samples that were drawn at random."
    )
    publishing: Literal["on", "paused", "pinned", "stopped"] = "on"
    canary_first: float | None = Field(
        None, description="The share of canary devices that an operator has set; null as configured."
    )
    act: ActRecord | None = Field(None, description="The first act that the worker has still to do.")
    rollout: dict[str, Any] | None = Field(
        None, description="Of the newest version that was not for all at once."
    )
    pinned: dict[str, int | None] = Field({}, description="Pinned devices, and the version of each.")


class Health(BaseModel):
    """The process responds."""

    status: Literal["ok"] = "ok"
    version: str = Field(description="Version of the software.")


class CheckResult(BaseModel):
    """One thing that has to be well."""

    name: str
    ok: bool
    detail: str = Field(description="What was found; for people.")


class Ready(Health):
    """All is well."""

    checks: list[CheckResult]
