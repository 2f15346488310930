from __future__ import annotations

import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from edge_support import CLASSES, Cloud, images, make_update, norm_state, reference
from PIL import Image

from cema.edge.agent import EdgeAgent
from cema.edge.config import EdgeConfig
from cema.edge.lines import as_text
from cema.edge.program import run
from cema.errors import ConfigError, ImageError
from cema.formats.bundle import Bundle

Make = Callable[..., EdgeConfig]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for i, image in enumerate(images(5)):
        Image.fromarray(image).save(folder / f"{i}.png")
    Image.fromarray(images(1, 9)[0, :, :, 0]).save(folder / "sub" / "grey.png")
    (folder / "2a.png").write_bytes(b"not an image")
    (folder / "2b.jpg").write_bytes((folder / "1.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("no image, and none by name")
    return folder


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """More images than a run of the tests could see: what ends such a run is what the test does."""
    np.save(tmp_path / "many.npy", images(5000))
    return tmp_path / "many.npy"


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_folder_is_predicted_in_order_and_bad_files_are_reported(make_config: Make, folder: Path) -> None:
    out = io.StringIO()
    assert run(make_config(), folder, batch=2, out=out) == 0
    events = lines(out.getvalue())
    assert all(event["time"] > 1e9 for event in events)
    assert (events[0]["event"], events[0]["images"], events[0]["version"]) == ("started", 8, 0)
    errors = [event for event in events if event["event"] == "error"]
    assert [Path(event["file"]).name for event in errors] == ["2a.png", "2b.jpg"]
    assert all(event["message"] for event in errors)
    predictions = [event for event in events if event["event"] == "prediction"]
    assert [event["index"] for event in predictions] == [0, 2, 6], (
        "files that cannot be read keep their places"
    )
    assert [event["indices"] for event in predictions] == [[0, 1], [2, 5], [6, 7]]
    assert [event["index"] for event in errors] == [3, 4]
    assert [Path(file).name for event in predictions for file in event["files"]] == [
        *("0.png", "1.png", "2.png", "3.png", "4.png", "grey.png")
    ]
    assert events[0]["passed_over"] == {".txt": 1}
    expected = reference(norm_state(), images(5)).argmax(1).tolist()
    assert [label for event in predictions for label in event["labels"]][:5] == expected
    for event in predictions:
        assert len(event["entropy"]) == len(event["selected"]) == len(event["labels"]) == 2
        assert all(1 / CLASSES <= p <= 1 for p in event["probabilities"])
        assert "class_names" not in event, "this bundle has none"
        assert event["version"] == 0
        assert event["seconds"] > 0
    last = events[-1]
    assert (last["event"], last["reason"], last["images"], last["predicted"]) == ("finished", "end", 6, 6)
    assert last["selected"] == last["spooled"], "everything selected is durable when it has finished"


def test_each_prediction_says_file_class_and_probability(
    make_config: Make, folder: Path, bundle: Bundle, tmp_path: Path
) -> None:
    names = tuple(f"kind {number}" for number in range(CLASSES))
    shutil.copytree(bundle.path, tmp_path / "named")
    manifest = json.loads((tmp_path / "named" / "manifest.json").read_text())
    (tmp_path / "named" / "manifest.json").write_text(json.dumps({**manifest, "labels": names}))
    out = io.StringIO()
    assert run(make_config(bundle=str(tmp_path / "named")), folder, batch=1, out=out) == 0
    predictions = [event for event in lines(out.getvalue()) if event["event"] == "prediction"]
    assert [event["files"] for event in predictions[:2]] == [[str(folder / "0.png")], [str(folder / "1.png")]]
    logits = reference(norm_state(), images(5)).astype(np.float64)
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(
        [event["probabilities"][0] for event in predictions[:5]], expected.max(1), rtol=1e-3
    )
    for event in predictions:
        assert event["class_names"] == [names[event["labels"][0]]]


def test_names_that_cannot_be_written_cost_nothing(make_config: Make, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xe9"))
    bad = folder / os.fsdecode(b"bad_\xe9.png")
    try:
        folder.mkdir()
        bad.write_bytes(b"no image")
        (folder / os.fsdecode(b"notes.\xe9")).write_bytes(b"none by name")
    except OSError:
        pytest.skip("this file system has no such names")
    for name in ("a.png", "z_\N{CJK UNIFIED IDEOGRAPH-732B}.png"):
        Image.fromarray(images(1)[0]).save(folder / name)
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, "ascii") as out:
        assert run(make_config(), folder, batch=1, out=out) == 0
        events = lines(raw.getvalue().decode("ascii"))
    assert events[0]["source"].endswith(r"/d\udce9")
    assert events[0]["passed_over"] == {r".\udce9": 1}
    (error,) = [event for event in events if event["event"] == "error"]
    assert error["file"].endswith(r"bad_\udce9.png")
    predicted = [event["files"][0] for event in events if event["event"] == "prediction"]
    assert [name.rpartition("/")[2] for name in predicted] == [
        "a.png",
        "z_\N{CJK UNIFIED IDEOGRAPH-732B}.png",
    ]


def test_what_only_accompanies_pictures_is_not_predicted(make_config: Make, tmp_path: Path) -> None:
    picture = Image.fromarray(images(1)[0])
    for name in ("a.jfif", ".thumbnails/a.png", "@eaDir/a.jpg/THUMB_M.jpg", "__MACOSX/b.jpg", "._a.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "in" / name, "JPEG")
    (tmp_path / "in" / "b.heic").write_bytes(b"x")
    out = io.StringIO()
    assert run(make_config(), tmp_path / "in", out=out) == 0
    events = lines(out.getvalue())
    assert (events[0]["images"], events[0]["passed_over"], events[-1]["images"]) == (1, {".heic": 1}, 1)
    assert "error" not in {event["event"] for event in events}
    (tmp_path / "in" / "a.jfif").unlink()
    with pytest.raises(ImageError, match=r"found none; passed over: 1 \.heic"):
        run(make_config(), tmp_path / "in", out=io.StringIO())


def test_an_array_is_predicted_with_rate_and_linger_until_everything_is_delivered(
    make_config: Make, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", images(120))
    cloud.publish(make_update(bundle, key, 4))
    out = io.StringIO()
    assert run(make_config(cloud), tmp_path / "x.npy", rate=60, batch=9, linger=30, out=out) == 0
    events = lines(out.getvalue())
    (swap,) = [event for event in events if event["event"] == "swap"]
    assert (swap["version"], swap["previous"], len(swap["digest"])) == (4, 0, 64)
    assert "status" in {event["event"] for event in events}
    assert sum(len(event["labels"]) for event in events if event["event"] == "prediction") == 120
    assert events[-1]["version"] == 4
    assert events[-1]["uploaded"] == events[-1]["selected"] == len(cloud.stored)
    sent = [event for event in events if event["event"] == "uploaded"]
    moments = {event["captured_at"] for event in events if event["event"] == "prediction"}
    assert {moment for event in sent for moment in event["captured_at"]} <= moments
    assert sum(sum(event["bytes"]) for event in sent) == events[-1]["bytes_up"]
    assert swap["bytes"] == events[-1]["bytes_down"] > 0


def test_a_run_whose_cloud_is_away_says_why_it_waits(make_config: Make, cloud: Cloud, folder: Path) -> None:
    cloud.close()
    out, text = io.StringIO(), io.StringIO()
    assert run(make_config(cloud), folder, linger=0.5, out=out) == 0
    (waiting,) = [event for event in lines(out.getvalue()) if event["event"] == "waiting"]
    assert 0 <= waiting["seconds"] <= 0.5
    assert run(make_config(cloud), folder, linger=0.5, out=text, form=as_text()) == 0
    told = text.getvalue().splitlines()
    assert any(line.startswith("waiting for uploads, ") for line in told)
    assert any("wait to be sent" in line for line in told if line.startswith("finished"))
    assert len([line for line in told if line.startswith("error: uploader")]) <= 1, (
        "once, not again at the end"
    )


def test_a_source_that_is_none_is_refused(make_config: Make, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="found none"):
        run(make_config(), tmp_path, out=io.StringIO())
    np.save(tmp_path / "array.npy", images(1))
    with pytest.raises(ConfigError, match="leave out --follow"):
        run(make_config(), tmp_path / "array.npy", follow=True, out=io.StringIO())
    with pytest.raises(ImageError, match="no such file or folder"):
        run(make_config(), tmp_path / "nowhere", out=io.StringIO())
    np.save(tmp_path / "float.npy", np.zeros((2, 3, 3, 3)))
    with pytest.raises(ImageError, match="uint8"):
        run(make_config(), tmp_path / "float.npy", out=io.StringIO())
    (tmp_path / "bad.npy").write_bytes(b"nothing")
    with pytest.raises(ImageError, match="cannot be read"):
        run(make_config(), tmp_path / "bad.npy", out=io.StringIO())


@pytest.mark.parametrize(
    ("name", "value"),
    [("rate", 0.0), ("rate", math.nan), ("batch", 0), ("linger", -1.0), ("linger", math.nan)],
)
def test_a_number_that_makes_no_sense_is_refused(
    make_config: Make, tmp_path: Path, name: str, value: Any
) -> None:
    with pytest.raises(ConfigError, match=f"{name}: expected"):
        run(make_config(), tmp_path, out=io.StringIO(), **{name: value})


@pytest.mark.parametrize(
    ("state", "arguments", "expected"),
    [
        ('"s"', ["--rate", "0"], "rate: expected"),
        ('"s"', ["--linger", "-1"], "linger: expected"),
        ('"images/0.png/s"', [], "state: the folder"),
        ('"images/0.png"', [], "state: the folder"),
        ('"/proc/nowhere"', [], "state: the folder"),
        ('"a\\u0000b"', [], "CONFIG: 'a\\x00b' has a control character (at key `state`)"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(
    bundle: Bundle, folder: Path, tmp_path: Path, *, state: str, arguments: list[str], expected: str
) -> None:
    config = tmp_path / "edge.toml"
    config.write_text(f'bundle = "{bundle.path}"\nstate = {state}\n')
    command = ["edge", "run", "--config", str(config), "--source", str(folder), *arguments]
    done = subprocess.run(
        [sys.executable, "-c", "from cema.cli.main import main; main()", *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"cema: {expected}".replace("CONFIG", str(config)))
    assert done.stderr.count("\n") == 1


def test_a_swap_of_the_last_moment_has_its_line(
    make_config: Make,
    cloud: Cloud,
    folder: Path,
    *,
    bundle: Bundle,
    key: Ed25519PrivateKey,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Late(EdgeAgent):
        def close(self) -> None:
            if not self._closed:
                cloud.publish(make_update(bundle, key, 3))
                assert self.wait_for_version(3, 20)
            super().close()

    monkeypatch.setattr("cema.edge.program.EdgeAgent", Late)
    out = io.StringIO()
    assert run(make_config(cloud), folder, out=out) == 0
    events = lines(out.getvalue())
    (swap,) = [event for event in events if event["event"] == "swap"]
    assert (swap["version"], swap["previous"]) == (3, 0)
    assert (events[-1]["event"], events[-1]["version"]) == ("finished", 3)


def test_it_runs_outside_the_main_thread(make_config: Make, folder: Path) -> None:
    out, codes = io.StringIO(), []
    thread = threading.Thread(target=lambda: codes.append(run(make_config(), folder, out=out)))
    thread.start()
    thread.join(30)
    assert codes == [0]


PROGRAM = """
import sys
from pathlib import Path
import msgspec
from cema import EdgeConfig
from cema.edge.lines import as_text
from cema.edge.program import run
config = msgspec.json.decode(sys.argv[1], type=EdgeConfig)
follow = sys.argv[3:] == ["follow"]
sys.exit(run(config, Path(sys.argv[2]), rate=50, batch=3 if follow else 1, linger=60, follow=follow))
"""


def start(config: EdgeConfig, source: Path, *more: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", PROGRAM, msgspec.json.encode(config).decode(), str(source), *more]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(make_config: Make, many: Path, number: signal.Signals) -> None:
    with start(make_config(), many) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while json.loads(process.stdout.readline())["event"] != "prediction":
            pass
        process.send_signal(number)
        events = lines(process.stdout.read())
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
    assert (events[-1]["event"], events[-1]["reason"]) == ("finished", "signal")
    assert events[-1]["selected"] == events[-1]["spooled"] + sum(events[-1]["dropped"].values())


def test_a_reader_that_goes_away_ends_it_cleanly(make_config: Make, many: Path) -> None:
    with start(make_config(), many) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) == 1
        assert process.stderr.read() == ""


def test_a_followed_folder_goes_on_with_new_files_until_a_signal(make_config: Make, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    with start(make_config(), folder, "follow") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        stdout = process.stdout

        def until(name: str) -> dict[str, Any]:
            while True:
                event: dict[str, Any] = json.loads(stdout.readline())
                if event["event"] == name:
                    return event

        assert until("started")["images"] == 0
        for name in ("a.png", "b.png"):
            Image.fromarray(images(1)[0]).save(folder / name)
        first = until("prediction")
        if len(first["files"]) == 1:  # a look between the two
            first["files"] += until("prediction")["files"]
        assert [Path(file).name for file in first["files"]] == ["a.png", "b.png"]
        (folder / "sub").mkdir()
        (folder / "sub" / "bad.png").write_bytes(b"no image")
        assert until("error")["index"] == 2
        Image.fromarray(images(1)[0]).save(folder / "a2.png")
        assert (until("prediction")["indices"]) == [3]
        process.send_signal(signal.SIGTERM)
        events = lines(stdout.read())
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
    assert (events[-1]["event"], events[-1]["reason"], events[-1]["images"]) == ("finished", "signal", 3)


def test_text_ends_with_what_is_still_wrong() -> None:
    text = as_text()
    counts = {
        "predicted": 1,
        "selected": 1,
        "uploaded": 0,
        "queued": 0,
        "spooled": 1,
        "dropped": {},
        "version": 0,
    }
    wrong = counts | {"last_error": "no route to the cloud"}
    assert list(text("status", wrong)) == ["error: no route to the cloud"]
    assert not list(text("status", wrong)), "told once"
    assert (
        list(text("finished", wrong | {"reason": "end", "images": 1}))[-1] == "error: no route to the cloud"
    )
