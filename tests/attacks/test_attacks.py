"""Every script in `attacks/` is refused, run as a user runs it: from outside the package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ATTACKS = Path(__file__).parents[2] / "attacks"
# Its shortest stream that shows anything takes more than twenty seconds; it is run by hand.
LEFT_OUT = {"poisoned_stream"}
NAMES = sorted(file.stem for file in ATTACKS.glob("[!_]*.py"))


def in_memory() -> str:
    """Return a folder in memory where there is one: no attack is about power loss, and they write a lot."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else ""


@pytest.mark.parametrize("name", [name for name in NAMES if name not in LEFT_OUT])
def test_the_attack_is_refused(name: str, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    environment |= {"OMP_NUM_THREADS": "1", "TMPDIR": in_memory() or str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, ATTACKS / f"{name}.py"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "REFUSED" in ran.stdout, ran.stdout + ran.stderr
    assert "DAMAGE" not in ran.stdout, ran.stdout + ran.stderr
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_attack_is_in_the_table() -> None:
    table = (ATTACKS.parent / "SECURITY.md").read_text()
    assert [name for name in NAMES if f"`python attacks/{name}.py" not in table] == []


def test_damage_is_told(tmp_path: Path) -> None:
    """A variant that does damage, or fails in whatever way, is no success of the script."""
    script = tmp_path / "harm.py"
    script.write_text(
        "import sys\nfrom _parts import check, folder_only, main\n"
        "def harm(folder): check(False, 'it broke')\n"
        "def fail(folder): raise OSError('odd')\n"
        "sys.exit(main({'fine': lambda folder: None, 'harm': harm, 'fail': fail}, folder_only))\n"
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ATTACKS), os.environ.get("PYTHONPATH", "")])
    }
    ran = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    lines = [line.split(maxsplit=1) for line in ran.stdout.splitlines()]
    assert lines == [["fine", "REFUSED"], ["harm", "DAMAGE: it broke"], ["fail", "DAMAGE: OSError: odd"]]
    assert ran.returncode == 1
