"""The container files: linted, and each thing that they name is there. They are built where there is an engine."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from deployed_commands import check_options
from tools import tool

ROOT = Path(__file__).parents[2]
FILES = {name: ROOT / "deploy" / name / "Containerfile" for name in ("cloud", "edge")}


def instructions(path: Path) -> list[tuple[str, str]]:
    """Return the instructions of a container file and their arguments, lines that go on put together."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = (line.split(None, 1) for line in text.splitlines() if line.strip())
    return [(name, " ".join(arguments.split())) for name, arguments in lines]


@pytest.fixture(params=FILES)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def test_the_linter_has_nothing_to_say(name: str) -> None:
    command = [tool("hadolint"), "--no-color", "--failure-threshold", "style", str(FILES[name])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_is_copied_is_there(name: str) -> None:
    copied = [arguments.split()[:-1] for kind, arguments in instructions(FILES[name]) if kind == "COPY"]
    ours = [source for sources in copied if not sources[0].startswith("--from=") for source in sources]
    assert {"pyproject.toml", "constraints.txt", "src"} <= set(ours)
    for source in ours:
        assert (ROOT / source).exists(), source
    # What pyproject.toml reads when the package is built.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for pattern in (project["readme"], *project["license-files"]):
        read = list(ROOT.glob(pattern))
        assert read, pattern
        for path in read:
            assert any(path.is_relative_to(ROOT / source) for source in ours), path


def test_what_is_installed_is_an_extra_of_the_package_under_the_constraints(name: str) -> None:
    (command,) = [
        arguments for kind, arguments in instructions(FILES[name]) if "pip" in arguments and kind == "RUN"
    ]
    asked = re.findall(r"'\.\[([a-z,]+)\]'", command)
    assert asked == [name]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(asked) <= extras.keys()
    assert "--constraint constraints.txt" in command


def test_the_last_stage_has_no_tools_to_build_and_no_root(name: str) -> None:
    found = instructions(FILES[name])
    last = max(i for i, (kind, _) in enumerate(found) if kind == "FROM")
    stage = found[last + 1 :]
    assert not [
        arguments for kind, arguments in stage if kind == "RUN" and re.search(r"\bpip\b|apt", arguments)
    ]
    assert ("USER", "10001:10001") in stage
    assert stage.index(("USER", "10001:10001")) < min(
        i for i, (kind, _) in enumerate(stage) if kind == "ENTRYPOINT"
    )
    python = {arguments.split()[0] for kind, arguments in found if kind == "FROM"}
    assert len(python) == 1, "both stages have the same Python: the environment is copied"
    (version,) = re.findall(r"python:(\d+\.\d+)", python.pop())
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    assert f"Programming Language :: Python :: {version}" in classifiers


def test_what_the_container_runs_is_a_command_with_these_options(name: str) -> None:
    found = dict(instructions(FILES[name]))
    assert json.loads(found["ENTRYPOINT"]) == ["cema"]
    command = json.loads(found["CMD"])
    assert command[0] == name
    check_options(command)


def test_the_health_check_of_the_cloud_asks_whether_it_responds() -> None:
    found = dict(instructions(FILES["cloud"]))
    assert dict(instructions(FILES["edge"]))["HEALTHCHECK"] == "NONE"
    check = json.loads(found["HEALTHCHECK"].partition("CMD ")[2])
    assert check[:2] == ["python", "-c"]
    (url,) = re.findall(r"http://127.0.0.1:(\d+)/livez", check[2])
    assert url == found["EXPOSE"]
    failed = subprocess.run(
        [sys.executable, "-c", check[2].replace(url, "1")], capture_output=True, check=False, timeout=60
    )
    assert failed.returncode != 0


@pytest.mark.parametrize("container", FILES)
def test_they_can_be_built(container: str) -> None:
    """An engine is not among the tools that continuous integration must have."""
    engine = next(filter(None, map(shutil.which, ("podman", "docker", "buildah"))), None)
    reason = "no container engine (podman, docker or buildah)"
    if engine is not None:
        asked = subprocess.run([engine, "info"], capture_output=True, text=True, check=False, timeout=60)
        if asked.returncode:
            engine, reason = None, f"{engine} does not work here: {asked.stderr.strip()[:200]}"
    if engine is None:
        pytest.skip(reason)
    command = f"{engine} build --file deploy/{container}/Containerfile ."
    done = subprocess.run(
        shlex.split(command), cwd=ROOT, capture_output=True, text=True, check=False, timeout=1800
    )
    assert done.returncode == 0, done.stderr[-2000:]
