"""What a device says of itself beside its polls: the version that serves, and how that does."""

from __future__ import annotations

import math
import re
from typing import Annotated

import msgspec

from cema.errors import FormatError

__all__ = [
    "LARGEST_REPORT",
    "REPORTED_COUNTS",
    "REPORT_FORMAT",
    "SELECTION",
    "DeviceReport",
    "Refused",
    "Served",
    "decode_report",
    "encode_report",
]

REPORT_FORMAT = "cema.report/1"
REPORTED_COUNTS = ("predicted", "selected", "guarded", "uploaded", "dropped", "swaps")
"""What a device counts in its reports, of its whole life: images and samples, and updates that came to serve."""
LARGEST_REPORT = 4096
"""Bytes of an encoded report, at most."""
SELECTION = ("selected", "below", "above", "redundant", "budget", "near_duplicate", "other")
"""What a selection makes of an image: the names in `DeviceReport.selection` that this cloud keeps a history of."""
# Characters of what a device says went wrong.
LONGEST_TEXT = 200

_Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
_Name = Annotated[str, msgspec.Meta(pattern="^[a-z_]{1,40}$")]
_BOOT = re.compile("[0-9a-f]{16}")


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """What a version did on a device since it began to serve there; after a restart it begins anew.

    Attributes
    ----------
    version : int
        0 for the model that the device was provisioned with.
    predicted : int
        Images.
    guarded : int
        Those of them that the source model predicted in its place.
    entropy : float
        Mean entropy of the others, in nats; 0 when there is none.
    """

    version: _Count
    predicted: _Count = 0
    guarded: _Count = 0
    entropy: float = 0.0


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """A version that the device does not run, and why.

    Attributes
    ----------
    version : int
        0 where its number could not be read.
    reason : str
        Of docs/protocol.md, section 5.6.
    """

    version: _Count
    reason: _Name


class DeviceReport(msgspec.Struct, frozen=True, kw_only=True):
    """A report. Members that are not known are ignored: a newer device may say more.

    Attributes
    ----------
    boot : str
        16 hexadecimal digits, drawn when the device's program starts.
    number : int
        1 and up: the reports that were tried since then. Numbers that are missing are reports that were lost.
    serving : Served
        The version that was installed last, and serves unless the inputs are not what it was made for.
    before : Served, optional
        The one that served before it.
    refused : Refused, optional
        The last version that was not installed, or that the device went back from.
    counts : dict of str to int
        Counters of the device's whole life, of the names of `cema.edge.status.EdgeStatus`.
    selection : dict of str to int
        Images of the device's whole life by what its selection made of them: ``selected``, and the reasons of those
        that it left out. What was selected and then was like a sample sent before is in ``near_duplicate`` too.
    thresholds : dict of str to float
        ``low`` and ``high``: between them the entropy of a selected sample lies, in nats; empty for rules without.
    problem : str, optional
        What is wrong on the device right now, in its own words.
    sent_at : float, optional
        When it was sent by the device's clock, unix seconds.
    format : str
    """

    boot: str
    number: Annotated[int, msgspec.Meta(ge=1, lt=2**53)]
    serving: Served
    before: Served | None = None
    refused: Refused | None = None
    counts: Annotated[dict[_Name, _Count], msgspec.Meta(max_length=32)] = {}
    selection: Annotated[dict[_Name, _Count], msgspec.Meta(max_length=16)] = {}
    thresholds: Annotated[dict[_Name, float], msgspec.Meta(max_length=4)] = {}
    problem: str | None = None
    sent_at: float | None = None
    format: str = REPORT_FORMAT


_decoder = msgspec.json.Decoder(DeviceReport)


def encode_report(report: DeviceReport) -> bytes:
    """Encode a report as JSON; a text that is too long is cut.

    Examples
    --------
    >>> encode_report(DeviceReport(boot="0" * 16, number=1, serving=Served(version=3, predicted=8, entropy=0.5)))[:36]
    b'{"boot":"0000000000000000","number":'
    """
    if report.problem is not None:
        report = msgspec.structs.replace(report, problem=report.problem[:LONGEST_TEXT])
    return msgspec.json.encode(report)


def decode_report(data: bytes) -> DeviceReport:
    """Decode a report.

    Raises
    ------
    FormatError
        When `data` is none, or a number in it is out of range.
    """
    if len(data) > LARGEST_REPORT:
        raise FormatError(f"expected a report of at most {LARGEST_REPORT} bytes, got {len(data)}: say less")
    try:
        report = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(
            f"expected a {REPORT_FORMAT} report in JSON, got {len(data)} bytes: {error}"
        ) from error
    if report.format != REPORT_FORMAT:
        raise FormatError(
            f"expected the format {REPORT_FORMAT!r}, got {report.format!r}: upgrade the older side"
        )
    if not _BOOT.fullmatch(report.boot):
        raise FormatError(f"boot: expected 16 of 0-9 and a-f, got {report.boot[:40]!r}")
    for served in (report.serving, report.before):
        if served is not None and not (0 <= served.entropy < math.inf and served.guarded <= served.predicted):
            raise FormatError(
                f"version {served.version}: expected a finite entropy of at least 0 and at most {served.predicted} "
                f"guarded images, got {served.entropy} and {served.guarded}"
            )
    if report.sent_at is not None and not 0 <= report.sent_at < math.inf:
        raise FormatError(f"sent_at: expected a finite time of at least 0, got {report.sent_at}")
    return msgspec.structs.replace(report, problem=report.problem and report.problem[:LONGEST_TEXT])
