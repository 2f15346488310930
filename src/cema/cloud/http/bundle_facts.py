"""What the endpoints tell of a cohort's bundle: read once, and again when its manifest is another."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cema.cloud.config import CohortConfig
from cema.errors import CemaError
from cema.formats.bundle import Bundle
from cema.formats.bundle_files import MANIFEST_FILE
from cema.formats.payload import NormState

__all__ = ["BundleFacts", "BundlesRead"]


@dataclass(frozen=True)
class BundleFacts:
    """A bundle that could be read, or None."""

    bundle: Bundle | None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of its classes, in order; None where there are none."""
        return self.bundle.manifest.labels if self.bundle else None

    @property
    def base(self) -> str | None:
        """Its base model."""
        return self.bundle.manifest.base if self.bundle else None

    def name_of(self, label: int | None) -> str | None:
        """Return the name of a class; None where it has none."""
        names = self.class_names
        return names[label] if names and label is not None and 0 <= label < len(names) else None

    @cached_property
    def folded(self) -> NormState | None:
        """The source model's norm state with statistics folded in."""
        return self._read(Bundle.norm_state)

    @cached_property
    def unfolded(self) -> NormState | None:
        """The source model's weights and biases."""
        return self._read(Bundle.affine_state)

    def _read(self, read: Callable[[Bundle], NormState]) -> NormState | None:
        try:
            return None if self.bundle is None else read(self.bundle)
        except (CemaError, OSError):
            return None


class BundlesRead:
    """Reads bundles: to hash a model's graph takes longer than a request should."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[tuple[int, int], BundleFacts]] = {}

    def of(self, cohort: CohortConfig) -> BundleFacts:
        """Return what a cohort's bundle says; nothing of one that cannot be read."""
        path = Path(cohort.bundle)
        try:
            seen = (path / MANIFEST_FILE).stat()
        except OSError:
            return BundleFacts(None)
        mark = seen.st_mtime_ns, seen.st_size
        with self._lock:
            known = self._known.get(cohort.name)
            if known is None or known[0] != mark:
                try:
                    facts = BundleFacts(Bundle.load(path))
                except (CemaError, OSError):
                    facts = BundleFacts(None)
                known = self._known[cohort.name] = mark, facts
        return known[1]
