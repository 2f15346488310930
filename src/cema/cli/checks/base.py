"""A check, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from cema._util.names import first_line
from cema.errors import CemaError

__all__ = ["Check", "NotTried", "Result", "Wrong"]


class NotTried(Exception):  # noqa: N818 - no error: there is nothing to look at
    """A check has nothing to look at; the message says why."""


class Wrong(CemaError):  # noqa: N818 - what a check found
    """What a check found, with a remedy of its own.

    Parameters
    ----------
    detail : str
    remedy : str
    """

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(detail)
        self.remedy = remedy


@dataclass(frozen=True)
class Result:
    """What came of a check.

    Attributes
    ----------
    name : str
    ok : bool or None
        None where it was not tried.
    detail : str
        What was found.
    remedy : str or None
        What to do, where it is not well.
    """

    name: str
    ok: bool | None
    detail: str
    remedy: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class Check:
    """One thing to look at.

    Attributes
    ----------
    name : str
        What it is about.
    look : callable
        Returns what was found; raises `NotTried`, `Wrong`, or whatever says what is not well.
    remedy : str
        What to do, unless `Wrong` says it.
    """

    name: str
    look: Callable[[], str]
    remedy: str

    def carry_out(self) -> Result:
        """Look, and return what came of it."""
        try:
            return Result(self.name, True, self.look())
        except NotTried as reason:
            return Result(self.name, None, str(reason))
        except Wrong as wrong:
            return Result(self.name, False, str(wrong), wrong.remedy)
        except ModuleNotFoundError as error:
            return Result(self.name, False, str(error), "install what is missing: pip install 'cema[all]'")
        except CemaError as error:
            return Result(self.name, False, str(error), self.remedy)
        except Exception as error:  # a model's own code may raise anything, and the other checks are to go on
            return Result(self.name, False, first_line(error), self.remedy)
