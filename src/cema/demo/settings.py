"""What a demonstration runs: models, stream, pace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["DemoSettings"]


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """What `cema demo` was asked for.

    Attributes
    ----------
    model, foundation : str
        Names that `cema.models.registry.resolve` understands.
    images : Path or None
        A folder `DIR/<class>/*.JPEG`; None streams the embedded digits.
    seed : int
        Orders the streams and draws the corruptions.
    edges : int
        How many edge processes run.
    samples : int
        Predictions per edge.
    rate : float
        Images per second and edge: the pace of the camera.
    waits : bool
        Whether the stream stands still while the cloud's worker has enough to learn from. A pace that was asked for is
        kept, whatever waits.
    batch : int
        Images per prediction.
    json, plot : Path or None
        Where the results go.
    report : Path or None
        A folder for a report, as HTML and JSON.
    page : bool
        Whether the cloud's page is opened.
    workspace : Path or None
        A folder to keep everything in; None uses a temporary one.
    """

    model: str
    foundation: str
    images: Path | None
    samples: int
    edges: int
    rate: float
    batch: int
    seed: int = 0
    waits: bool = True
    json: Path | None = None
    plot: Path | None = None
    report: Path | None = None
    page: bool = False
    workspace: Path | None = None

    @classmethod
    def make(
        cls, *, images: Path | None, samples: int | None, rate: float | None, **rest: Any
    ) -> DemoSettings:
        """Fill what was left open: digits come by the thousand, photographs cost a cloud without a GPU seconds each."""
        digits = images is None
        return cls(
            images=images,
            samples=samples or (6000 if digits else 1000),
            rate=rate or (60.0 if digits else 2.0),
            waits=rate is None,
            batch=16 if digits else 4,
            **rest,
        )
