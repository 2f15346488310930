"""What all attacks share: how a variant is run, waited for and reported."""

from __future__ import annotations

import logging
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

__all__ = ["Damage", "Memory", "check", "eventually", "folder_only", "main"]

PATIENCE_SECONDS = 15.0
T = TypeVar("T")


class Damage(Exception):  # noqa: N818 - an outcome, not a fault of the script
    """What an attack achieved."""


def check(well: bool, what: str) -> None:
    """Raise `Damage` unless all is well."""
    if not well:
        raise Damage(what)


def eventually(happens: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until something happens; that it does not is the damage."""
    deadline = time.monotonic() + seconds
    while not happens():
        check(time.monotonic() < deadline, what)
        time.sleep(0.005)


@contextmanager
def folder_only(folder: Path) -> Iterator[Path]:
    """Yield the folder: the target of attacks whose variants make their own."""
    yield folder


class Memory:
    """How much the most memory that this process has ever had grows."""

    def __init__(self) -> None:
        self._before = self._most()

    @staticmethod
    def _most() -> float:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20

    def stays_below(self, mebibytes: float) -> None:
        """Raise `Damage` when it has grown by more than that."""
        grown = self._most() - self._before
        check(grown < mebibytes, f"{grown:.0f} MiB of memory were taken, {mebibytes:g} are enough")


def main(
    variants: Mapping[str, Callable[[T], None]],
    target: Callable[[Path], AbstractContextManager[T]],
    *,
    shared: bool = False,
) -> int:
    """Attack a target, a fresh one for each variant unless it is shared, with the variants that the command line names.

    Without names these are all. Returned is the exit status: 0 if all were refused.
    """
    logging.disable(logging.CRITICAL)  # the parts under attack warn, as they should
    unknown = set(sys.argv[1:]) - set(variants)
    if unknown:
        print(f"expected some of {', '.join(variants)}; got {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    names = sys.argv[1:] or list(variants)
    groups = [names] if shared else [[name] for name in names]
    refused = True
    for group in groups:
        with tempfile.TemporaryDirectory() as folder, target(Path(folder)) as attacked:
            for name in group:
                outcome = _outcome(partial(variants[name], attacked))
                refused = refused and outcome == "REFUSED"
                print(f"{name:32s} {outcome}", flush=True)
    return 0 if refused else 1


def _outcome(attack: Callable[[], None]) -> str:
    try:
        attack()
    except Damage as damage:
        said = str(damage)
    except Exception as error:  # whatever else goes wrong under an attack is damage, too
        said = f"{type(error).__name__}: {error}"
    else:
        return "REFUSED"
    return f"DAMAGE: {' '.join(said.split())[:300]}"
