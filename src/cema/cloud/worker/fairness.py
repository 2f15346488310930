"""No device teaches a cohort alone: a fair draw of waiting samples, and devices that are unlike all others.

A device that sends far more than the others, or images that no other device sees, can spoil the models of all. So its
part of what is learned, replayed and tested with is bounded by what the others have sent, and it is quarantined while
its images, or how often the foundation model disagrees with it, set it apart from the rest.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from cema.cloud.store.base import Waiting

__all__ = ["DeviceRecord", "Draw", "Ledger", "draw"]

# Samples after which what was learned from a device counts half.
HALF_LIFE = 256
# How far a device may be ahead of the mean of the others: by this factor, and by one upload.
AHEAD, UPLOAD = 1.25, 32
# With only one other device, either may be the one that sends too little.
AHEAD_OF_ONE = 4.0
# Until so many of its samples were looked at, nothing is learned from a device that comes to others that are known.
KNOWN = 16
# Other devices that must be known, and like each other, before one is told apart from them.
OTHERS = 2
# Standard deviations of single images by which a device's mean differs from that of the others; released below half.
APART = 2.5
# By how much less often than the others a device may agree with the foundation model.
DISAGREES = 0.45
# The weight of a new sample in a device's record, once there are many.
RATE = 1 / 48
# Samples of watched devices that are looked at beside a batch.
WATCHED = 8
# Devices that are remembered; those not heard of for the longest time are forgotten.
MOST_DEVICES = 512


class DeviceRecord(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is known of one device.

    Attributes
    ----------
    learned : float
        Samples learned from, older ones counting less.
    seen : int
        Samples looked at.
    mean, square : list of float
        Of the statistics of its images (`cema.ondevice.drift.input_statistics`) and of their squares.
    agreed : float
        Share of its samples on which it chose the foundation model's label.
    quarantined : bool
        Whether it is unlike all others.
    """

    learned: float = 0.0
    seen: int = 0
    mean: list[float] = []
    square: list[float] = []
    agreed: float = 0.0
    quarantined: bool = False

    def observe(self, row: npt.NDArray[np.float32], agrees: bool) -> None:
        """Take in the statistics (F,) of one sample's image, and whether device and foundation model agree on it."""
        self.seen += 1
        rate = max(RATE, 1 / self.seen)
        wide = row.astype(np.float64)
        if not np.isfinite(wide).all():
            return
        mean = np.asarray(self.mean or wide)
        square = np.asarray(self.square or wide**2)
        self.mean = (mean + rate * (wide - mean)).tolist()
        self.square = (square + rate * (wide**2 - square)).tolist()
        self.agreed += rate * (float(agrees) - self.agreed)


