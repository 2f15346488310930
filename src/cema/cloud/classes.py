"""The classes of a cohort as people name them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cema._util.names import did_you_mean
from cema.cloud.config import CohortConfig
from cema.errors import CemaError, ConfigError
from cema.formats.bundle import Bundle

__all__ = ["Classes"]

_NO_FOLDER = re.compile(r"[^\w.+-]+")


@dataclass(frozen=True)
class Classes:
    """The classes of a cohort.

    Attributes
    ----------
    names : tuple of str or None
        Their names in order, where the bundle has them.
    count : int or None
        How many there are; None where the bundle cannot be read.

    Examples
    --------
    >>> classes = Classes(("cat", "dog / wolf"), 2)
    >>> classes.index("cat"), classes.index("1"), classes.name(1), classes.folders()
    (0, 1, 'dog / wolf', ('cat', 'dog_wolf'))
    """

    names: tuple[str, ...] | None = None
    count: int | None = None

    @classmethod
    def of(cls, cohort: CohortConfig) -> Classes:
        """Read the classes of a cohort from its bundle; without one that can be read, a class is a number."""
        try:
            manifest = Bundle.load(Path(cohort.bundle)).manifest
        except (CemaError, OSError):
            return cls()
        return cls(manifest.labels, manifest.classes)

    def index(self, text: str) -> int:
        """Return the number of a class that is written by its name or, where no class is called that, its number.

        Raises
        ------
        ConfigError
            There is no such class.
        """
        text = text.strip()
        if self.names and text in self.names:
            return self.names.index(text)
        last = "" if self.count is None else f" to {self.count - 1}"
        if text.isdecimal() and (self.count is None or int(text) < self.count):
            return int(text)
        named = (
            f"a class's name or its number, 0{last}"
            if self.names
            else f"a class's number, 0{last or ' or more'}"
        )
        raise ConfigError(f"expected {named}, got {text!r}{did_you_mean(text, self.names or ())}")

    def name(self, index: int | None) -> str:
        """Return the name of a class, or its number where it has none; empty for None."""
        if index is None:
            return ""
        return self.names[index] if self.names and 0 <= index < len(self.names) else str(index)

    def folders(self) -> tuple[str, ...]:
        """Return a name for a folder of each class that has a name, no two alike."""
        found: list[str] = []
        for index, name in enumerate(self.names or ()):
            folder = _NO_FOLDER.sub("_", name).strip("_.")
            taken = not folder or folder.lower() in {other.lower() for other in found}
            found.append(f"{folder or 'class'}-{index}" if taken else folder)
        return tuple(found)
