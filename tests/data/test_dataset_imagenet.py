"""ImageNet-C and ImageNet-R in their published layouts, small."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cema.data.dataset import open_dataset
from cema.data.folder import WNIDS_FILE
from cema.data.imagenet_c import ImageNetC
from cema.data.imagenet_r import ImageNetR
from cema.errors import ConfigError, ImageError

WNIDS = ("n01440764", "n01443537", "n01484850")

# The classes of ImageNet-R among the 1,000, as its authors' evaluation gives them.
IMAGENET_R = (
    *(
        1,
        2,
        4,
        6,
        8,
        9,
        11,
        13,
        22,
        23,
        26,
        29,
        31,
        39,
        47,
        63,
        71,
        76,
        79,
        84,
        90,
        94,
        96,
        97,
        99,
        100,
        105,
        107,
    ),
    *(
        113,
        122,
        125,
        130,
        132,
        144,
        145,
        147,
        148,
        150,
        151,
        155,
        160,
        161,
        162,
        163,
        171,
        172,
        178,
        187,
        195,
        199,
    ),
    *(
        203,
        207,
        208,
        219,
        231,
        232,
        234,
        235,
        242,
        245,
        247,
        250,
        251,
        254,
        259,
        260,
        263,
        265,
        267,
        269,
        276,
        277,
    ),
    *(
        281,
        288,
        289,
        291,
        292,
        293,
        296,
        299,
        301,
        308,
        309,
        310,
        311,
        314,
        315,
        319,
        323,
        327,
        330,
        334,
        335,
        337,
    ),
    *(
        338,
        340,
        341,
        344,
        347,
        353,
        355,
        361,
        362,
        365,
        366,
        367,
        368,
        372,
        388,
        390,
        393,
        397,
        401,
        407,
        413,
        414,
    ),
    *(
        425,
        428,
        430,
        435,
        437,
        441,
        447,
        448,
        457,
        462,
        463,
        469,
        470,
        471,
        472,
        476,
        483,
        487,
        515,
        546,
        555,
        558,
    ),
    *(
        570,
        579,
        583,
        587,
        593,
        594,
        596,
        609,
        613,
        617,
        621,
        629,
        637,
        657,
        658,
        701,
        717,
        724,
        763,
        768,
        774,
        776,
    ),
    *(
        779,
        780,
        787,
        805,
        812,
        815,
        820,
        824,
        833,
        847,
        852,
        866,
        875,
        883,
        889,
        895,
        907,
        928,
        931,
        932,
        933,
        934,
    ),
    *(936, 937, 943, 945, 947, 948, 949, 951, 953, 954, 957, 963, 965, 967, 980, 981, 983, 988),
)


def photograph(path: Path, shade: int, size: tuple[int, int] = (224, 224)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, shade, shade)).save(path, "JPEG")


def shades(images: Iterable[np.ndarray]) -> list[int]:
    return [round(float(image.mean())) for image in images]


def shade_of(corruption: int, severity: int, place: int) -> int:
    return 100 * corruption + 20 * severity + 2 * place


def imagenet_c(root: Path, parents: tuple[str, str] = ("", "")) -> Path:
    for c, name in enumerate(("gaussian_noise", "fog")):
        for severity in (1, 3):
            for place, number in enumerate((3, 5, 8, 13)):
                name_of_file = f"ILSVRC2012_val_{number:08d}.JPEG"
                folder = root / parents[c] / name / str(severity) / WNIDS[place % 3]
                photograph(folder / name_of_file, shade_of(c, severity, place))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return imagenet_c(tmp_path / "ImageNet-C")


# Sorted by wnid and then by name, the places above are in this order.
ORDER = (0, 3, 1, 2)


def test_published_layout(root: Path) -> None:
    data = open_dataset(str(root), cache=None)
    assert isinstance(data, ImageNetC)
    assert (data.name, data.classes, data.family, data.logits) == ("imagenet-c", 3, "imagenet", None)
    assert data.corruptions == ("gaussian_noise", "fog")
    assert data.cropped
    for c, name in enumerate(data.corruptions):
        for severity in (1, 3):
            found = data.corrupted(name, severity)
            assert found.labels.tolist() == [0, 0, 1, 2]
            assert found.labels.dtype == np.int64
            assert [image.shape for image in found.images] == [(224, 224, 3)] * 4
            assert shades(found.images) == [shade_of(c, severity, place) for place in ORDER]


def test_folders_of_the_archives(root: Path, tmp_path: Path) -> None:
    below = imagenet_c(tmp_path / "archives", ("noise", "weather"))
    data, plain = open_dataset(str(below), cache=None), open_dataset(str(root), cache=None)
    assert data.corruptions == plain.corruptions
    assert data.digest == plain.digest
    assert shades(data.corrupted("fog", 3).images) == shades(plain.corrupted("fog", 3).images)


@pytest.mark.parametrize("place", ["inside", "beside", "given"])
def test_labels_are_places_in_the_list(root: Path, tmp_path: Path, place: str) -> None:
    listed = {"inside": root, "beside": root.parent, "given": tmp_path / "lists"}[place] / WNIDS_FILE
    listed.parent.mkdir(exist_ok=True)
    listed.write_text("n00000001\n" + "\n".join(reversed(WNIDS)) + "\nn00000009\n")
    data = open_dataset(str(root), cache=None, wnids=listed if place == "given" else None)
    assert data.classes == 5
    assert data.corrupted("fog", 1).labels.tolist() == [3, 3, 2, 1]


def test_limit_chooses_the_same_for_all(root: Path) -> None:
    data = open_dataset(str(root), cache=None, limit=3, seed=1)
    order = np.random.default_rng(1).permutation(4)[:3]
    for c, name in enumerate(("gaussian_noise", "fog")):
        for severity in (1, 3):
            found = data.corrupted(name, severity)
            assert shades(found.images) == [shade_of(c, severity, ORDER[i]) for i in order]
            assert found.labels.tolist() == [[0, 0, 1, 2][i] for i in order]
    assert len(open_dataset(str(root), cache=None, limit=99).corrupted("fog", 1)) == 4
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        open_dataset(str(root), cache=None, limit=0)


def test_many_threads_read(root: Path) -> None:
    images = open_dataset(str(root), cache=None).corrupted("fog", 3).images
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda i: images[i % 4], range(40)))
    assert shades(read) == shades(images) * 10
    assert shades(images[1:3]) == shades(images)[1:3]


def test_digest_tells_data_apart(root: Path) -> None:
    before = open_dataset(str(root), cache=None).digest
    photograph(root / "gaussian_noise" / "1" / WNIDS[1] / "another.JPEG", 9)
    assert open_dataset(str(root), cache=None).digest != before


def test_missing_and_unknown(root: Path) -> None:
    data = open_dataset(str(root), cache=None)
    with pytest.raises(ConfigError, match=r"ImageNet-C/snow: .* missing; there are gaussian_noise, fog$"):
        data.corrupted("snow", 3)
    with pytest.raises(ConfigError, match="unknown corruption 'mist'; expected one of"):
        data.corrupted("mist", 3)
    with pytest.raises(ConfigError, match=r"fog/2: this severity is missing; of fog there is 1, 3"):
        data.corrupted("fog", 2)
    with pytest.raises(ConfigError, match=r"ImageNet-C: imagenet-c holds corrupted images only"):
        data.clean()
    (root / "fog" / "3" / WNIDS[0] / "ILSVRC2012_val_00000013.JPEG").unlink()
    with pytest.raises(
        ConfigError, match=r"fog/3/n01440764/ILSVRC2012_val_00000013\.JPEG: this image is missing"
    ):
        data.corrupted("fog", 3)


def test_class_folder_that_is_no_wnid(root: Path) -> None:
    photograph(root / "gaussian_noise" / "1" / "goldfish" / "a.JPEG", 3)
    with pytest.raises(
        ConfigError, match=r"gaussian_noise/1/goldfish: expected a class folder named by its wnid"
    ):
        open_dataset(str(root), cache=None)


def test_wnid_that_the_list_does_not_know(root: Path) -> None:
    (root / WNIDS_FILE).write_text("\n".join(WNIDS[1:]))
    with pytest.raises(ConfigError, match=rf"gaussian_noise/1/n01440764: class .* is not in .*{WNIDS_FILE}"):
        open_dataset(str(root), cache=None)


def test_truncated_photograph_is_named_when_read(root: Path) -> None:
    path = root / "fog" / "1" / WNIDS[2] / "ILSVRC2012_val_00000008.JPEG"
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    found = open_dataset(str(root), cache=None).corrupted("fog", 1)
    assert shades([found.images[0]]) == [shade_of(1, 1, 0)]
    with pytest.raises(ImageError, match=r"fog/1/n01484850/ILSVRC2012_val_00000008\.JPEG: cannot be read"):
        found.images[3]


def test_empty_folders(tmp_path: Path) -> None:
    (tmp_path / "fog").mkdir()
    with pytest.raises(ConfigError, match=r"fog: expected folders 1 to 5"):
        open_dataset(str(tmp_path), cache=None)
    (tmp_path / "fog" / "1").mkdir()
    with pytest.raises(ConfigError, match=r"fog/1: no photographs found"):
        open_dataset(str(tmp_path), cache=None)
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match=r"other: expected a folder for each corruption"):
        ImageNetC(tmp_path / "other")


def wnids(count: int) -> list[str]:
    return [f"n{7 * number:08d}" for number in range(1, count + 1)]


@pytest.fixture
def renditions(tmp_path: Path) -> Path:
    root = tmp_path / "imagenet-r"
    for number, wnid in enumerate(wnids(1000)[::5]):
        photograph(root / wnid / "art_0.jpg", number, (40 + number % 3, 36))
    photograph(root / wnids(1000)[5] / "sketch_11.jpg", 250, (50, 50))
    (root / "README.txt").write_text("Citation and so on")
    (tmp_path / WNIDS_FILE).write_text("\n".join(wnids(1000)))
    return root


def test_renditions(renditions: Path) -> None:
    data = open_dataset(str(renditions), cache=None)
    assert isinstance(data, ImageNetR)
    assert (data.name, data.classes, data.family) == ("imagenet-r", 1000, "imagenet")
    assert data.logits == tuple(range(0, 1000, 5))
    assert data.corruptions == ()
    assert not data.cropped
    found = data.clean()
    assert found.labels.tolist() == [0, 1, *range(1, 200)]
    assert shades([found.images[i] for i in (0, 1, 2, 200)]) == [0, 1, 250, 199]
    assert found.images[200].shape == (36, 41, 3)
    with pytest.raises(ConfigError, match="the shift themselves"):
        data.corrupted("fog", 3)


def test_renditions_in_a_list_of_another_order(renditions: Path) -> None:
    (renditions.parent / WNIDS_FILE).write_text("\n".join(reversed(wnids(1000))))
    data = open_dataset(str(renditions), cache=None)
    assert data.logits == tuple(999 - column for column in range(0, 1000, 5))
    found = data.clean()
    assert found.labels.tolist() == [0, 1, *range(1, 200)]


def test_renditions_limited(renditions: Path) -> None:
    found = open_dataset(str(renditions), cache=None, limit=10, seed=4).clean()
    order = np.random.default_rng(4).permutation(201)[:10]
    assert found.labels.tolist() == [([0, 1, *range(1, 200)])[i] for i in order]


def test_renditions_lack_list_or_classes(renditions: Path) -> None:
    (renditions / wnids(1000)[0] / "art_0.jpg").unlink()
    with pytest.raises(ConfigError, match="in 200 class folders, found them in 199"):
        open_dataset(str(renditions), cache=None)
    photograph(renditions / "toys" / "a.jpg", 1)
    with pytest.raises(ConfigError, match=r"imagenet-r/toys: expected a class folder named by its wnid"):
        open_dataset(str(renditions), cache=None)
    (renditions / "toys" / "a.jpg").unlink()
    (renditions / "toys").rmdir()
    (renditions.parent / WNIDS_FILE).unlink()
    with pytest.raises(ConfigError, match=rf"needs the list of the model's 1,000 classes.*{WNIDS_FILE}"):
        open_dataset(str(renditions), cache=None)
    with pytest.raises(ConfigError, match="nowhere: expected a folder"):
        ImageNetR(renditions / "nowhere")


def test_published_classes_are_recognised_under_any_name(tmp_path: Path, shared_data: Path) -> None:
    names = (shared_data / WNIDS_FILE).read_text().split()
    for column in IMAGENET_R:
        photograph(tmp_path / "validation" / names[column] / "a.JPEG", 7, (8, 8))
    data = open_dataset(str(tmp_path / "validation"), cache=None, wnids=shared_data / WNIDS_FILE)
    assert data.logits == IMAGENET_R
    assert data.name == "validation"
    assert data.clean().labels.tolist() == list(range(200))
