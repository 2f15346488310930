"""Made-up measures over time, in which domains change, for tests of the operators' page."""

from __future__ import annotations

from typing import Any

import numpy as np

DAY = 86_400
DOMAIN = 7 * 3600


def made_measures(now: float, cohort: str, at: np.ndarray, seconds: float) -> dict[str, Any]:
    count = np.maximum(1, (seconds / 9 * (0.7 + 0.3 * np.sin(2 * np.pi * at / DAY))).round())
    since = at % DOMAIN / DOMAIN
    base = {"yard": 0.9, "harbour": 0.83, "tunnel": 0.72}.get(cohort, 0.85)
    fall = (0.25 if cohort == "tunnel" else 0.0) * np.clip((at - now + DAY) / DAY, 0, 1)
    running = base - 0.3 * np.exp(-since * 14) - fall
    shares = {
        "running": running,
        "adapted": running + 0.02,
        "device": running - 0.012,
        "source": 0.52 + 0.05 * np.sin(at / 9000),
    }
    measures = {}
    for name, share in shares.items():
        agreed = np.clip((count * share + noise(at, name) * np.sqrt(count) * 0.4).round(), 0, count)
        measures[f"agreement.{name}"] = {"count": count.tolist(), "total": agreed.tolist()}
    if cohort == "tunnel":
        for name, share in (("adapted", running + 0.01), ("frozen", np.full(len(at), 0.42))):
            some = np.where(np.arange(len(at)) % 6 == 0, 40.0, 0.0)
            measures[f"labelled.{name}"] = {
                "count": [value or None for value in some],
                "total": [total or None for total in (some * np.clip(share, 0, 1)).round()],
            }
    entropy = 0.75 + 0.7 * np.exp(-since * 14) + 0.05 * noise(at, "entropy")
    for name, mean in (
        ("entropy", entropy),
        ("threshold.low", 0.05 + 0 * at),
        ("threshold.high", 0.92 - 0.1 * since),
        ("loss.foundation_loss", 0.3 * entropy),
        ("loss.distillation_loss", 0.8 * entropy),
        ("loss.kl", 0.2 * entropy),
        ("loss.ce", 0.31 * entropy),
    ):
        measures[name] = {"count": count.tolist(), "total": (count * mean).tolist()}
    for name, part in (
        ("certain", 6.0),
        ("uploaded", 1.0),
        ("too_uncertain", 0.5),
        ("near_duplicate", 0.8),
        ("over_budget", 0.2),
    ):
        measures[f"selection.{name}"] = {"count": (count * part).round().tolist(), "total": [0] * len(at)}
    measures["bytes.up"] = {"count": count.tolist(), "total": (count * 12_000).tolist()}
    measures["bytes.down"] = {
        "count": count.tolist(),
        "total": np.where(noise(at, "down") > 1.2, 45_000.0, 0.0).tolist(),
    }
    measures["samples"] = {"count": count.tolist(), "total": count.tolist()}
    return measures


def noise(at: np.ndarray, name: str) -> np.ndarray:
    """Return numbers of about unit size that depend on the moments and a name alone."""
    phase = np.sin(at * 12.9898 + sum(name.encode()) * 78.233) * 43758.5453
    return (phase - np.floor(phase) - 0.5) * 3.4
