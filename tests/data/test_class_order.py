"""Where names of class folders meet the logits of a model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cema.data.class_order import class_columns
from cema.data.dataset import open_dataset
from cema.data.folder import WNIDS_FILE, LabelledFolder
from cema.errors import ConfigError, ImageError


def folders(root: Path, *names: str) -> Path:
    for shade, name in enumerate(names):
        (root / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), (shade, shade, shade)).save(root / name / "a.png")
    return root


def columns(root: Path, logits: int, labels: Sequence[str] | None = None) -> tuple[dict[str, int], str]:
    """Return the logit that each class folder's image is scored on, and what is said of it."""
    data = open_dataset(str(root), cache=None)
    found, said = class_columns(data, logits, labels, "the-model")
    assert found is not None
    names = [path.parent.name for path in LabelledFolder(root).files]
    return dict(zip(names, found[data.clean().labels].tolist(), strict=True)), said


def test_whole_numbers_are_ordered_by_number(tmp_path: Path) -> None:
    root = folders(tmp_path / "set", *(str(number) for number in range(12)))
    found, said = columns(root, 12)
    assert found == {str(number): number for number in range(12)}
    assert "ordered by number: 0 is logit 0, 11 is logit 11" in said
    # Padded, and counted from one, as some data sets are.
    found, said = columns(folders(tmp_path / "padded", *(f"{number:02}" for number in range(1, 12))), 11)
    assert found == {f"{number:02}": number - 1 for number in range(1, 12)}
    assert "01 is logit 0" in said


def test_where_there_are_more_logits_a_number_is_its_logit(tmp_path: Path) -> None:
    found, said = columns(folders(tmp_path / "set", "207", "3", "574"), 1000)
    assert found == {"207": 207, "3": 3, "574": 574}
    assert "the number is the logit" in said
    with pytest.raises(ConfigError, match=r"class folder 574 is no logit of the-model, which has 0 to 99"):
        columns(tmp_path / "set", 100)


def test_one_number_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="class folders 07 and 7 are the same number"):
        open_dataset(str(folders(tmp_path / "set", "7", "07", "1")), cache=None)


def test_numbers_in_names_stay_text_and_this_is_said(tmp_path: Path) -> None:
    found, said = columns(folders(tmp_path / "set", "class1", "class2", "class10"), 3)
    assert found == {"class1": 0, "class10": 1, "class2": 2}
    assert "ordered as text: class1, class10, class2" in said
    assert "10 comes before 2" in said
    assert "10 comes" not in columns(folders(tmp_path / "plain", "cat", "dog"), 2)[1]


@pytest.mark.parametrize("names", [("n02099601", "n03445777"), ("cat", "dog"), ("cat",)])
def test_more_logits_than_folders_without_a_list_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = folders(tmp_path / "set", *names)
    with pytest.raises(ConfigError, match=rf"{names[0]}.* 1000 logits.*--wnids FILE, or {WNIDS_FILE} beside"):
        columns(root, 1000)
    (tmp_path / WNIDS_FILE).write_text("".join(f"{name}\n" for name in names))
    with pytest.raises(ConfigError, match=rf"{WNIDS_FILE}: expected a line for each of the 1000 logits"):
        columns(root, 1000)
    rest = [f"other{number}" for number in range(1000 - len(names))]
    (tmp_path / WNIDS_FILE).write_text("\n".join([*rest, *names]))
    found, said = columns(root, 1000)
    assert found == {name: len(rest) + place for place, name in enumerate(names)}
    assert WNIDS_FILE in said


def test_imagenet_c_in_part_is_refused_without_a_list(tmp_path: Path) -> None:
    root = tmp_path / "ImageNet-C"
    folders(root / "fog" / "3", "n02099601", "n03445777")
    data = open_dataset(str(root), cache=None)
    with pytest.raises(ConfigError, match=r"fog/3: 2 class folders .* 1000 logits.*--wnids"):
        class_columns(data, 1000, None, "the-model")
    assert class_columns(data, 2, None, "the-model")[0] is not None


def test_the_models_own_names_decide_where_all_are_known(tmp_path: Path) -> None:
    root = folders(tmp_path / "set", "cat", "dog")
    found, said = columns(root, 2, ("dog", "cat"))
    assert found == {"cat": 1, "dog": 0}
    assert "class names of the-model" in said
    assert columns(root, 4, ("fish", "dog", "bird", "cat"))[0] == {"cat": 3, "dog": 1}
    with pytest.raises(ConfigError, match=r"the model's own names are a, b, c\); give the list"):
        columns(root, 3, ("a", "b", "c"))
    found, said = columns(root, 2, ("a dog", "a cat"))
    assert found == {"cat": 0, "dog": 1}
    assert "the-model has other names for its classes (a dog, a cat)" in said


def test_fewer_logits_than_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the-model has 2 classes and the data have 3"):
        columns(folders(tmp_path / "set", "a", "b", "c"), 2)


def test_labels_that_are_logits_stay_and_odd_numbers_of_them_are_said(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 32, 32, 3), np.uint8), y=np.arange(3))
    data = open_dataset(str(tmp_path / "x.npz"), cache=None)
    assert class_columns(data, 3, None, "the-model") == (None, "")
    found, said = class_columns(data, 10, None, "the-model")
    assert found is None
    assert "10 logits and x 3 classes" in said


def test_what_is_not_used_is_said(tmp_path: Path) -> None:
    root = folders(tmp_path / "set", "cat", "dog")
    (root / "bird").mkdir()
    (root / "dog" / "b.HEIC").write_bytes(b"x")
    (root / "cat" / "._a.png").write_bytes(b"\0\5\x16\7")
    folders(root / "cat", "sub.jpg")
    (root / "c.png").write_bytes((root / "cat" / "a.png").read_bytes())
    folders(root / "@eaDir", "cat")
    data = open_dataset(str(root), cache=None)
    assert data.classes == 3
    assert len(data.clean()) == 2
    said = data.folder_classes.passed_over  # type: ignore[attr-defined]
    assert said == (
        "files that are no images by their names: 1 .heic; images beside the class folders or in folders below "
        "them: 2; class folders without images: bird"
    )


def test_a_list_may_have_a_mark_and_names_with_spaces(tmp_path: Path) -> None:
    root = folders(tmp_path / "set", "great owl", "great shark", "n01")
    listed = tmp_path / "classes.txt"
    listed.write_bytes(b"\xef\xbb\xbfn01 some words\ngreat shark\ngreat owl\n")
    assert LabelledFolder(root, classes=listed).labels.tolist() == [2, 1, 0]
    listed.write_text("n01\ngreat shark\n", "utf-16")
    with pytest.raises(ConfigError, match="saved as UTF-8"):
        LabelledFolder(root, classes=listed)


def test_names_that_are_no_utf8_are_read_and_shown(tmp_path: Path) -> None:
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xe9"))
    try:
        folders(root, "cat", os.fsdecode(b"\xe9"))
    except OSError:
        pytest.skip("this file system has no such names")
    data = open_dataset(str(root), cache=None)
    assert data.name == r"d\udce9"
    assert len(data.digest) == 64
    assert data.clean().labels.tolist() == [0, 1]


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    root = folders(tmp_path / "set", "cat", "dog")
    (root / "cat" / "b.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match=r"cat/b\.png: cannot be read"):
        open_dataset(str(root), cache=None)
