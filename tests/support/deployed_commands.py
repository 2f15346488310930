"""Commands that the files of `deploy/` start."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

__all__ = ["check_options"]


def check_options(command: Sequence[str]) -> None:
    """Fail unless a subcommand of `cema` has all the options that it is given, one at least.

    Parameters
    ----------
    command : sequence of str
        Without the program: group, command, options.
    """
    told = subprocess.run(
        [sys.executable, "-m", "cema", *command[:2], "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    options = [argument for argument in command[2:] if argument.startswith("--")]
    assert options, f"expected options behind {command[:2]}"
    for option in options:
        assert option in told, f"{option} is no option of {command[:2]}"
