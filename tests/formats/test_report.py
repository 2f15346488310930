"""Reports: what is written is read, and nothing else is."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cema.errors import FormatError
from cema.formats.report import (
    LARGEST_REPORT,
    LONGEST_TEXT,
    SELECTION,
    DeviceReport,
    Refused,
    Served,
    decode_report,
    encode_report,
)

COUNTS = st.integers(0, 2**53 - 1)


@st.composite
def served(draw: st.DrawFn) -> Served:
    guarded, predicted = sorted((draw(COUNTS), draw(COUNTS)))
    return Served(
        version=draw(COUNTS),
        predicted=predicted,
        guarded=guarded,
        entropy=draw(st.floats(0, 1e6, allow_nan=False)),
    )


REPORTS = st.builds(
    DeviceReport,
    boot=st.text("0123456789abcdef", min_size=16, max_size=16),
    number=st.integers(1, 2**53 - 1),
    serving=served(),
    before=st.none() | served(),
    refused=st.none()
    | st.builds(Refused, version=COUNTS, reason=st.sampled_from(["old", "golden_mismatch"])),
    counts=st.dictionaries(st.text("abc_", min_size=1, max_size=12), COUNTS, max_size=8),
    selection=st.dictionaries(st.sampled_from(SELECTION), COUNTS),
    thresholds=st.dictionaries(st.sampled_from(["low", "high"]), st.floats(-1e6, 1e6)),
    problem=st.none() | st.text(max_size=LONGEST_TEXT),
    sent_at=st.none() | st.floats(0, 1e12),
)


@settings(deadline=None)
@given(REPORTS)
def test_a_report_is_read_as_it_was_written(report: DeviceReport) -> None:
    assert decode_report(encode_report(report)) == report


@settings(deadline=None)
@given(REPORTS, st.data())
def test_damage_is_an_error_of_ours_or_another_report(report: DeviceReport, data: st.DataObject) -> None:
    body = bytearray(encode_report(report))
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(FormatError):
        assert isinstance(decode_report(bytes(body)), DeviceReport)


def test_members_of_newer_devices_are_ignored() -> None:
    report = DeviceReport(boot="0" * 16, number=1, serving=Served(version=1))
    body = msgspec.json.encode(msgspec.to_builtins(report) | {"temperature": 41})
    assert decode_report(body) == report


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"boot": "0" * 15}, "boot: expected 16"),
        ({"boot": "G" * 16}, "boot: expected 16"),
        ({"number": 0}, "number"),
        ({"format": "cema.report/2"}, "expected the format"),
        ({"serving": {"version": 1, "entropy": -0.5}}, "finite entropy"),
        ({"selection": {"selected": -1}}, "selection"),
        ({"selection": {f"a{'b' * i}": 1 for i in range(17)}}, "selection"),
        ({"thresholds": {"low": 1e999}}, "thresholds"),
        ({"serving": {"version": 1, "predicted": 3, "guarded": 4}}, "at most 3 guarded"),
        ({"before": {"version": 1, "entropy": -1}}, "finite entropy"),
        ({"serving": {"version": -1}}, "version"),
        ({"refused": {"version": 1, "reason": "No words"}}, "reason"),
        ({"counts": {str(i) * 3: 1 for i in range(9)}}, "counts"),
        ({"sent_at": -1.0}, "sent_at"),
        ({"counts": {"a" * (i + 1): 1 for i in range(33)}}, "counts"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, object], words: str) -> None:
    members = msgspec.to_builtins(DeviceReport(boot="0" * 16, number=1, serving=Served(version=1)))
    with pytest.raises(FormatError, match=words):
        decode_report(msgspec.json.encode(members | change))


def test_long_texts_are_cut_and_long_reports_refused() -> None:
    report = DeviceReport(boot="0" * 16, number=1, serving=Served(version=1), problem="x" * 999)
    assert decode_report(encode_report(report)).problem == "x" * LONGEST_TEXT
    assert len(decode_report(msgspec.json.encode(report)).problem or "") == LONGEST_TEXT
    with pytest.raises(FormatError, match="at most 4096 bytes"):
        decode_report(b" " * (LARGEST_REPORT + 1))
