"""The JSON bodies of the API: what they hold and what the OpenAPI document says of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "ActRecord",
    "Acts",
    "Agreement",
    "CheckResult",
    "Envelope",
    "Error",
    "ErrorBody",
    "Health",
    "KeysDocuments",
    "Ready",
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
    """Give devices the content of an earlier version."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["rollback", "pin"]
    to: int = Field(ge=1, le=2**53, description="The version.")


class VersionlessAct(BaseModel):
    """Publish nothing, give devices the source model, or go on."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["pause", "stop", "resume"]


class ActRecord(BaseModel):
    """An act as it was written down."""

    number: int
    cohort: str
    at: Seconds
    actor: str = Field(description="`token:` and its name, or `os:` and the user of the command line.")
    act: VersionAct | VersionlessAct
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
    act: ActRecord | None = Field(None, description="The act that the worker has still to do.")


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
