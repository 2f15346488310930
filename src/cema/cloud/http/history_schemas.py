"""The JSON bodies about measures over time: what they hold and what the OpenAPI document says of them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from cema.cloud.http.schemas import Seconds

__all__ = ["History", "MeasuresGiven"]


class MeasureOverTime(BaseModel):
    """The sums of one measure, by bin; null where nothing is known. The mean is `total` / `count`."""

    count: list[float | None]
    total: list[float | None]


class PublishedVersion(BaseModel):
    """A version, when it was published, and why."""

    version: int
    at: Seconds
    kind: str


class ChangedDomain(BaseModel):
    """A moment at which the inputs of a cohort changed."""

    at: Seconds
    distance: float | None


class History(BaseModel):
    """Measures of a cohort over time, by columns."""

    cohort: str
    since: Seconds
    until: Seconds
    seconds: int = Field(description="The width of a bin.")
    at: list[int] = Field(description="When each bin begins, in which anything is known.")
    measures: dict[str, MeasureOverTime]
    versions: list[PublishedVersion]
    domains: list[ChangedDomain]


class MeasuresGiven(BaseModel):
    """Measures from outside, such as the true accuracy."""

    model_config = ConfigDict(extra="forbid")

    measures: dict[
        str, Annotated[list[Any], Field(min_length=2, max_length=2, description="The count, and the total.")]
    ] = Field(description="Names begin with `labelled.`.", max_length=16)
