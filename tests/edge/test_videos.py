"""Videos, streams and cameras as sources: what is read, what is dropped, and what a break does."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from edge_support import images
from made_videos import Camera, shades, write_video
from PIL import Image

from cema.edge.config import EdgeConfig
from cema.edge.images.address import address_of
from cema.edge.images.base import Picture
from cema.edge.images.opened import open_source
from cema.edge.lines import as_text
from cema.edge.program import run
from cema.errors import ConfigError, ImageError

Make = Callable[..., EdgeConfig]


class Reports(list[tuple[int | None, str]]):
    """What a source told of."""

    def __call__(self, index: int | None, _file: Path | str, error: Exception) -> None:
        self.append((index, str(error)))


@pytest.fixture(params=["http", "rtsp"])
def camera(request: pytest.FixtureRequest) -> Iterator[Camera]:
    camera = Camera(request.param)
    yield camera
    camera.kill()


def read(path: Path, *, every: float = 0.0) -> tuple[list[Picture], Reports]:
    reports = Reports()
    return [p for p in open_source(path, every=every).read(reports) if p is not None], reports


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "mpeg4"), ("a.AVI", "mjpeg"), ("a.mkv", "mpeg4"), ("a.mov", "mjpeg")]
)
def test_every_frame_of_a_video_is_read_in_order(tmp_path: Path, name: str, codec: str) -> None:
    path = write_video(tmp_path / name, shades(25), codec=codec)
    pictures, reports = read(path)
    assert [picture.index for picture in pictures] == list(range(25))
    assert {picture.file for picture in pictures} == {path}
    np.testing.assert_allclose([p.position or 0.0 for p in pictures], np.arange(25) / 10, atol=1e-3)
    for picture in pictures:
        assert (picture.pixels.shape, picture.pixels.dtype) == ((48, 64, 3), np.uint8)
        assert abs(picture.pixels.mean() - 8 * picture.index) < 4
    assert not reports
    assert len(open_source(path)) == (0 if name.endswith("mkv") else 25), "Matroska does not say"


def test_some_frames_of_a_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", shades(30), rate=30)
    pictures, _ = read(path, every=0.1)
    assert [picture.index for picture in pictures] == list(range(0, 30, 3)), (
        "frames not taken keep their places"
    )
    assert [picture.index for picture in read(path, every=0.25)[0]] == [0, 8, 15, 23]
    assert len(read(path, every=9)[0]) == 1


def test_a_video_is_turned_upright_as_a_phone_says(tmp_path: Path) -> None:
    marked = shades(3)
    for image in marked:
        image[:] = 0
        image[:24, :32] = 255  # top left
    path = write_video(tmp_path / "a.mp4", marked)
    data = path.read_bytes()
    at = data.index(b"tkhd") + 4 + 40  # the matrix of the track: a quarter to the right, as phones write it
    unturned = np.array([0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000], ">u4").tobytes()
    assert data[at : at + 36] == unturned
    turned = np.array([0, 0x10000, 0, 0xFFFF0000, 0, 0, 48 << 16, 0, 0x40000000], ">u4").tobytes()
    path.write_bytes(data[:at] + turned + data[at + 36 :])
    pictures, _ = read(path)
    assert pictures[0].pixels.shape == (64, 48, 3)
    assert pictures[0].pixels[:28, 28:].min() > 200, "what was top left is top right"
    assert pictures[0].pixels[36:].max() < 50


def test_a_video_is_predicted_whole(make_config: Make, tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "a.mp4", [np.asarray(Image.fromarray(i).resize((64, 64))) for i in images(7)]
    )
    out = io.StringIO()
    assert run(make_config(), path, batch=3, out=out) == 0
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    predictions = [event for event in events if event["event"] == "prediction"]
    assert [event["indices"] for event in predictions] == [[0, 1, 2], [3, 4, 5], [6]]
    assert predictions[2]["files"] == [str(path)]
    assert predictions[2]["positions"] == [pytest.approx(0.6)]
    assert all(event["captured_at"] > 1e9 for event in predictions)
    assert "frames_dropped" not in predictions[0]
    assert (events[0]["images"], events[-1]["images"], events[-1]["reason"]) == (7, 7, "end")


@pytest.mark.parametrize(("name", "kept"), [("a.avi", 0.6), ("a.mkv", 0.6), ("a.mp4", 0.6)])
def test_the_end_of_a_video_that_is_cut_off_is_told(
    make_config: Make, tmp_path: Path, name: str, kept: float
) -> None:
    options = {"movflags": "faststart"} if name == "a.mp4" else {}
    path = write_video(
        tmp_path / name, np.random.default_rng(0).integers(0, 255, (60, 48, 64, 3), np.uint8), **options
    )
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    out = io.StringIO()
    assert run(make_config(), path, out=out) == 0
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    (error,) = [event for event in events if event["event"] == "error"]
    assert "cut off" in error["message"] or "cannot be decoded" in error["message"]
    assert 20 < events[-1]["images"] < 50, "what is there is predicted"


@pytest.mark.parametrize("content", [b"", b"no video" * 100, None])
def test_a_file_that_is_no_video_is_one_clear_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.mp4"
    if content is None:  # its index is at its end
        whole = write_video(path, shades(20)).read_bytes()
        path.write_bytes(whole[: whole.rindex(b"moov")])
    else:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.mp4: .*; check that (the file|it) is whole"):
        open_source(path)


def test_a_damaged_frame_keeps_its_place(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", shades(12), codec="mjpeg")
    data = bytearray(path.read_bytes())
    begins = [i for i in range(len(data) - 3) if data[i : i + 3] == b"\xff\xd8\xff"]
    assert len(begins) == 12
    data[begins[4] : begins[5] - 8] = bytes(begins[5] - 8 - begins[4])
    path.write_bytes(data)
    pictures, reports = read(path)
    assert [picture.index for picture in pictures] == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]
    assert abs(int(pictures[4].pixels.mean()) - 40) <= 4
    assert [(index, "cannot be decoded" in told) for index, told in reports] == [(4, True)]


def test_a_stream_that_breaks_is_opened_again(camera: Camera) -> None:
    source, reports = open_source(camera.url), Reports()
    read = source.read(reports)
    first = next(picture for picture in read if picture is not None)
    camera.kill()
    while len(reports) < 2:
        next(read)
    assert all("it is opened again in" in told for _, told in reports)
    camera.start()
    for picture in read:  # what was read before the break may still be there
        if picture is not None and picture.pixels.max() < first.index + 250 and picture.index > first.index:
            break
    read.close()
    assert {index for index, _ in reports} == {None}
    assert {told.partition(": ")[0] for _, told in reports} == {camera.url}


def test_the_newest_frame_is_read_and_the_others_are_counted(camera: Camera) -> None:
    source = open_source(camera.url)
    taken = []
    read = source.read(Reports())
    for picture in read:
        if picture is None:
            continue
        taken.append(picture.index)
        if len(taken) == 5:
            break
        # A slow model: frames come meanwhile. What comes next is the newest of them.
        before = source.dropped or 0
        while (source.dropped or 0) < before + 3:
            time.sleep(0.005)
    read.close()
    assert all(later - earlier >= 4 for earlier, later in pairwise(taken))
    assert source.dropped is not None
    assert source.dropped >= taken[-1] + 1 - len(taken), "every frame was taken or is counted"


def test_some_frames_of_a_stream_are_no_loss(camera: Camera) -> None:
    source = open_source(camera.url, every=0.2)
    read = source.read(Reports())
    taken = []
    while len(taken) < 3:
        picture = next(read)
        if picture is not None:
            taken.append(picture.index)
    read.close()
    assert taken[1] - taken[0] > 5
    assert source.dropped == 0


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_a_password_is_used_and_never_shown(make_config: Make, tmp_path: Path, scheme: str) -> None:
    """A whole run as a process: everything that it writes, also when the camera breaks."""
    camera = Camera(scheme, "Basic " + base64.b64encode(b"admin:s3cret").decode())
    config = make_config()
    lines = [f"bundle = '{config.bundle}'", f"state = '{tmp_path / 'state'}'", "[log]", 'level = "debug"']
    (tmp_path / "edge.toml").write_text("\n".join(lines))
    address = f"{scheme}://admin:s3cret@127.0.0.1:{camera.port}/live?token=pr1vate"
    command = [sys.executable, "-m", "cema", "edge", "run", "--config", str(tmp_path / "edge.toml")]
    arguments = [*command, "--source", address, "--linger", "0"]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout is not None
        seen, events = [], []
        for line in process.stdout:
            seen.append(line)
            events.append(json.loads(line))
            match events[-1]["event"]:
                case "prediction":
                    camera.kill()
                case "error":
                    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0, (tmp_path / "log").read_text()
    written = "".join(seen) + (tmp_path / "log").read_text()
    assert events[0]["source"] == camera.url
    prediction = next(event for event in events if event["event"] == "prediction")
    assert prediction["files"] == [events[0]["source"]]
    assert (events[-1]["reason"], events[-1]["frames_dropped"] >= 0) == ("signal", True)
    for secret in ("s3cret", "pr1vate", "admin"):
        assert secret not in written


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("rtsp://u:p@10.0.0.7:554/main?user=u&pwd=p#p", "rtsp://10.0.0.7:554/main"),
        ("rtsp://u:p@p@camera/main", "rtsp://camera/main"),
        ("rtsp://u:p/w@camera/main", "rtsp://***"),
        ("rtsp://u:p?w@camera/main", "rtsp://***"),
        ("rtsp://u:p#w@camera/main", "rtsp://***"),
        ("rtmp://camera/live", "rtmp://camera/live"),
        ("HTTP://[::1]:80/a", "HTTP://[::1]:80/a"),
        ("camera:12", "camera:12"),
    ],
)
def test_what_is_shown_of_an_address(source: str, name: str) -> None:
    assert address_of(source).name == name


def test_an_address_with_a_password_may_be_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMERA", "rtsp://u:p@camera/main")
    found = address_of("env:CAMERA")
    assert (found.place, found.name) == ("rtsp://u:p@camera/main", "rtsp://camera/main")
    monkeypatch.setenv("CAMERA", "")
    with pytest.raises(ImageError, match="env:CAMERA: expected an address"):
        address_of("env:CAMERA")


def test_a_stream_that_says_nothing_is_given_up_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cema.edge.images.decoding.SILENT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        read = open_source(f"http://127.0.0.1:{silent.getsockname()[1]}/a").read(reports := Reports())
        while len(reports) < 2:
            assert next(read) is None
        read.close()
    assert all("it sent nothing for 0.2 s" in told for _, told in reports)


def test_a_camera_that_is_not_there_is_waited_for(make_config: Make) -> None:
    out, config = io.StringIO(), make_config()
    source = open_source("camera:987")
    reports = Reports()
    read = source.read(reports)
    while len(reports) < 2:
        assert next(read) is None
    read.close()
    assert all(told.startswith("camera:987: cannot be read: ") for _, told in reports)
    with pytest.raises(ConfigError, match="expected a folder to follow, got a camera"):
        run(config, "camera:987", follow=True, out=out)


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="missing: there is no such file or folder; check the path"):
        open_source(tmp_path / "missing")
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ImageError, match=r"a\.txt: expected a folder of images, .* a video file"):
        open_source(tmp_path / "a.txt")
    with pytest.raises(ImageError, match=r"ftp://host/a: expected a URL that begins with one of rtsp"):
        open_source("ftp://user:word@host/a")
    with pytest.raises(ConfigError, match="got a folder; leave out --every"):
        open_source(tmp_path, every=1)
    with pytest.raises(ConfigError, match="expected 0 seconds or more"):
        open_source("camera:0", every=-1)


def test_without_the_package_the_extra_is_named_and_folders_work(make_config: Make, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", shades(2))
    Image.fromarray(images(1)[0]).save(tmp_path / "a.png")
    config = msgspec.json.encode(make_config()).decode()
    code = (
        "import sys, io, pathlib, msgspec; sys.modules['av'] = None\n"
        "from cema.edge.config import EdgeConfig; from cema.edge.program import run\n"
        "from cema.errors import ConfigError\n"
        f"config, folder = msgspec.json.decode({config!r}, type=EdgeConfig), pathlib.Path({str(tmp_path)!r})\n"
        "assert run(config, folder, out=io.StringIO()) == 0\n"
        "for source in (folder / 'a.mp4', 'rtsp://x/y', 'camera:0'):\n"
        "    try:\n"
        "        run(config, source, out=io.StringIO())\n"
        "    except ConfigError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("pip install 'cema[camera]'") == 3


def test_lines_for_people_have_file_class_and_probability(make_config: Make, tmp_path: Path) -> None:
    def lines(source: Path) -> list[str]:
        out = io.StringIO()
        assert run(make_config(), source, batch=2, out=out, form=as_text()) == 0
        return out.getvalue().splitlines()

    (tmp_path / "in").mkdir()
    for i, image in enumerate(images(3)):
        Image.fromarray(image).save(tmp_path / "in" / f"{i}.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"no image")
    told = lines(tmp_path / "in")
    assert told[0].startswith(f"started: {tmp_path / 'in'}, 4 images, model ")
    assert told[-1].startswith("finished (end): 3 images; ")
    per_image = [line for line in told if line.endswith(" %")]
    assert [line.split("  ")[0] for line in per_image] == [
        str(tmp_path / "in" / f"{i}.png") for i in range(3)
    ]
    for line in per_image:
        _, name, probability = line.split("  ")
        assert name.startswith("class ")
        assert 0 < float(probability.removesuffix(" %")) <= 100
    assert len([line for line in told if line.startswith(f"error: {tmp_path / 'in' / 'bad.png'}: ")]) == 1
    video = write_video(tmp_path / "a.mp4", shades(2))
    assert [line.split("  ")[0] for line in lines(video) if line.endswith(" %")] == [
        *(f"{video} 0.00 s", f"{video} 0.10 s")
    ]
    np.save(tmp_path / "a.npy", images(1))
    assert any(line.startswith("row 0  class ") for line in lines(tmp_path / "a.npy"))


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="this system has no terminals")
def test_a_terminal_gets_text_and_a_pipe_json(make_config: Make, tmp_path: Path) -> None:
    config = make_config()
    (tmp_path / "edge.toml").write_text(f"bundle = '{config.bundle}'\nstate = '{tmp_path / 'state'}'\n")
    np.save(tmp_path / "a.npy", images(1))
    command = [sys.executable, "-m", "cema", "edge", "run", "--source", "a.npy"]

    def printed(*arguments: str, terminal: bool) -> str:
        if not terminal:
            return subprocess.run(
                [*command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
            ).stdout
        ours, theirs = os.openpty()
        process = subprocess.Popen([*command, *arguments], cwd=tmp_path, stdout=theirs)
        os.close(theirs)
        text = b""
        with suppress(OSError):  # how a terminal ends on Linux
            while part := os.read(ours, 4096):
                text += part
        os.close(ours)
        assert process.wait(60) == 0
        return text.decode()

    assert json.loads(printed(terminal=False).splitlines()[0])["event"] == "started"
    assert printed(terminal=True).startswith("started: a.npy, ")
    assert json.loads(printed("--lines", "json", terminal=True).splitlines()[0])["event"] == "started"
    assert printed("--lines", "text", terminal=False).startswith("started: a.npy, ")
