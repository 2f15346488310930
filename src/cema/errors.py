"""Every error that CEMA raises on purpose.

::

    CemaError
    +-- ConfigError      a setting, a configuration file or a key file is wrong        (ValueError)
    +-- ImageError       an image has the wrong shape or dtype, or cannot be read      (ValueError)
    +-- LogitsError      logits are not finite or have the wrong shape                 (ValueError)
    +-- FormatError      a bundle, payload, manifest or frame is malformed             (ValueError)
    +-- UpdateRejected   an update must not run on this device; ``.reason`` says why
    +-- KeysRejected     a keys document changes nothing on this device; ``.reason`` says why
    +-- BundleRejected   a new bundle must not run on this device; ``.reason`` says why
    +-- ExportError      a model cannot be turned into a bundle
    +-- ModelError       a model name cannot be resolved                               (ValueError)
    +-- SigningError     a signature cannot be made now: its key is elsewhere, and does not answer
    +-- StoreError       the cloud's store cannot do what was asked
    |   +-- StoreFull    ... because its byte cap is reached
    |   +-- StoreUnavailable  ... now: it is locked, its disk fails, or its server is gone
    +-- SpoolError       the device's spool cannot do what was asked

A message says what was expected, what came, and what to do about it. Those that describe a wrong argument are
``ValueError`` too, so that code which knows nothing of CEMA still catches them.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "REJECTION_REASONS",
    "BundleRejected",
    "CemaError",
    "ConfigError",
    "ExportError",
    "FormatError",
    "ImageError",
    "KeysRejected",
    "LogitsError",
    "ModelError",
    "SigningError",
    "SpoolError",
    "StoreError",
    "StoreFull",
    "StoreUnavailable",
    "UpdateRejected",
]

REJECTION_REASONS: Final = frozenset(
    {
        "bad_signature",
        "expired",
        "golden_mismatch",
        "malformed",
        "old",
        "payload_mismatch",
        "returned",
        "revoked_key",
        "unknown_key",
        "unsigned",
        "wrong_base",
        "wrong_cohort",
    }
)
"""The closed set of reasons an update is rejected for; devices count rejections by these words."""


class CemaError(Exception):
    """The root of every error in this tree."""


class ConfigError(CemaError, ValueError):
    """A setting, a configuration file or a key file is missing, unreadable or wrong."""


class ImageError(CemaError, ValueError):
    """An image has the wrong shape or dtype, or its bytes cannot be decoded."""


class LogitsError(CemaError, ValueError):
    """Logits (or entropies) are not finite or have the wrong shape."""


class FormatError(CemaError, ValueError):
    """A bundle, payload, manifest or frame does not follow its format."""


class UpdateRejected(CemaError):  # noqa: N818 - a verdict, and the name the protocol's documents use
    """An update was refused; the model that was running goes on running.

    Parameters
    ----------
    reason : str
        One of `REJECTION_REASONS`: stable, and meant for counting.
    message : str, optional
        What exactly was wrong and what to do, for people.

    Raises
    ------
    ValueError
        If `reason` is not one of `REJECTION_REASONS`.

    Examples
    --------
    >>> UpdateRejected("old", "version 3 is not newer than 5").reason
    'old'
    """

    def __init__(self, reason: str, message: str | None = None) -> None:
        if reason not in REJECTION_REASONS:
            raise ValueError(f"unknown rejection reason {reason!r}: use one of {sorted(REJECTION_REASONS)}")
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        """Return the reason and, where there is one, the explanation."""
        return f"update rejected ({self.reason})" + (f": {self.message}" if self.message else "")


class KeysRejected(CemaError):  # noqa: N818 - a verdict, as `UpdateRejected`
    """A keys document was refused; the keys that were trusted before are trusted still.

    Parameters
    ----------
    reason : str
        One of those of `UpdateRejected`.
    message : str
        What exactly was wrong, for people.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        """Return the reason and the explanation."""
        return f"keys rejected ({self.reason}): {self.message}"


class BundleRejected(CemaError):  # noqa: N818 - a verdict, as `UpdateRejected`
    """A new bundle was refused; the one that was serving goes on serving.

    Parameters
    ----------
    reason : str
        One of docs/protocol.md, section 6.2: stable, and meant for counting.
    message : str
        What exactly was wrong, for people.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        """Return the reason and the explanation."""
        return f"bundle rejected ({self.reason}): {self.message}"


class ExportError(CemaError):
    """A model cannot be exported, or what was exported does not match it."""


class ModelError(CemaError, ValueError):
    """A model name cannot be resolved; the message names the package to install."""


class SigningError(CemaError):
    """A signature cannot be made now; nothing was signed, and a later try may succeed."""


class StoreError(CemaError):
    """The cloud's store cannot do what was asked of it."""


class StoreFull(StoreError):  # noqa: N818 - a state, not a fault
    """The store has reached its byte cap; the sender should try again later."""


class StoreUnavailable(StoreError):  # noqa: N818 - a state, not a fault
    """The store cannot be used now: locked for too long, closed, its disk fails or its server is gone.

    Nothing was changed, and the same call may succeed later.
    """


class SpoolError(CemaError):
    """The device's spool cannot do what was asked of it."""
