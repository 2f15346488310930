"""The files of the bundles that devices fetch: in the data folder, each under its digest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from cema._util.files import sync_folder, unfinished
from cema.errors import StoreError
from cema.formats.bundle import Bundle
from cema.formats.bundle_files import check_digest
from cema.formats.bundle_notice import NoticeFile

__all__ = ["BundleFolder"]


class BundleFolder:
    """Files by digest. A file that is there is whole.

    Parameters
    ----------
    data : Path
        The cloud's data folder.
    """

    def __init__(self, data: Path) -> None:
        self.path = data / "bundles"

    def file(self, digest: str) -> Path:
        """Return where a file is, or would be."""
        return self.path / digest

    def missing(self, files: Iterable[NoticeFile]) -> list[str]:
        """Return the names of those files that are not there."""
        return [file.name for file in files if not self.file(file.sha256).is_file()]

    def put(self, bundle: Bundle, files: Iterable[NoticeFile]) -> None:
        """Copy files of a bundle, durably; those that are there stay.

        Raises
        ------
        FormatError
            The bundle has another file of that name by now.
        StoreError
            The folder cannot be written.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for file in files:
                target = self.file(file.sha256)
                if not target.is_file():
                    _copy(bundle.path / file.name, target, file.sha256)
            sync_folder(self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            raise StoreError(
                f"the bundle cannot be copied to {self.path}: {error}; check the disk's space and the folder's "
                "permissions"
            ) from error

    def keep_only(self, digests: Iterable[str]) -> None:
        """Remove all other files; what cannot be removed is in nobody's way."""
        keep = set(digests)
        with suppress(OSError):
            for file in self.path.iterdir():
                if file.name not in keep:
                    file.unlink()


def _copy(source: Path, target: Path, digest: str) -> None:
    with unfinished(target) as temporary:
        shutil.copyfile(source, temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        check_digest(temporary, digest)
        os.replace(temporary, target)
