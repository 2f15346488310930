"""A command that signs as a key management service would, and can misbehave: ``python signing_command.py KEY MODE``.

MODE may be a file, whose text then is the mode: so that what runs can change while a cloud is up.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from cema.formats.keys import load_private_key


def command(key: Path, mode: str | Path = "well") -> tuple[str, ...]:
    """Return the command and its arguments."""
    return (sys.executable, __file__, str(key), str(mode))


def main(key: str, mode: str) -> int:
    """Sign standard input, or do what the mode says in place of it."""
    if Path(mode).is_file():
        mode = Path(mode).read_text()
    output = sys.stdout.buffer
    if mode == "refuses":
        print("access denied", file=sys.stderr)
        return 3
    if mode == "hangs":
        child = [sys.executable, "-c", "import time; time.sleep(600)"]
        with subprocess.Popen(child) as process:  # which holds standard output open as well
            note(key, os.getpid(), process.pid)
            time.sleep(600)
    if mode == "ignores":  # never reads its input
        output.write(bytes(64))
        return 0
    signature = load_private_key(Path(key)).sign(sys.stdin.buffer.read())
    if mode == "hex":
        signature = signature.hex().encode()
    if mode == "endless":
        while True:
            output.write(signature)
    output.write(signature[:40] if mode == "short" else signature)
    if mode == "fails":
        return 1
    if mode == "lingers":
        note(key, os.getpid())
        output.flush()
        output.close()
        time.sleep(600)
    return 0


def note(key: str, *pids: int) -> None:
    """Write down who will have to be ended."""
    Path(key).with_suffix(".pids").write_text(" ".join(map(str, pids)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
