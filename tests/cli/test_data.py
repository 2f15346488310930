"""`cema data`: what is printed, written and refused."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cloud_process import PATIENCE
from cloud_toml import CLOUD
from PIL import Image
from typer.testing import CliRunner

from cema.cli.app import app
from cema.cloud.config import CloudConfig
from cema.cloud.store.audits import audits_of
from cema.cloud.store.data import TeacherLabel
from cema.cloud.store.sqlite import SqliteStore
from cema.errors import CemaError, ConfigError
from cema.formats.image import CodecConfig, encode_image
from cema.formats.sample import Sample, sample_id

DAY = 86_400.0


def sample(number: int) -> Sample:
    """A real image; every third one is raw, JPEG or PNG."""
    image = np.random.default_rng(number).integers(0, 256, (12, 10, 3), np.uint8)
    codec: Any = ("raw", "jpeg", "png")[number % 3]
    encoded = encode_image(image, CodecConfig(codec=codec))
    return Sample(
        id=sample_id(encoded),
        image=encoded,
        entropy=0.5,
        label=number % 4,
        version=7,
        captured_at=DAY * number,
    )


SAMPLES = [sample(number) for number in range(9)]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "cloud.toml"
    path.write_text(CLOUD)
    with closing(CloudConfig.load(path).open_store()) as store:
        assert isinstance(store, SqliteStore)
        store.open_cohort("yard", base="b")
        for device, numbers, now in (("cam-1", range(6), DAY), ("cam-2", range(6, 9), 3 * DAY)):
            store.put("yard", [SAMPLES[i] for i in numbers], device=device, now=now, max_backlog=100)
        seqs = store.sequence("yard", after=0, limit=9)
        epoch = store.claim("yard").epoch
        taught = [TeacherLabel(seq, 9 if i == 0 else i % 3) for i, seq in enumerate(seqs[:6])]
        store.commit_step("yard", seqs[5], b"", epoch=epoch, now=1.0, taught=taught)
    return path


def run(*arguments: str, config: Path, answer: str | None = None) -> Any:
    done = CliRunner().invoke(
        app, ["data", *arguments, "--config", str(config)], env={"COLUMNS": "180"}, input=answer
    )
    if isinstance(done.exception, CemaError):
        raise done.exception
    return done


def data(*arguments: str, config: Path) -> str:
    done = run(*arguments, config=config)
    assert done.exit_code == 0, done.output
    return str(done.stdout)


def read(*arguments: str, config: Path) -> Any:
    return json.loads(data(*arguments, "--json", config=config))


def test_samples_are_counted_by_device_and_class(config: Path) -> None:
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in data("list", config=config).splitlines()
    ]
    found = [row[:5] for row in rows if row and row[0].startswith("cam")]
    assert ["cam-1", "0", "9", "", "1"] in found
    assert ["cam-2", "2", "", "", "1"] in found
    listed = read("list", config=config)
    assert (listed["samples"], listed["bytes"]) == (9, sum(len(s.image) for s in SAMPLES))
    assert read("list", "--device", "cam-2", config=config)["samples"] == 3
    assert read("list", "--class", "9", config=config)["samples"] == 1
    assert read("list", "--from", "1970-01-03", config=config)["samples"] == 3
    assert read("list", "--to", "1970-01-03T00:00:00+00:00", config=config)["samples"] == 6
    assert read("list", "--to", str(3 * DAY), config=config)["samples"] == 6
    for arguments, about in ((("--class", "cat"), "class"), (("--from", "yesterday"), "--from")):
        with pytest.raises(ConfigError, match=about):
            read("list", *arguments, config=config)


def test_one_sample_is_told(config: Path) -> None:
    told = data("show", SAMPLES[1].id, config=config)
    assert "device: cam-1" in told
    assert "class by the foundation model: 1\n" in told
    assert "waits for the worker: no" in told
    found = read("show", SAMPLES[8].id.upper(), config=config)
    assert (found["teacher"], found["truth"], found["waiting"], found["version"]) == (None, None, True, 7)
    with pytest.raises(ConfigError, match="expected the id"):
        data("show", "0" * 64, config=config)


def test_an_export_has_a_folder_for_each_label_of_the_foundation_model_and_a_table(
    config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert read("export", str(out), config=config) == {"folder": str(out), "images": 9, "damaged": 0}
    assert sorted(path.name for path in out.iterdir()) == ["0", "1", "2", "9", "_not_yet_known", "labels.csv"]
    with (out / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [s.id for s in SAMPLES]
    for number, row in enumerate(rows):
        path, image = out / row["file"], np.random.default_rng(number).integers(0, 256, (12, 10, 3), np.uint8)
        assert path.suffix == (".png", ".jpg", ".png")[number % 3]
        if path.suffix == ".png":
            np.testing.assert_array_equal(np.asarray(Image.open(path)), image)
        else:
            assert path.read_bytes() == SAMPLES[number].image
        assert (row["device"], row["true_label"]) == ("cam-1" if number < 6 else "cam-2", "")
        assert row["teacher"] == ("" if number >= 6 else "9" if number == 0 else str(number % 3))
    assert rows[1]["captured_at"] == "1970-01-02T00:00:00.000+00:00"
    with closing(CloudConfig.load(config).open_store()) as store:
        (act,) = [one.act for one in audits_of(store).audit(limit=9)]
        assert (act.name, act.detail["images"]) == ("data.export", 9)


def test_an_export_takes_an_empty_folder_and_refuses_others(config: Path, tmp_path: Path) -> None:
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    assert read("export", str(empty), "--device", "cam-2", config=config)["images"] == 3
    full.mkdir()
    (full / "mine").write_text("mine")
    for target in (full, full / "mine", empty):
        with pytest.raises(ConfigError, match="new or empty folder"):
            read("export", str(target), config=config)
    assert (full / "mine").read_text() == "mine"
    assert not list(tmp_path.glob(".*.tmp"))


# An export whose process is killed when it opens its N-th file.
KILLED = """
import os, signal, sys
left = int(sys.argv.pop(1))
from cema.cli.app import app
import cema.cli.data_acts

