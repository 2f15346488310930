"""The JSON bodies about one version, and about the domains of all."""

from __future__ import annotations

from pydantic import BaseModel, Field

from cema.cloud.http.schemas import Seconds, Version

__all__ = ["Domains", "VersionDetail"]


class Adoption(BaseModel):
    """How many devices are offered a version, have fetched it, and run it."""

    offered: int
    has: int
    runs: int


class Moved(BaseModel):
    """How far a tensor of a version is from another one."""

    name: str
    relative: float = Field(description="The length of the difference, as a share of the longer of the two.")
    rms: float = Field(description="The root of the mean square of the difference.")
    size: int


class VersionDetail(Version):
    """A version, what it changed, and who has it."""

    adoption: Adoption
    moved: list[Moved] | None = Field(
        description="Since the source model, the furthest first; null where it cannot be compared."
    )
    moved_since: list[Moved] | None = Field(description="Since the version before that is kept.")
    class_names: list[str] | None


class DomainPoint(BaseModel):
    """What inputs looked like when a version was published, in two numbers."""

    version: int
    at: Seconds
    x: float
    y: float


class Place(BaseModel):
    """A place among the points."""

    x: float
    y: float


class Domains(BaseModel):
    """What inputs looked like over the versions, in the two directions in which that differs most."""

    points: list[DomainPoint]
    source: Place | None = Field(
        description="What the source model was made for; null where it is not known."
    )
    explained: list[float] = Field(description="Shares of the variance.")
    statistics: list[str] = Field(description="What each statistic is that was looked at.")
