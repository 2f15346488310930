"""What the demonstration says at its end, and what it refuses before its beginning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cema.demo.report import check_outputs, conclusion
from cema.demo.tally import SegmentResult
from cema.errors import ConfigError


def row(frozen: float, adapted: float, uploaded: int = 500) -> SegmentResult:
    return SegmentResult("fog", 1000, frozen, adapted, uploaded, 10, 10)


def cloud(version: int = 3, **counts: float) -> dict[str, Any]:
    return {"version": version, "counts": {k.replace("__", "."): v for k, v in counts.items()}}


def test_a_gain_is_said_with_its_numbers() -> None:
    said = conclusion([row(60.0, 72.0), row(50.0, 70.0)], cloud(9, steps__count=4))
    assert said == (
        "Adaptation gained 16.0 points: 71.0 % in place of 55.0 % over the whole stream, with 9 updates."
    )


@pytest.mark.parametrize(
    ("rows", "status", "stalled", "why", "what"),
    [
        ([row(60, 60, 0)], cloud(0), False, "selected no image", "--samples"),
        ([row(60, 60)], cloud(0), False, "first step", "--samples"),
        ([row(60, 60)], cloud(0), True, "no progress", "--foundation"),
        ([row(60, 60)], cloud(0, steps__count=2, worker__failed_steps=1), False, "failed", "cloud.log"),
        ([row(60, 60)], cloud(0, steps__count=2, worker__skipped_samples=400), False, "outran", "--rate"),
        ([row(60, 60)], cloud(0, steps__count=2), False, "no update passed", "--samples"),
        ([row(60, 60.4)], cloud(2, steps__count=2), False, "2 updates", "--samples"),
        ([row(60, 50)], cloud(2, steps__count=2), False, "lost 10.0 points", "--samples"),
        ([], cloud(0), False, "Nothing was predicted", "--samples"),
    ],
)
def test_no_gain_comes_with_a_reason_and_with_what_to_try(
    rows: list[SegmentResult], status: dict[str, Any], stalled: bool, why: str, what: str
) -> None:
    said = conclusion(rows, status, stalled=stalled)
    assert why in said
    assert what in said
    assert said.endswith(".")
    assert "\n" not in said


def test_a_file_that_cannot_be_written_is_refused_before_the_stream(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "result.json"):
        with pytest.raises(ConfigError, match="cannot be written"):
            check_outputs([path])


def test_the_check_leaves_files_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("kept")
    check_outputs([tmp_path / "old.json", tmp_path / "folder" / "new.json"])
    assert (tmp_path / "old.json").read_text() == "kept"
    assert not (tmp_path / "folder" / "new.json").exists()
