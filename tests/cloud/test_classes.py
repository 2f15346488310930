from __future__ import annotations

from pathlib import Path

import pytest

from cema.cloud.classes import Classes
from cema.cloud.config import CohortConfig
from cema.errors import ConfigError


def test_a_class_is_found_by_name_before_number() -> None:
    classes = Classes(("1", "0", "cat"), 3)
    assert [classes.index(text) for text in ("1", "0", "2", " cat ")] == [0, 1, 2, 2]
    for wrong in ("3", "-1", "dog", "", "1.0"):
        with pytest.raises(ConfigError, match="0 to 2"):
            classes.index(wrong)
    assert [classes.name(index) for index in (0, 2, 7, None)] == ["1", "cat", "7", ""]


def test_without_a_bundle_classes_are_numbers(tmp_path: Path) -> None:
    cohort = CohortConfig(name="n", bundle=str(tmp_path / "none"), model="m", foundation="f")
    classes = Classes.of(cohort)
    assert classes == Classes(None, None)
    assert (classes.index("700"), classes.name(7), classes.folders()) == (700, "7", ())


def test_folders_of_classes_are_names_that_a_file_system_takes() -> None:
    names = ("a/b", "a b", "..", "", "Über", "A_B", "_not_yet_known")
    folders = Classes(names, len(names)).folders()
    assert folders == ("a_b", "a_b-1", "class-2", "class-3", "Über", "A_B-5", "not_yet_known")
    assert len({name.lower() for name in folders}) == len(names)
