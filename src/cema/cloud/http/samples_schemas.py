"""The JSON bodies about the samples that came last."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from cema.cloud.http.schemas import Seconds

__all__ = ["ShownSample", "ShownSamples"]


class ShownSample(BaseModel):
    """A sample and what it is taken for. Members may be added."""

    model_config = ConfigDict(extra="allow")

    id: str = Field(description="SHA-256 of the encoded image.")
    device: str
    label: int = Field(description="The class that the device chose.")
    label_name: str | None
    teacher: int | None = Field(description="The class that the foundation model chose; null where not yet.")
    teacher_name: str | None
    truth: int | None = Field(description="The class that a person has given.")
    truth_name: str | None
    entropy: float = Field(description="Of the device's prediction, in nats.")
    version: int = Field(description="The version that the device predicted with.")
    captured_at: float = Field(description="Unix time in seconds, by the device's clock.")
    received_at: Seconds
    bytes: int = Field(description="Of the encoded image.")
    waiting: bool = Field(description="Whether the worker has still to look at it.")
    drawn: bool = Field(description="Whether the device drew it at random too.")


class ShownSamples(BaseModel):
    """The samples that came last, the newest first."""

    private: bool = Field(description="Whether no images are shown.")
    samples: list[ShownSample]
