"""Made-up data of a fleet, as the API of the cloud tells it: for tests of what the operators' page shows of it.

The same scene always tells the same: noise is a function of the moment that it is about.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from page_history import DAY, DOMAIN, made_measures
from PIL import Image

CLASSES = ["bus", "car", "cyclist", "dog", "empty road", "lorry", "pedestrian", "tram", "van", "works"]
HOSTILE = "<img src=x onerror=window.attacked=1></script><script>window.attacked=1</script>".replace(
    "/", "\u2215"
)
# What the page decides by, or asks for again: a hostile cloud is not what is tested, but hostile names and texts.
WORDS = {"level", "publishing", "state", "role", "type", "kind", "mode", "id", "changed", "act_state"}


@dataclass
class Scene:
    """What the fixture cloud holds; tests change it while the page is open."""

    devices: int = 120
    points: int = 0  # of a history; 0: as asked for
    age: float = float("inf")  # seconds of a history in which anything is known
    versions: int = 14
    samples: int = 60
    cohorts: tuple[str, ...] = ("yard", "harbour", "tunnel")
    role: str = "admin"
    signed_in: bool = True
    private: bool = False
    hostile: bool = False
    busy: float = 0.0  # seconds between two events by themselves; 0: none
    now: float = field(default_factory=lambda: float(int(time.time())))
    acts: list[dict[str, Any]] = field(default_factory=list)
    deletions: list[dict[str, Any]] = field(default_factory=list)
    device_acts: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    pinned: dict[str, int | None] = field(default_factory=dict)
    changes: int = 0
    full: bool = False  # too many pages listen to events
    same: bool = False  # events by themselves say the same again
    told: dict[str, str] = field(default_factory=dict)  # sentences that replace those of the scene
    levels: dict[str, str] = field(default_factory=dict)  # levels that replace those of the scene

    @property
    def empty(self) -> bool:
        """Whether nothing has happened in any cohort yet."""
        return self.versions == 0

    def overview(self) -> dict[str, Any]:
        return {
            "at": time.time(),
            "version": "1.2.0",
            "cohorts": [self.cohort(name) for name in self.cohorts],
        }

    def cohort(self, name: str) -> dict[str, Any]:
        level = self.levels.get(name) or {"yard": "ok", "harbour": "warn", "tunnel": "bad"}.get(name, "ok")
        told = {
            "ok": "Agrees with the foundation model on 89.4 % ± 1.9 of the newest samples; unadapted 47.2 %.",
            "warn": "Agrees with the foundation model on 81.0 % ± 2.4 of the newest samples; unadapted 61.3 %.",
            "bad": "Agrees with the foundation model on 58.7 % ± 3.0 of the newest samples, 14 points less.",
        }[level]
        problems = {
            "ok": [],
            "warn": ["3 of 120 devices have been silent for more than 10 minutes"],
            "bad": [
                "agreement fell by 14 points in 24 hours",
                "version 14 was refused by 9 devices: golden_batch",
            ],
        }[level]
        share = {"ok": 0.894, "warn": 0.81, "bad": 0.587}[level]
        agreement = (
            {}
            if self.empty
            else {
                model: self.agreement(share + shift, 1024)
                for model, shift in (("device", -0.01), ("running", 0.0), ("adapted", 0.02), ("source", -0.4))
            }
        )
        silent = 0 if self.empty else {"ok": 0, "warn": 3, "bad": 7}[level]
        newest = self.versions
        sentence = "No samples have come yet." if self.empty else told
        return {
            "cohort": name,
            "level": "ok" if self.empty else level,
            "sentence": self.told.get(name, sentence),
            "problems": [] if self.empty else problems,
            "agreement": agreement,
            "random_agreement": {k: self.agreement(v["share"] + 0.05, 310) for k, v in agreement.items()},
            "version": newest,
            "version_at": None if self.empty else self.now - 240,
            "publishing": self.publishing(),
            "act": next((act for act in self.acts if act["state"] == "waiting"), None),
            "rollout": self.rollout() if level == "warn" and not self.empty else None,
            "ready": True,
            "backlog": 12,
            "samples": 48_211,
            "last_step_at": None if self.empty else self.now - 31,
            "devices": {
                "registered": self.devices,
                "seen": self.devices - silent,
                "silent": silent,
                "quarantined": min(self.devices, 1),
                "revoked": 0,
            },
            "day": {
                "samples": 0 if self.empty else 8123,
                "bytes_up": 0 if self.empty else 96_400_000,
                "bytes_down": 0 if self.empty else 5_210_000,
                "cost": None if name == "harbour" else 0.84,
                "currency": None if name == "harbour" else "EUR",
            },
            "labelled": {}
            if name != "tunnel"
            else {"adapted": self.agreement(0.61, 400), "frozen": self.agreement(0.4, 400)},
            "changed": f"{self.changes} {len(self.acts)} {self.devices}",
        }

    def publishing(self) -> str:
        words = {"pause": "paused", "pin": "pinned", "stop": "stopped", "resume": "on", "rollback": "on"}
        kinds = [
            act["act"]["type"]
            for act in self.acts
            if act["act"]["type"] in words and not act["act"].get("device")
        ]
        return words[kinds[-1]] if kinds else "on"

    def rollout(self) -> dict[str, Any]:
        return {
            "version": self.versions,
            "mode": "canary",
            "began": self.now - 300,
            "before": self.versions - 1,
            "devices": ["camera-0003", "camera-0011"],
            "needed": 2,
            "state": "open",
            "ended": None,
            "reasons": {},
        }

    @staticmethod
    def agreement(share: float, samples: int) -> dict[str, Any]:
        share = float(min(0.99, max(0.01, share)))
        error = (share * (1 - share) / samples) ** 0.5
        return {
            "samples": samples,
            "share": share,
            "standard_error": error,
            "low": share - 1.96 * error,
            "high": share + 1.96 * error,
        }

    def history(self, cohort: str, since: float, until: float, points: int) -> dict[str, Any]:
        points = self.points or points
        seconds = 10 if self.points else max(10, int(np.ceil((until - since) / points / 10)) * 10)
        at = np.arange(since // seconds * seconds, until, seconds)[-points:]
        at = at[:0] if self.empty else at[at + seconds > until - self.age]
        measures = made_measures(self.now, cohort, at, seconds)
        return {
            "cohort": cohort,
            "since": since,
            "until": until,
            "seconds": seconds,
            "at": at.tolist(),
            "measures": measures,
            "versions": [
                {"version": one["version"], "at": one["created"], "kind": self.kind(one["version"])}
                for one in self.listed()
                if since <= one["created"] <= until
            ],
            "domains": []
            if self.empty
            else [
                {"at": moment, "distance": 12.3}
                for moment in np.arange((since // DOMAIN + 1) * DOMAIN, until, DOMAIN).tolist()
            ],
        }

    def kind(self, version: int) -> str:
        return {0: "learned", 1: "rollback"}.get(int(version % 9 == 5), "learned")

    def listed(self) -> list[dict[str, Any]]:
        return [self.version(number) for number in range(1, self.versions + 1)]

    def version(self, number: int) -> dict[str, Any]:
        created = self.now - 240 - (self.versions - number) * 6400
        rng = np.random.default_rng(number)
        before = rng.dirichlet(np.ones(10)) * 512
        teacher = rng.dirichlet(np.ones(10)) * 512
        return {
            "version": number,
            "digest": "ab" * 32,
            "created": created,
            "expires": created + 30 * DAY,
            "payload_bytes": 45_310,
            "agreement": {
                model: self.agreement(share + 0.01 * (number % 5), 1024)
                for model, share in (("running", 0.82), ("adapted", 0.85), ("source", 0.5))
            },
            "trace": {
                "published_at": created,
                "since": created - 1900,
                "evidence_at": created - 120,
                "samples": 640,
                "steps": [{"begin": created - 1800, "seconds": 1.2, "samples": 32, "devices": 17}] * 20,
                "steps_left_out": 0,
                "replays": 4,
                "kind": self.kind(number),
                **({"content_of": number - 2} if self.kind(number) == "rollback" else {}),
                "outcomes": {"waiting": 18, "better": 1},
                "domain": [0.1, 0.2],
                "predictions": {
                    "classes": 10,
                    "before": before.round().tolist(),
                    "after": ((before + 3 * teacher) / 4).round().tolist(),
                    "teacher": teacher.round().tolist(),
                },
            },
        }

    def version_detail(self, number: int) -> dict[str, Any]:
        rng = np.random.default_rng(number)
        share = 1.0 if number < self.versions else 0.7
        moved = [
            {
                "name": f"features.{k}.block.{k % 3}.bn.{'weight' if k % 2 else 'bias'}",
                "relative": float(size),
                "rms": float(size / 9),
                "size": 64,
            }
            for k, size in enumerate(sorted(rng.exponential(0.08, 20), reverse=True))
        ]
        return self.version(number) | {
            "adoption": {
                "offered": self.devices,
                "has": int(self.devices * min(1, share + 0.1)),
                "runs": int(self.devices * share),
            },
            "moved": moved,
            "moved_since": [one | {"relative": one["relative"] / 4} for one in moved[5:]],
            "class_names": CLASSES,
        }

    def domains(self) -> dict[str, Any]:
        angle = np.arange(self.versions) / 3
        points = [
            {
                "version": k + 1,
                "at": self.version(k + 1)["created"],
                "x": float(3 * np.cos(a) + k / 5),
                "y": float(2 * np.sin(a)),
            }
            for k, a in enumerate(angle)
        ]
        return {
            "points": points,
            "source": {"x": -2.4, "y": 1.0} if points else None,
            "explained": [0.71, 0.18],
            "statistics": [],
        }

    def some_samples(self, limit: int, device: str | None = None) -> dict[str, Any]:
        return {
            "private": self.private,
            "samples": []
            if self.empty
            else [self.sample(k, device) for k in range(min(limit, self.samples))],
        }

    def sample(self, k: int, device: str | None) -> dict[str, Any]:
        rng = np.random.default_rng(k)
        label = int(rng.integers(10))
        teacher = None if k % 17 == 0 else label if rng.random() < 0.75 else int(rng.integers(10))
        truth = label if k % 13 == 3 else None
        return {
            "id": f"{k:064x}",
            "device": device or self.name(int(rng.integers(max(1, self.devices)))),
            "label": label,
            "label_name": CLASSES[label],
            "teacher": teacher,
            "teacher_name": None if teacher is None else CLASSES[teacher],
            "truth": truth,
            "truth_name": None if truth is None else CLASSES[truth],
            "entropy": float(rng.uniform(0.05, 0.92)),
            "version": self.versions,
            "captured_at": self.now - 40 - k * 7,
            "received_at": self.now - 20 - k * 7,
            "width": None,
            "drawn": k % 11 == 0,
            "waiting": teacher is None,
        }

    @staticmethod
    def image(name: str) -> bytes:
        k = int(name, 16)
        rng = np.random.default_rng(k)
        sky, ground = rng.integers(90, 220, 3), rng.integers(30, 120, 3)
        picture = np.zeros((48, 48, 3), np.uint8)
        picture[:26], picture[26:] = sky, ground
        x, y = rng.integers(6, 26, 2)
        picture[y : y + 14, x : x + 20] = rng.integers(0, 255, 3)
        noisy = np.clip(picture + rng.normal(0, 9, picture.shape), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "PNG")
        return buffer.getvalue()

    @staticmethod
    def name(k: int) -> str:
        return f"camera-{k:04d}"

    def fleet(self) -> list[dict[str, Any]]:
        return [self.device(k) for k in range(self.devices)]

    def device(self, k: int) -> dict[str, Any]:
        problems = {
            7: ["silent for 3 h"],
            19: ["its clock is 90 s behind"],
            23: ["refused version 14: golden_batch", "3 of 20 reports were lost"],
        }.get(k % 40, [])
        level = {7: "bad", 19: "warn", 23: "bad"}.get(k % 40, "ok")
        done = [act["type"] for name, act in self.device_acts if name == self.name(k)]
        quarantined = (
            k == 5
            if not {"quarantine", "release"} & {*done}
            else [d for d in done if d != "revoke"][-1] == "quarantine"
        )
        ran = 0 if self.empty else self.versions - (k % 40 == 23)
        report = {
            "format": "cema.report/1",
            "boot": "6f1d2c3b4a596877",
            "number": 41,
            "serving": {"version": ran, "predicted": 5120, "guarded": 140, "entropy": 0.42},
            "before": {"version": ran - 1, "predicted": 90_000, "guarded": 0, "entropy": 0.61},
            "refused": {"version": 14, "reason": "golden_batch"} if k % 40 == 23 else None,
            "counts": {
                "predicted": 95_120,
                "selected": 7000,
                "guarded": 140,
                "uploaded": 6900,
                "dropped": 20,
                "swaps": 12,
            },
            "problem": "the disk is nearly full" if k % 40 == 19 else None,
            "sent_at": self.now - 30,
            "spool": {"bytes": 1_204_000, "samples": 81},
            "temperature": 61.5,
        }
        return {
            "name": self.name(k),
            "role": "device",
            "cohort": "yard",
            "created_at": self.now - 90 * DAY,
            "revoked_at": self.now if "revoke" in done else None,
            "expires_at": None,
            "quarantined_at": self.now - 3600 if quarantined else None,
            "quarantined_by": "ann" if quarantined else None,
            "quarantined_by_worker": False,
            "older_token_until": None,
            "taken_at": None,
            "limits": {
                "samples_per_hour": None,
                "samples_per_day": 5000,
                "bytes_per_hour": None,
                "bytes_per_day": None,
            },
            "seen_at": None if self.empty else self.now - (3 * 3600 if k % 40 == 7 else k % 30),
            "has": None if self.empty else self.versions,
            "ran": ran,
            "samples": 6900 + k,
            "bytes": 81_000_000 + k * 1000,
            "captured_at": self.now - 60,
            "received_at": None if self.empty else self.now - 55,
            "level": level,
            "problems": problems,
            "reported_at": None if self.empty else self.now - 30,
            "clock_offset": -90.0 if k % 40 == 19 else 0.2,
            "reports": {"received": 17, "lost": 3},
            "report": None if self.empty else report,
        }

    def device_detail(self, name: str) -> dict[str, Any] | None:
        found = next((one for one in self.fleet() if one["name"] == name), None)
        if found is None:
            return None
        adopted = [
            {"version": one["version"], "fetched_at": one["created"] + 40} for one in self.listed()[-6:][::-1]
        ]
        return found | {"uploads": self.some_samples(20, name)["samples"], "adopted": adopted}

    def some_devices(self, order: str, search: str, limit: int, offset: int) -> dict[str, Any]:
        found = [one for one in self.fleet() if search in one["name"]]
        if order == "trouble":
            found.sort(
                key=lambda one: (
                    {"bad": 0, "warn": 1, "ok": 2}[one["level"]],
                    -len(one["problems"]),
                    one["name"],
                )
            )
        return {"devices": found[offset : offset + limit], "total": len(found)}

    def act(self, cohort: str, act: dict[str, Any]) -> dict[str, Any]:
        record = {
            "number": len(self.acts) + 1,
            "cohort": cohort,
            "at": time.time(),
            "actor": "token:ann",
            "act": act,
            "content": None,
            "state": "waiting",
            "done_at": None,
            "version": None,
        }
        self.acts.append(record)
        return dict(record)

    def work(self) -> None:
        """Do what waits, as the worker would."""
        for act in self.acts:
            if act["state"] == "waiting":
                numbered = act["act"]["type"] in {"rollback", "pin", "stop"}
                act |= {
                    "state": "done",
                    "done_at": time.time(),
                    "version": self.versions + 1 if numbered else None,
                }


def hostile(value: Any, key: str = "") -> Any:
    """Return JSON in which each text, apart from words that the page decides by, also holds markup that would run."""
    if isinstance(value, dict):
        return {name: hostile(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [hostile(inner, key) for inner in value]
    if isinstance(value, str) and key not in WORDS:
        return value + HOSTILE
    return value
