"""What published sets of corrupted images have in common: no clean images, and not always every corruption."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from cema.data.base import LabelledImages, Progress, check_condition
from cema.errors import ConfigError

__all__ = ["PublishedCorruptions"]


class PublishedCorruptions(ABC):
    """A folder of images that were corrupted by those who published it; see `cema.data.base.Dataset`.

    Attributes
    ----------
    name : str
        What tables call it.
    root : Path
        The folder.
    files : dict of str to Path
        The file or folder of each corruption that is there.
    suffix : str
        What the name of a corruption's file ends in.
    clean_images : str
        What to give to the benchmark for clean images.
    """

    name: str
    root: Path
    files: dict[str, Path]
    suffix: str = ""
    clean_images: str
    logits: tuple[int, ...] | None = None
    cropped = True

    @property
    def corruptions(self) -> tuple[str, ...] | None:
        """The corruptions that are there."""
        return tuple(self.files)

    def clean(self) -> LabelledImages:
        """Refuse: the published files hold corrupted images only.

        Raises
        ------
        ConfigError
            Always.
        """
        raise ConfigError(
            f"{self.root}: {self.name} holds corrupted images only; for clean ones give {self.clean_images}"
        )

    def corrupted(
        self, corruption: str, severity: int, *, processes: int = 1, progress: Progress | None = None
    ) -> LabelledImages:
        """Return the images under a corruption; see `cema.data.base.Dataset.corrupted`."""
        check_condition(corruption, severity)
        if corruption not in self.files:
            raise ConfigError(
                f"{self.root / corruption}{self.suffix}: this part of {self.name} is missing; there are "
                f"{', '.join(self.files)}"
            )
        return self.read(self.files[corruption], severity)

    @abstractmethod
    def read(self, path: Path, severity: int) -> LabelledImages:
        """Return the images of one corruption, which is there, at a severity from 1 to 5.

        Raises
        ------
        ConfigError, ImageError
            If images are missing, or not what they should be.
        """
