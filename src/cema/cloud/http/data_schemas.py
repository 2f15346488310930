"""The JSON bodies about stored samples: what they hold and what the OpenAPI document says of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from cema.cloud.http.schemas import Seconds

__all__ = [
    "DataSummary",
    "Deletion",
    "DeletionAsked",
    "Deletions",
    "GroupOfSamples",
    "LabelsAnswer",
    "LabelsGiven",
    "RefusedLabel",
    "SampleFacts",
    "WhichSamples",
]

ClassNumber = Annotated[int, Field(ge=0, le=2**31)]


class GroupOfSamples(BaseModel):
    """Samples of one device with the same classes."""

    device: str
    label: int = Field(description="The class that the device chose.")
    teacher: int | None = Field(description="The class that the foundation model chose; null where not yet.")
    truth: int | None = Field(description="The class that a person has given.")
    samples: int
    bytes: int = Field(description="Of the encoded images.")
    oldest: Seconds
    newest: Seconds


class DataSummary(BaseModel):
    """The samples that a cohort keeps."""

    cohort: str
    samples: int
    bytes: int
    groups: list[GroupOfSamples]


class SampleFacts(BaseModel):
    """What is known of one sample."""

    seq: int = Field(description="Its place in the store's sequence.")
    id: str = Field(description="SHA-256 of the encoded image.")
    device: str
    label: int
    teacher: int | None
    truth: int | None
    entropy: float = Field(description="Of the device's prediction, in nats.")
    version: int = Field(description="The version that the device predicted with.")
    captured_at: float = Field(description="Unix time in seconds, by the device's clock.")
    received_at: Seconds
    bytes: int
    waiting: bool = Field(description="Whether the worker has still to look at it.")
    replayed: bool | None = Field(description="Whether it may be replayed; null where that is not known.")


class WhichSamples(BaseModel):
    """Those to which all that is set applies; nothing set stands for all."""

    model_config = ConfigDict(extra="forbid")

    device: str | None = Field(None, description="Who sent them.")
    class_: ClassNumber | None = Field(
        None, alias="class", description="The class that the device, the foundation model or a person chose."
    )
    from_: Seconds | None = Field(None, alias="from", description="Unix time: arrived then or later.")
    to: Seconds | None = Field(None, description="Unix time: arrived before.")


class DeletionAsked(WhichSamples):
    """Which samples are to be deleted: at least one filter, or `all`."""

    all: bool = Field(False, description="All samples of the cohort; without any filter.")


class Deletion(BaseModel):
    """A deletion as it was written down."""

    number: int
    cohort: str
    at: Seconds
    actor: str = Field(description="`token:` and its name, `os:` and a user, or `retention`.")
    filter: WhichSamples
    samples: int
    bytes: int
    ids_sha256: str | None = Field(description="Of the ids in ascending order, each with a line feed.")
    state: Literal["deleting", "waiting", "forgotten", "done"]
    forgotten_at: Seconds | None
    done_at: Seconds | None
    note: str = Field(description="What stands in the way; for people.")


class Deletions(BaseModel):
    """Deletions from a cohort."""

    deletions: list[Deletion]


class LabelsGiven(BaseModel):
    """True classes of samples."""

    model_config = ConfigDict(extra="forbid")

    labels: dict[str, ClassNumber | str] = Field(
        description="A class, by number or name, by the sample's id."
    )


class RefusedLabel(BaseModel):
    """A label that was not taken."""

    id: str
    error: str = Field(description="Why; for people.")


class LabelsAnswer(BaseModel):
    """What became of labels."""

    new: int
    changed: int
    same: int
    refused: list[RefusedLabel]
