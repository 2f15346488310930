"""Stored samples as a folder that a labelling tool can read."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from cema._util.files import sync_folder
from cema.cloud.classes import Classes
from cema.cloud.store.base import Store
from cema.cloud.store.data import DataFilter, DataSample, all_samples, data_of
from cema.errors import ConfigError, ImageError
from cema.formats.image import CodecConfig, decode_image, encode_image
from cema.formats.image_header import image_kind

__all__ = ["COLUMNS", "LABELS_FILE", "Exported", "export_data"]

LABELS_FILE = "labels.csv"
COLUMNS = (
    "id",
    "file",
    "device",
    "captured_at",
    "label",
    "teacher",
    "entropy",
    "version",
    "true_label",
)
# Where the foundation model has not looked at a sample yet.
UNKNOWN = "_not_yet_known"
AT_ONCE = 64
_SUFFIX = {"JPEG": ".jpg", "PNG": ".png"}


class Exported(msgspec.Struct, frozen=True):
    """What was written: how many images, and how many could not be because they are damaged."""

    images: int
    damaged: int


def export_data(
    store: Store,
    cohort: str,
    which: DataFilter,
    folder: Path,
    classes: Classes,
    *,
    written: Callable[[int], None] = lambda _: None,
) -> Exported:
    """Write stored samples into a new folder, by the foundation model's label, with a table.

    The folder appears under its name when it is whole. JPEG and PNG images are written as they are, others as PNG. The
    table, ``labels.csv``, has a line for each image; its last column is for the true class, and is filled where a
    person has given one.

    Parameters
    ----------
    store, cohort, which
        The samples.
    folder
        One that does not exist, or is empty.
    classes
        The cohort's.
    written
        Told after some images how many there are.

    Raises
    ------
    ConfigError
        The folder is not empty, or is none.
    StoreError
        The store tells of no samples.
    """
    data = data_of(store)
    _check_empty(folder)
    temporary = folder.with_name(f".{folder.name}.{os.urandom(6).hex()}.tmp")
    temporary.mkdir(mode=0o700, parents=True)
    try:
        found = _write(store, all_samples(data, cohort, which, at_once=AT_ONCE), temporary, classes, written)
        sync_folder(temporary)
        try:
            os.rename(temporary, folder)  # over an empty folder too
        except OSError as error:
            raise ConfigError(f"{folder}: expected a new or empty folder, got {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return found


def _check_empty(folder: Path) -> None:
    if folder.is_dir():
        if any(folder.iterdir()):
            raise ConfigError(
                f"{folder}: expected a new or empty folder, got one with files in it; name another"
            )
    elif folder.exists() or folder.is_symlink():
        raise ConfigError(f"{folder}: expected a new or empty folder, got a file; name another")


def _write(
    store: Store,
    samples: Iterator[DataSample],
    folder: Path,
    classes: Classes,
    written: Callable[[int], None],
) -> Exported:
    folders = classes.folders()
    images = damaged = 0
    with (folder / LABELS_FILE).open("x", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for some in _batches(samples):
            encoded = store.images([sample.seq for sample in some])
            for sample in some:
                if sample.seq not in encoded:  # deleted or evicted since it was listed
                    continue
                place = Path(_folder(sample, folders))
                try:
                    name = _write_image(folder / place, sample.id, encoded[sample.seq])
                except ImageError:
                    damaged += 1
                    continue
                table.writerow(_row(sample, (place / name).as_posix(), classes))
                images += 1
            written(images)
        file.flush()
        os.fsync(file.fileno())
    return Exported(images, damaged)


def _batches(samples: Iterator[DataSample]) -> Iterator[Sequence[DataSample]]:
    some: list[DataSample] = []
    for sample in samples:
        some.append(sample)
        if len(some) == AT_ONCE:
            yield some
            some = []
    yield some


def _folder(sample: DataSample, folders: Sequence[str]) -> str:
    if sample.teacher is None:
        return UNKNOWN
    return folders[sample.teacher] if sample.teacher < len(folders) else str(sample.teacher)


def _write_image(folder: Path, name: str, encoded: bytes) -> str:
    """Write one image and return the name of its file."""
    kind = image_kind(encoded)
    if kind not in _SUFFIX:
        encoded, kind = encode_image(decode_image(encoded), CodecConfig(codec="png")), "PNG"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}{_SUFFIX[kind]}").write_bytes(encoded)
    return f"{name}{_SUFFIX[kind]}"


def _row(sample: DataSample, file: str, classes: Classes) -> list[object]:
    return [
        sample.id,
        file,
        sample.device,
        _moment(sample.captured_at),
        classes.name(sample.label),
        classes.name(sample.teacher),
        f"{sample.entropy:.6g}",
        sample.version,
        classes.name(sample.truth),
    ]


def _moment(seconds: float) -> str:
    """Return a moment of a device's clock as RFC 3339 has it, or the number of seconds where that cannot be."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:.16g}"
