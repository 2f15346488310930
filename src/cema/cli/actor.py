"""Who types the commands."""

from __future__ import annotations

import os
import pwd

__all__ = ["command_line_actor"]


def command_line_actor() -> str:
    """Return who runs this process, as a store's record of acts has it: ``os:`` and the user's name, or number."""
    user = os.getuid()
    try:
        return f"os:{pwd.getpwuid(user).pw_name}"
    except KeyError:  # a container may run as a number that nobody has
        return f"os:{user}"