def count(event, arguments):
    global left
    if event == "open" and ".tmp/" in str(arguments[0]):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
app()
"""


def test_an_export_that_is_killed_leaves_no_folder_under_its_name(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, "5", "data", "export", str(out), "--config", str(config)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not out.exists()
    assert read("export", str(out), config=config)["images"] == 9


def test_damaged_images_are_left_out(config: Path, tmp_path: Path) -> None:
    with closing(CloudConfig.load(config).open_store()) as store:
        bad = b"no image at all"
        broken = Sample(
            id=sample_id(bad), image=bad, entropy=0.1, label=0, version=0, captured_at=float("1e300")
        )
        store.put("yard", [broken], device="cam-3", now=1.0, max_backlog=100)
    done = run("export", str(tmp_path / "out"), config=config)
    assert "9 images" in done.stdout
    assert "1 images are damaged" in done.stderr


def test_a_deletion_is_confirmed_and_gives_a_receipt(config: Path) -> None:
    assert read("delete", "--device", "cam-1", "--dry-run", config=config)["samples"] == 6
    assert "would delete 6 samples" in data("delete", "--device", "cam-1", "--dry-run", config=config)
    refused = run("delete", "--device", "cam-1", config=config, answer="n\n")
    assert refused.exit_code == 1
    assert read("list", config=config)["samples"] == 9
    for arguments in ((), ("--all", "--device", "cam-1")):
        with pytest.raises(ConfigError, match="--all"):
            run("delete", *arguments, "--yes", config=config)
    accepted = run("delete", "--device", "cam-1", "--no-wait", config=config, answer="y\n")
    assert accepted.exit_code == 0
    assert "Delete 6 samples of cohort yard" in accepted.stderr
    assert "The worker has still to forget" in accepted.stdout
    receipt = read("delete", "--all", "--yes", "--no-wait", config=config)
    assert (receipt["samples"], receipt["state"], receipt["filter"]) == (3, "waiting", {})
    first = read("receipts", config=config)[-1]
    assert (first["number"], first["filter"], first["samples"]) == (1, {"device": "cam-1"}, 6)
    assert first["actor"].startswith("os:")
    assert "device cam-1" in data("receipts", "--cohort", "yard", config=config)
    assert read("list", config=config)["samples"] == 0


def test_labels_are_taken_and_what_is_wrong_is_told_line_by_line(config: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    lines = [
        "id,true_label,remark",
        f"{SAMPLES[0].id},1,",
        f"{SAMPLES[1].id.upper()}, 2 ,sure",
        f"{SAMPLES[2].id},,not yet",
        f"{SAMPLES[3].id},cat,",
        "12ab,1,",
        f"{'0' * 64},1,",
        f"{SAMPLES[0].id},3,",
    ]
    table.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    done = run("label", str(table), "--json", config=config)
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert (told["new"], told["changed"], told["same"], told["empty"]) == (2, 0, 0, 1)
    assert [(line["line"], line["error"].split(",")[0]) for line in told["refused"]] == [
        (5, "expected a class's number"),
        (6, "expected an id of 64 hexadecimal digits"),
        (7, "no such sample was stored in this cohort"),
        (8, "line 2 gives the sample another class"),
    ]
    assert read("show", SAMPLES[1].id, config=config)["truth"] == 2
    again = run("label", str(table), config=config)
    assert "0 new labels, 0 changed, 2 known already; 1 lines without one, 4 refused" in again.stdout
    assert "line 5: " in again.stderr
    table.write_text(f"true_label,id\n3,{SAMPLES[0].id}\n")
    assert read("label", str(table), config=config)["changed"] == 1
    data("delete", "--device", "cam-1", "--yes", "--no-wait", config=config)
    told = json.loads(run("label", str(table), "--json", config=config).stdout)
    assert "was deleted" in told["refused"][0]["error"]


@pytest.mark.parametrize("content", [b"", b"id;true_label\n", b"id\n", b"\xff\xfe\x00"])
def test_a_table_that_is_none_is_refused(config: Path, tmp_path: Path, content: bytes) -> None:
    table = tmp_path / "labels.csv"
    table.write_bytes(content)
    with pytest.raises(ConfigError, match="expected"):
        run("label", str(table), config=config)


def test_the_table_of_an_export_comes_back_as_it_is(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    read("export", str(out), config=config)
    table = out / "labels.csv"
    assert read("label", str(table), config=config)["empty"] == 9
    rows = [line.rstrip(",") for line in table.read_text().splitlines()]
    table.write_text(os.linesep.join([rows[0], *(f"{row},2" for row in rows[1:])]))
    assert read("label", str(table), config=config)["new"] == 9
    other = tmp_path / "other"
    read("export", str(other), config=config)
    assert all(line.endswith(",2") for line in (other / "labels.csv").read_text().splitlines()[1:])
