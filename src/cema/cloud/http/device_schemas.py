"""The JSON bodies of what the API does with devices: what they hold, and how they are read."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from cema.cloud.http.samples_schemas import ShownSample
from cema.cloud.http.schemas import Seconds
from cema.cloud.store.fleet import LAST_MOMENT, LONGEST_OVERLAP

__all__ = [
    "MOST_ADDED",
    "AddDevices",
    "AddedDevices",
    "DeviceDetail",
    "DeviceDone",
    "Devices",
    "act_schema",
    "add_schema",
]

MOST_ADDED = 1000
"""Devices in one request."""
_NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


class AddDevice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device or an operator to add: of the cohort in the address."""

    name: Annotated[str, msgspec.Meta(pattern=rf"\A{_NAME}\Z")]
    role: Literal["device", "operator"] = "device"
    expires_at: Annotated[float, msgspec.Meta(ge=0, lt=LAST_MOMENT)] | None = None


class AddDevices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a request that adds devices."""

    devices: Annotated[list[AddDevice], msgspec.Meta(min_length=1, max_length=MOST_ADDED)]


class DeviceLimitsRecord(BaseModel):
    """What one device may send; null as configured, 0 for no limit."""

    samples_per_hour: int | None
    samples_per_day: int | None
    bytes_per_hour: int | None
    bytes_per_day: int | None


class DeviceRecord(BaseModel):
    """What is known of a device. Members may be added."""

    model_config = ConfigDict(extra="allow")

    name: str
    role: Literal["device", "operator", "admin"]
    cohort: str | None
    created_at: Seconds
    revoked_at: Seconds | None
    expires_at: Seconds | None
    quarantined_at: Seconds | None
    quarantined_by: str | None = Field(description="The operator who has quarantined it.")
    limits: DeviceLimitsRecord
    older_token_until: Seconds | None = Field(
        description="Until when the token before the newest is good too."
    )
    taken_at: Seconds | None = Field(description="When the newest token was first used beside an older one.")


class ListedDevice(DeviceRecord):
    """What is known of a device, and what it did."""

    quarantined_by_worker: bool
    seen_at: Seconds | None
    has: int | None = Field(description="The newest version that it had fetched when it last asked.")
    ran: int | None = Field(description="The version that predicted the last sample that it sent.")
    samples: int | None
    bytes: int | None
    captured_at: Seconds | None
    received_at: Seconds | None
    level: Literal["ok", "warn", "bad"]
    problems: list[str] = Field(description="What is out of the ordinary, the worst first.")


class Devices(BaseModel):
    """Devices of a cohort."""

    devices: list[ListedDevice]
    total: int = Field(description="How many there are, listed or not, whose names are as was asked for.")


class Adopted(BaseModel):
    """A version that a device has fetched, and when it first did."""

    version: int
    fetched_at: Seconds


class DeviceDetail(ListedDevice):
    """What is known of a device, and what it sent and fetched last."""

    uploads: list[ShownSample] = Field(description="Its newest samples, the newest first.")
    adopted: list[Adopted] = Field(description="The newest first, as far as it was among the first to fetch.")


class AddedDevice(BaseModel):
    """A device that was added, and its token: this once."""

    name: str
    token: str


class AddedDevices(BaseModel):
    """The devices that were added, in the order of the request."""

    devices: list[AddedDevice]


class DeviceDone(BaseModel):
    """What came of an act: the device as it is now, and a new token, where it got one: this once."""

    device: DeviceRecord | None
    token: str | None


def add_schema() -> dict[str, Any]:
    """Return the schema of `AddDevices`."""
    moment = {"type": "number", "minimum": 0, "exclusiveMaximum": LAST_MOMENT}
    device = _object(
        {
            "name": {"type": "string", "pattern": f"^{_NAME}$"},
            "role": {"enum": ["device", "operator"], "default": "device"},
            "expires_at": {"anyOf": [moment, {"type": "null"}]},
        },
        "name",
    )
    devices = {"type": "array", "items": device, "minItems": 1, "maxItems": MOST_ADDED}
    return _object({"devices": devices}, "devices")


def act_schema() -> dict[str, Any]:
    """Return the schema of `cema.cloud.store.fleet.DeviceAct`."""
    most = {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 2**53}, {"type": "null"}]}
    moment = {"type": "number", "minimum": 0, "exclusiveMaximum": LAST_MOMENT}
    acts: dict[str, dict[str, Any]] = {
        "renew": {"overlap": {"type": "number", "minimum": 0, "maximum": LONGEST_OVERLAP, "default": 0}},
        "revoke": {},
        "remove": {},
        "move": {"to": {"type": "string"}},
        "expire": {"at": {"anyOf": [moment, {"type": "null"}]}},
        "quarantine": {},
        "release": {},
        "limit": {
            **dict.fromkeys(DeviceLimitsRecord.model_fields, most),
            "as_configured": {"type": "boolean", "default": False},
        },
    }
    needed = {"move": ("to",), "expire": ("at",)}
    return {
        "oneOf": [
            _object({"type": {"const": name}, **members}, "type", *needed.get(name, ()))
            for name, members in acts.items()
        ]
    }


def _object(members: dict[str, Any], *required: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": members,
        "required": list(required),
        "additionalProperties": False,
    }
