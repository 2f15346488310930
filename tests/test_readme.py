"""The README's example is run as it stands, against a cloud configured as it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np

README = Path(__file__).parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    """Return the README's fenced blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target


def test_nothing_was_left_to_fill_in() -> None:
    assert "PLACEHOLDER" not in README.read_text()


def test_the_example_runs_as_it_is_written(tmp_path: Path) -> None:
    cloud, edge = blocks("toml")
    (code,) = blocks("python")
    build = textwrap.dedent("""
        import torch
        from cema import Model, Preprocessing

        def build():
            torch.manual_seed(0)
            net = torch.nn.Sequential(
                torch.nn.Conv2d(3, 16, 3, 2), torch.nn.BatchNorm2d(16), torch.nn.ReLU(),
                torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 5),
            ).eval()
            pixels = Preprocessing(height=64, width=64, channels=3, mean=(127.5,) * 3, std=(127.5,) * 3)
            return Model(name="mine", module=net, preprocessing=pixels, classes=5)

        build_strong = build
        """)
    (tmp_path / "mine.py").write_text(build)
    (tmp_path / "cloud.toml").write_text(cloud)
    (tmp_path / "edge.toml").write_text(edge)
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (3, 80, 70, 3), np.uint8))
    (tmp_path / "example.py").write_text("import numpy\nimages = numpy.load('images.npy')\n" + code)

    def run(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("-m", "cema", "keys", "new", "keys/signing.key")
    add = "-m cema device add camera-1 --config cloud.toml --cohort yard"
    (tmp_path / "camera-1.token").write_text(run(*add.split()))
    printed = run("example.py")
    assert re.search(r"\[\d \d \d\] \[.*\] 0", printed)
    assert "camera-1" in run(*["-m", "cema", "device", "list", "--config", "cloud.toml"])
    run(*["-m", "cema", "device", "revoke", "camera-1", "--config", "cloud.toml"])
