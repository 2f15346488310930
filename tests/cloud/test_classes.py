from __future__ import annotations

from pathlib import Path

import pytest
from cloud_support import opaque_bundle

from cema.cloud.classes import Classes
from cema.cloud.config import CohortConfig
from cema.errors import ConfigError
from cema.formats.bundle import write_bundle
from cema.formats.keys import generate_key


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


def test_names_come_from_the_bundle(tmp_path: Path) -> None:
    key = generate_key(tmp_path / "signing.key")
    plain = opaque_bundle(tmp_path / "plain", key.public_key())
    bundle = write_bundle(
        tmp_path / "named",
        model="opaque",
        model_bytes=b"a graph",
        norm_state=plain.norm_state(),
        golden_images=plain.golden_images,
        golden_logits=plain.golden_logits,
        preprocessing=plain.manifest.preprocessing,
        classes=4,
        labels=("cat", "dog", "cow", "hen"),
        input_name="x",
        output_name="y",
        created_by="tests",
        public_keys=[key.public_key()],
    )
    named, numbered = (
        Classes.of(CohortConfig(name="n", bundle=str(each.path), model="m", foundation="f"))
        for each in (bundle, plain)
    )
    assert named == Classes(("cat", "dog", "cow", "hen"), 4)
    assert (named.index("cow"), named.index("3"), named.folders()[0]) == (2, 3, "cat")
    assert numbered == Classes(None, 4)
    with pytest.raises(ConfigError, match="did you mean"):
        named.index("cot")


def test_folders_of_classes_are_names_that_a_file_system_takes() -> None:
    names = ("a/b", "a b", "..", "", "Über", "A_B", "_not_yet_known")
    folders = Classes(names, len(names)).folders()
    assert folders == ("a_b", "a_b-1", "class-2", "class-3", "Über", "A_B-5", "not_yet_known")
    assert len({name.lower() for name in folders}) == len(names)