class Ledger(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The devices of a cohort.

    Attributes
    ----------
    devices : dict of str to DeviceRecord
        By name; the one heard of last is at the end.
    """

    devices: dict[str, DeviceRecord] = {}

    def allowance(self, device: str, size: int, *, alone: bool) -> int:
        """Return how many samples a device may give to a batch.

        Parameters
        ----------
        device : str
            Its name.
        size : int
            Samples in a full batch.
        alone : bool
            Whether no other device has samples waiting.
        """
        return min(
            self.lead(device, size), size if alone or not self._others(device) else math.ceil(size / 2)
        )

    def lead(self, device: str, most: int) -> int:
        """Return how many samples, of `most`, a device may give before it is too far ahead of the others."""
        if self.watched(device):
            return 0
        others = self._others(device)
        if not others:
            return most
        ahead = AHEAD if len(others) >= OTHERS else AHEAD_OF_ONE
        mean = sum(r.learned for r in others) / len(others)
        learned = self.devices.get(device, DeviceRecord()).learned
        return max(0, min(most, math.ceil(ahead * mean + UPLOAD - learned)))

    def _others(self, device: str) -> list[DeviceRecord]:
        return [r for name, r in self.devices.items() if name != device and not r.quarantined]

    def watched(self, device: str) -> bool:
        """Tell whether a device's samples are looked at only: it is quarantined, or new where most are known."""
        record = self.devices.get(device, DeviceRecord())
        if record.quarantined or record.seen >= KNOWN:
            return record.quarantined
        others = self._others(device)
        known = sum(r.seen >= KNOWN for r in others)
        return known >= OTHERS and 2 * known >= len(others)

    def learned(self, devices: Sequence[str]) -> None:
        """Take note of whose samples a batch had."""
        keep = 0.5 ** (len(devices) / HALF_LIFE)
        for record in self.devices.values():
            record.learned *= keep
        for name, count in Counter(devices).items():
            record = self.devices.pop(name) if name in self.devices else DeviceRecord()
            record.learned += count
            self.devices[name] = record
        for name in list(self.devices)[: max(0, len(self.devices) - MOST_DEVICES)]:
            del self.devices[name]

    def observe(
        self,
        devices: Sequence[str],
        rows: npt.NDArray[np.float32],
        agrees: npt.NDArray[np.bool_],
        *,
        apart: Collection[str] = (),
    ) -> dict[str, bool]:
        """Take in samples by device, and decide anew who is quarantined.

        Parameters
        ----------
        devices : sequence of str
            Who sent each.
        rows : ndarray of float32 (N, F)
            Statistics of their images.
        agrees : ndarray of bool (N,)
            Whether device and foundation model chose the same label.
        apart : collection of str
            Devices that count for none of the others, whatever they are like: operators have quarantined them.

        Returns
        -------
        dict of str to bool
            Whose case has changed, and whether the device is quarantined now.
        """
        before = set(self.quarantined())
        for device, row, same in zip(devices, rows, agrees, strict=True):
            self.devices.setdefault(device, DeviceRecord()).observe(row, bool(same))
        known = {name: r for name, r in self.devices.items() if r.seen >= KNOWN and r.mean}
        _judge(list(known.values()), [name in apart for name in known])
        now = set(self.quarantined())
        return {name: name in now for name in sorted(now ^ before)}

    def quarantined(self) -> list[str]:
        """Return the names of the devices that are quarantined."""
        return sorted(name for name, record in self.devices.items() if record.quarantined)


def _judge(records: Sequence[DeviceRecord], apart: Sequence[bool]) -> None:
    """Decide of each known device whether it is quarantined; one that is (or apart) counts for none of the others."""
    means, squares = np.array([r.mean for r in records]), np.array([r.square for r in records])
    agreed = np.array([r.agreed for r in records])
    counts = ~np.array(apart, dtype=bool)
    free = np.array([not r.quarantined for r in records], dtype=bool) & counts
    for i, record in enumerate(records):
        others = free.copy()
        others[i] = False
        record.quarantined = _apart(record, means[others], squares[others], agreed[others])
        free[i] = counts[i] and not record.quarantined


def _apart(
    record: DeviceRecord,
    means: npt.NDArray[np.float64],
    squares: npt.NDArray[np.float64],
    agreed: npt.NDArray[np.float64],
) -> bool:
    """Tell whether a device is unlike the others, which are like each other; (D, F), (D, F) and (D,) of the others."""
    if len(means) < OTHERS:
        return record.quarantined and bool(len(means))
    deviation = np.sqrt(np.maximum(np.median(squares - means**2, axis=0), 1e-6))
    centre = np.median(means, axis=0)
    limit = APART / 2 if record.quarantined else APART
    distances = np.abs(means - centre) / deviation
    alike = np.median(distances.max(axis=1)) <= APART / 2
    slack = DISAGREES / 2 if record.quarantined else DISAGREES
    strange = float((np.abs(np.array(record.mean) - centre) / deviation).max()) > limit
    return bool(alike and (strange or record.agreed < np.median(agreed) - slack))


class Draw(NamedTuple):
    """What is next for a cohort.

    Attributes
    ----------
    chosen : list of int
        Sequence numbers of the samples to learn from.
    replay : list of int
        Of those that go to the replay buffer without a step of their own.
    left_out : list of int
        Of those that are neither: of devices that are watched, or more than others have sent.
    watched : list of int
        Of those of watched devices that are looked at, to see whether they are like the others.
    cursor : int
        The last of them all.
    held : list of int
        Of those that wait on beside the batch: chosen before and too many for it, or more than one device may give to
        this batch and not more than it may give in all.
    """

    chosen: list[int]
    replay: list[int]
    left_out: list[int]
    watched: list[int]
    cursor: int
    held: Sequence[int] = ()

    def after(self, held: Sequence[int]) -> Draw:
        """Return the same with these samples before the chosen ones."""
        return self._replace(chosen=[*held, *self.chosen])


def draw(waiting: Sequence[Waiting], size: int, ledger: Ledger, *, behind: bool) -> Draw:
    """Choose a batch from the samples that wait.

    Parameters
    ----------
    waiting : sequence of Waiting
        The oldest first, at least one.
    size : int
        Samples in a full batch.
    ledger : Ledger
        The devices.
    behind : bool
        Whether more wait than may. Then the newest are chosen, and none of `waiting` waits any longer.

    Returns
    -------
    Draw
        With one device alone, the next `size` samples in their order. At most `size` others are held.
    """
    present = {w.device for w in waiting}
    allowed = {name: ledger.allowance(name, size, alone=len(present) == 1) for name in present}
    # What one upload brought and half a batch could not take is as new as what the other devices sent: it waits.
    lead = {name: 0 if behind else ledger.lead(name, 2 * size) - allowed[name] for name in present}
    chosen: list[Waiting] = []
    held: list[int] = []
    looked_at = 0
    for w in reversed(waiting) if behind else waiting:
        if len(chosen) == size:
            break
        looked_at += 1
        if allowed[w.device] > 0:
            allowed[w.device] -= 1
            chosen.append(w)
        elif lead[w.device] > 0 and len(held) < size:
            lead[w.device] -= 1
            held.append(w.seq)
    done = waiting if behind else waiting[:looked_at]
    taken = {w.seq for w in chosen}
    rest = [w for w in done if w.seq not in taken.union(held)]
    replay, left_out = _to_replay(rest, chosen, ledger)
    only_watched = {name for name in present if ledger.watched(name)}
    watched = [w.seq for w in rest if w.device in only_watched][:WATCHED]
    return Draw(sorted(taken), replay, left_out, watched, done[-1].seq, held)


def _to_replay(
    rest: Sequence[Waiting], chosen: Sequence[Waiting], ledger: Ledger
) -> tuple[list[int], list[int]]:
    """Return which of the samples that were not chosen may be replayed: of no device more than of any other."""
    watched = {name for name in {w.device for w in rest} if ledger.watched(name)}
    total = Counter(w.device for w in (*rest, *chosen) if w.device not in watched)
    given = Counter(w.device for w in chosen)
    most = {
        name: max((count for other, count in total.items() if other != name), default=math.inf)
        for name in {w.device for w in rest}
    }
    replay, left_out = [], []
    for w in rest:
        if w.device in watched or (given[w.device] >= most[w.device] and len(ledger.devices) > 1):
            left_out.append(w.seq)
        else:
            given[w.device] += 1
            replay.append(w.seq)
    return replay, left_out
