from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import simplejpeg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from edge_support import CLASSES, COHORT, SIDE, Answer, Cloud, images, make_update, norm_state, reference

from cema.edge.agent import EdgeAgent
from cema.edge.config import CloudLink, EdgeConfig, UploadConfig
from cema.edge.retry import Backoff
from cema.edge.runtime import Active, Runtime
from cema.edge.status import Prediction
from cema.errors import CemaError, ConfigError, FormatError, ImageError, LogitsError, SpoolError
from cema.formats.bundle import Bundle
from cema.formats.image import CodecConfig, decode_image, encode_image
from cema.formats.payload import round_norm_state
from cema.ondevice.selection.config import SelectionConfig
from cema.ondevice.selection.entropy import softmax_entropy
from cema.ondevice.selection.entropy_band import EntropyBand

Make = Callable[..., EdgeConfig]
QUICK = Backoff(base=0.01, cap=0.05, slow=0.05)


def answers(prediction: Prediction, batch: Any, version: int) -> bool:
    state = round_norm_state(norm_state(version)) if version else norm_state()
    return np.allclose(prediction.logits, reference(state, batch), rtol=1e-3, atol=1e-3)


def balance(agent: EdgeAgent) -> tuple[int, int]:
    """What was selected, and what became of it: the two must be equal."""
    s = agent.status()
    return s.selected, s.queued + s.spooled + s.uploaded + sum(s.dropped.values())


def test_from_pixels_to_the_clouds_store(make_config: Make, cloud: Cloud) -> None:
    batch = images(20, 3)
    with EdgeAgent(make_config(cloud)) as agent:
        prediction = agent.predict(batch)
        assert answers(prediction, batch, 0)
        assert prediction.version == 0
        np.testing.assert_array_equal(prediction.labels, prediction.logits.argmax(1))
        np.testing.assert_array_equal(prediction.entropy, softmax_entropy(prediction.logits))
        assert agent.flush(20)
        status = agent.status()
        assert status.predicted == 20
        assert status.selected == status.uploaded == len(cloud.stored) == int(prediction.selected.sum()) > 10
        assert status.bytes_up == sum(len(s.image) for s in cloud.stored.values())
        assert (status.spooled, status.queued, status.last_error, status.cohort) == (0, 0, None, COHORT)
    by_pixels = {decode_image(s.image).tobytes(): s for s in cloud.stored.values()}
    for i in np.flatnonzero(prediction.selected):
        sample = by_pixels[batch[i].tobytes()]  # 12 x 12: encoded without loss
        assert sample.label == prediction.labels[i]
        assert sample.entropy == prediction.entropy[i]


def test_the_selection_is_the_shared_selector(make_config: Make) -> None:
    config = make_config(selection=SelectionConfig(group=8))
    selector = EntropyBand(CLASSES, SelectionConfig(group=8))
    with EdgeAgent(config) as agent:
        for i in range(6):
            prediction = agent.predict(images(7, i))
            np.testing.assert_array_equal(prediction.selected, selector.decide(prediction.entropy))
        assert agent.status().e_max == selector.e_max


def test_without_a_cloud_the_spool_fills(make_config: Make) -> None:
    with EdgeAgent(make_config()) as agent:
        prediction = agent.predict(images(9))
        assert agent.flush(20)
        assert agent.status().spooled == prediction.selected.sum() > 0
        assert agent.status().cohort is None


def test_what_was_spooled_without_a_link_is_delivered_after_a_restart(
    make_config: Make, cloud: Cloud
) -> None:
    with EdgeAgent(make_config()) as agent:
        n = int(agent.predict(images(9)).selected.sum())
    with EdgeAgent(make_config(cloud)) as agent:
        assert agent.flush(20)
        assert len(cloud.stored) == agent.status().uploaded == n
        assert agent.status().predicted == 9, "counts go on over restarts"


def test_closing_leaves_everything_selected_in_the_spool(make_config: Make) -> None:
    agent = EdgeAgent(make_config())
    n = sum(int(agent.predict(images(16, i)).selected.sum()) for i in range(8))
    agent.close()
    agent.close()
    assert agent.status().spooled == n
    with pytest.raises(CemaError, match="closed"):
        agent.predict(images(1))


def test_an_update_is_swapped_in_while_it_predicts(
    make_config: Make, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey
) -> None:
    batch = images(4, 8)
    seen: list[Prediction] = []
    stop = threading.Event()
    with EdgeAgent(make_config(cloud)) as agent:

        def work() -> None:
            while not stop.is_set():
                seen.append(agent.predict(batch))

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for version in (1, 2, 4):
            cloud.publish(make_update(bundle, key, version))
            assert agent.wait_for_version(version, 20)
        assert not agent.wait_for_version(5, 0)
        stop.set()
        for thread in threads:
            thread.join()
        last = agent.predict(batch)
        assert answers(last, batch, 4)
        status = agent.status()
    assert (status.version, status.swaps) == (4, 3)
    assert {p.version for p in seen} <= {0, 1, 2, 4}
    for prediction in seen[:: max(1, len(seen) // 50)]:
        assert answers(prediction, batch, prediction.version), "one version throughout"


def test_a_restart_resumes_version_and_selection(
    make_config: Make, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey
) -> None:
    config = make_config(cloud, selection=SelectionConfig(group=4))
    cloud.publish(make_update(bundle, key, 2))
    with EdgeAgent(config) as agent:
        assert agent.wait_for_version(2, 20)
        for i in range(5):
            agent.predict(images(6, i))
        before = agent.status()
    assert before.e_max != EntropyBand(CLASSES).e_max
    cloud.publish(make_update(bundle, key, 1))
    with EdgeAgent(config) as agent:
        assert agent.status().version == 2
        assert agent.status().e_max == before.e_max
        assert agent._wait(lambda: "old" in agent.status().rejected_updates, 10)
        assert answers(agent.predict(images(3)), images(3), 2)
    with EdgeAgent(msgspec.structs.replace(config, selection=SelectionConfig(group=8), cloud=None)) as agent:
        assert agent.status().e_max == EntropyBand(CLASSES).e_max, "other settings: a fresh selection"
        assert agent.status().version == 2, "without a cloud too"


def test_logits_that_are_not_finite_are_an_error_and_nothing_is_spooled(make_config: Make) -> None:
    with EdgeAgent(make_config()) as agent:
        huge = {name: np.full_like(value, 3e38) for name, value in norm_state().items()}
        infinite = Active(
            Runtime(agent.bundle, agent.bundle.pack_norm(huge))
        )  # though every parameter is finite
        agent._serving = agent._serving._replace(active=infinite)
        with pytest.raises(LogitsError, match="finite"):
            agent.predict(images(3))
        assert agent.flush(10)
        assert (agent.status().predicted, agent.status().spooled) == (0, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, SIDE, SIDE, 3), np.float32),
        np.zeros((SIDE, SIDE, 3), np.uint8),
        [np.zeros((SIDE, SIDE, 4), np.uint8)],
        [np.zeros((0, SIDE, 3), np.uint8)],
        [[1, 2]],
        7,
        (image for image in images(2)),
    ],
    ids=["float", "one image", "four channels", "no pixels", "lists", "number", "generator"],
)
def test_wrong_images_are_an_error(make_config: Make, wrong: Any) -> None:
    with EdgeAgent(make_config()) as agent:
        with pytest.raises(ImageError, match="expected"):
            agent.predict(wrong)
        assert answers(agent.predict(images(2)), images(2), 0)


def test_any_batch_gives_the_same_answers(make_config: Make) -> None:
    batch = images(11, 4)
    with EdgeAgent(make_config(batch=4)) as agent:
        assert answers(agent.predict(batch), batch, 0)
        assert answers(agent.predict(list(batch)), batch, 0)
        assert answers(agent.predict(tuple(batch)), batch, 0)
        empty = agent.predict(batch[:0])
        assert (empty.logits.shape, empty.labels.shape, empty.selected.shape) == ((0, CLASSES), (0,), (0,))
        assert agent.predict([]).labels.shape == (0,)
        grey = agent.predict([image[:, :, :1] for image in batch])
        assert answers(grey, np.repeat(batch[..., :1], 3, axis=3), 0)


def test_an_image_the_codec_cannot_hold_is_counted_and_told(make_config: Make) -> None:
    strip = np.random.default_rng(0).integers(0, 256, (1, 65_501, 3), dtype=np.uint8)
    with EdgeAgent(make_config(upload=UploadConfig(codec="jpeg", random_share=0.0))) as agent:
        assert agent.predict([strip]).selected.all()
        assert agent.flush(20)
        assert agent.status().dropped == {"encode_error": 1}
        assert "65500" in (agent.status().last_error or "")
        assert agent.predict(images(2)).selected.all()
        assert agent.flush(20)
        assert (agent.status().spooled, agent.status().last_error) == (2, None)


def test_a_disk_that_fails_is_counted_and_told_and_may_recover(make_config: Make) -> None:
    with EdgeAgent(make_config()) as agent:
        with agent._spool._file.reading() as db:
            db.execute("PRAGMA max_page_count=1").fetchall()  # SQLite then answers as if the disk were full
        batch = images(40)
        n = int(agent.predict(batch).selected.sum())
        assert agent.flush(20)
        assert agent.status().dropped["disk_error"] == n
        assert agent._wait(lambda: "disk's space" in (agent.status().last_error or ""), 10)
        with agent._spool._file.reading() as db:
            db.execute("PRAGMA max_page_count=100000").fetchall()
        m = int(agent.predict(images(4, 1)).selected.sum())
        assert agent.flush(20)
        assert agent._wait(lambda: agent.status().last_error is None, 10)
        assert agent.status().spooled == m


def test_a_disk_that_fails_while_it_closes_is_counted_to_the_last_sample(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = EdgeAgent(make_config())
    agent._recorder.stop()
    assert agent._recorder.join(10)
    for i in range(12):  # three groups
        agent.predict(images(16, i))
    with agent._spool._file.reading() as db:
        db.execute("PRAGMA max_page_count=1").fetchall()
    saved = []
    monkeypatch.setattr(agent._recorder, "_save", lambda: saved.append(True))
    with pytest.raises(SpoolError, match="disk's space"):
        agent._recorder.finish()
    status = agent.status()
    assert (status.dropped, status.queued) == ({"disk_error": status.selected}, 0)
    assert saved == [True]
    agent.close()


def test_a_bug_in_the_codec_costs_its_own_image_only(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    calls = iter(range(1000))

    def encode(image: Any, codec: CodecConfig) -> bytes:
        if next(calls) == 1:
            raise RuntimeError("a bug")
        return encode_image(image, codec)

    monkeypatch.setattr("cema.edge.encoder.encode_image", encode)
    with EdgeAgent(make_config()) as agent:
        n = int(agent.predict(images(9)).selected.sum())
        assert agent.flush(20)
        assert agent.status().dropped == {"encode_error": 1}
        assert agent.status().spooled == n - 1
    assert "RuntimeError: a bug" in caplog.text


def test_images_are_copied_and_scaled_for_the_way_up(make_config: Make, cloud: Cloud) -> None:
    buffer = np.random.default_rng(0).integers(0, 256, (1, 30, 50, 3), dtype=np.uint8)
    with EdgeAgent(make_config(cloud)) as agent:
        assert agent.predict(buffer).selected.all()
        buffer[:] = 0
        assert agent.flush(20)
    (sample,) = cloud.stored.values()
    image = decode_image(sample.image)
    assert image.shape == (SIDE, 20, 3)
    assert image.std() > 10


@pytest.mark.parametrize("subsampling", ["444", "420"])
def test_the_subsampling_that_is_set_is_what_arrives(
    make_config: Make, cloud: Cloud, subsampling: str
) -> None:
    assert UploadConfig().subsampling == CodecConfig().subsampling == "444"
    config = make_config(cloud)
    upload = msgspec.structs.replace(config.upload, codec="jpeg", subsampling=subsampling)
    with EdgeAgent(msgspec.structs.replace(config, upload=upload)) as agent:
        assert agent.predict(images(1)).selected.all()
        assert agent.flush(20)
    (sample,) = cloud.stored.values()
    assert simplejpeg.decode_jpeg_header(sample.image)[3] == subsampling


def test_predict_waits_for_no_write_and_counts_what_it_cannot_keep(make_config: Make) -> None:
    config = make_config(upload=UploadConfig(queue_samples=5, random_share=0.0))
    with EdgeAgent(config) as agent:
        with agent._spool._file.transaction():  # a disk that does not answer
            for i in range(20):
                agent.predict(images(16, i))
            status = agent.status()
            assert status.dropped["queue_full"] > 0
            assert status.spooled == 0
            assert not agent.flush(0)
        assert agent.flush(20)
        selected, accounted = balance(agent)
        assert selected == accounted


def test_large_images_are_bounded_by_bytes(make_config: Make) -> None:
    big = np.random.default_rng(0).integers(0, 256, (6, 100, 100, 3), dtype=np.uint8)
    with EdgeAgent(
        make_config(upload=UploadConfig(queue_bytes=70_000, max_side=0, random_share=0.0))
    ) as agent:
        with agent._spool._file.transaction():
            for _ in range(4):
                agent.predict(big)
            assert agent._recorder._queued_bytes <= 70_000
        assert agent.flush(20)
        selected, accounted = balance(agent)
        assert selected == accounted


def test_predict_waits_for_no_network(
    make_config: Make, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey
) -> None:
    release = threading.Event()
    cloud.publish(make_update(bundle, key, 1))
    cloud.script.extend([Answer(hold=release)] * 6)
    with EdgeAgent(make_config(cloud)) as agent:
        assert cloud.entered.wait(10)
        batch = images(8)
        for _ in range(10):
            assert answers(agent.predict(batch), batch, 0)
        assert agent.status().version == 0
        release.set()
        assert agent.wait_for_version(1, 20)
        assert agent.flush(20)


def test_many_threads_may_predict(make_config: Make, cloud: Cloud) -> None:
    with EdgeAgent(make_config(cloud)) as agent:

        def work(seed: int) -> None:
            for i in range(10):
                batch = images(3, 100 * seed + i)
                assert answers(agent.predict(batch), batch, 0)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert agent.flush(30)
        status = agent.status()
        assert status.predicted == 120
        selected, accounted = balance(agent)
        assert selected == accounted
        assert status.uploaded == len(cloud.stored)


def test_a_stormy_link_loses_nothing(make_config: Make, cloud: Cloud) -> None:
    cloud.script.extend(
        [Answer(500), Answer(reset=True), Answer(body=b"?"), Answer(413), Answer(429), Answer(401)] * 3
    )
    with EdgeAgent(make_config(cloud), backoff=QUICK) as agent:
        for i in range(6):
            agent.predict(images(8, i))
        assert agent.flush(30)
        status = agent.status()
        assert status.dropped.keys() <= {"too_large_for_cloud"}
        assert status.uploaded + sum(status.dropped.values()) == status.selected
        assert len(cloud.stored) >= status.uploaded


def test_trouble_in_the_background_shows(make_config: Make, cloud: Cloud) -> None:
    cloud.token = "another"
    config = make_config(cloud)
    assert config.cloud is not None
    config = msgspec.structs.replace(config, cloud=msgspec.structs.replace(config.cloud, token="old"))
    with EdgeAgent(config) as agent:
        agent.predict(images(4))
        assert agent._wait(lambda: "401" in (agent.status().last_error or ""), 10)
        assert not agent.flush(0.05)


def test_a_token_file_may_change_while_the_agent_runs(
    make_config: Make, cloud: Cloud, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("old\n")
    link = CloudLink(url=cloud.url, cohort=COHORT, token_file=str(file))
    with EdgeAgent(msgspec.structs.replace(make_config(), cloud=link), backoff=QUICK) as agent:
        agent.predict(images(4))
        assert agent._wait(lambda: "401" in (agent.status().last_error or ""), 10)
        file.write_text("secret\n")
        assert agent.flush(20)
        file.unlink()
        agent.predict(images(4, 9))
        assert agent._wait(lambda: "token_file" in (agent.status().last_error or ""), 10)


def test_one_state_folder_one_agent(make_config: Make) -> None:
    with EdgeAgent(make_config()) as agent:
        with pytest.raises(SpoolError, match="in use"):
            EdgeAgent(make_config())
        assert answers(agent.predict(images(2)), images(2), 0)
    EdgeAgent(make_config()).close()


def test_a_bundle_this_device_cannot_run_faithfully_is_refused(
    make_config: Make, bundle: Bundle, tmp_path: Path
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(bundle.path, copy)
    norm = bytearray((copy / "norm.bin").read_bytes())
    norm[3] ^= 0x01  # doubles or halves one parameter
    (copy / "norm.bin").write_bytes(norm)
    with pytest.raises(LogitsError, match="golden"):
        EdgeAgent(make_config(bundle=str(copy)))
    with pytest.raises(FormatError):
        EdgeAgent(make_config(bundle=str(tmp_path / "nowhere")))
    EdgeAgent(make_config()).close()  # nothing was left locked


TOML = """
bundle = "b"
state = "s"
[cloud]
url = "https://cloud.example"
cohort = "north"
token_file = "token"
[upload]
spool_bytes = 2_000_000
"""


def test_a_configuration_is_read_relative_to_its_file(tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    path.write_text(TOML)
    config = EdgeConfig.load(path)
    assert (config.bundle, config.state) == (str(tmp_path / "b"), str(tmp_path / "s"))
    assert config.cloud is not None
    assert config.cloud.token_file == str(tmp_path / "token")
    assert (config.upload.spool_bytes, config.upload.batch_samples, config.selection.e_max) == (
        2_000_000,
        32,
        0.4,
    )
    with pytest.raises(ConfigError, match="token_file"):
        config.cloud.read_token()
    (tmp_path / "token").write_text(" \n")
    with pytest.raises(ConfigError, match="token"):
        config.cloud.read_token()
    with pytest.raises(FormatError, match="bundle"):
        EdgeAgent.from_config(path)


@pytest.mark.parametrize(
    "content", [b"tok123", b"tok123\r\n", b"\xef\xbb\xbftok123\n", b" \t tok123 \n\n"], ids=repr
)
def test_a_token_is_read_as_any_tool_saves_it(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    assert CloudLink(url="https://c.example", cohort="n", token_file=str(file)).read_token() == "tok123"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tok123\n".encode("utf-16"), r"token_file: .*UTF-16.*save it as plain text \(UTF-8\)"),
        (b"tok\xe9", r"token_file: .*save it as plain text \(UTF-8\)"),
        (b"\xef\xbb\xbf\n", "token_file: expected the device's token, got none"),
        ("tok\u00a0123".encode(), r"token_file: .*has characters that no token has \(U\+00A0 at place 4\)"),
        (b"tok\n123", r"token_file: .*has characters that no token has \(U\+000A at place 4\)"),
    ],
    ids=["utf-16", "latin-1", "mark only", "no-break space", "two lines"],
)
def test_a_token_file_that_holds_none_says_why(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        CloudLink(url="https://c.example", cohort="n", token_file=str(file)).read_token()


def test_a_token_in_the_configuration_is_judged_too() -> None:
    link = CloudLink(url="https://c.example", cohort="n", token="geheim\u2013x")
    with pytest.raises(ConfigError, match=r"cloud\.token: .*U\+2013 at place 7"):
        link.read_token()
    assert CloudLink(url="https://c.example", cohort="n", token="\ufeffabc\n").read_token() == "abc"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[upload]", "[upload]\nqualty = 3", "qualty"),
        ("2_000_000", "10", "spool_bytes"),
        ("2_000_000", '"much"', "spool_bytes"),
        ('token_file = "token"', "", "token"),
        ('token_file = "token"', 'token_file = "a"\ntoken = "b"', "exactly one"),
        ('bundle = "b"', "", "bundle"),
        ('bundle = "b"', 'bundle = "b"\nthreads = 0', "threads"),
        ("[upload]", "[update]\npoll_seconds = 0\n[upload]", "poll_seconds"),
        ("[upload]", "[upload]\nquality = 101", "quality"),
        ("[upload]", '[upload]\nsubsampling = "422"', "subsampling"),
        ("[upload]", '[selection]\naverage = "mean"\n[upload]', "average"),
        (
            "[upload]",
            '[selection]\nrule = "budget"\noptions = { share = 2 }\n[upload]',
            r"options\.share: expected a number in \(0, 1\], got 2.*key `selection`",
        ),
        (
            "[upload]",
            '[selection]\nrule = "budget"\noptions = { order = "best" }\n[upload]',
            r"options\.order: .*'best'",
        ),
        ('bundle = "b"', r'bundle = "C:\new\bundle"', r"key `bundle`.*single quotes"),
        ('state = "s"', r'state = "C:\Users\x"', "single quotes"),
        ('"token"', r'"C:\token"', r"key `cloud.token_file`.*single quotes"),
    ],
)
def test_a_wrong_configuration_says_what_is_wrong(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "edge.toml"
    path.write_text(TOML.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        EdgeConfig.load(path)


def test_importing_the_edge_loads_no_torch() -> None:
    code = (
        "import sys, cema.edge, cema.edge.program\n"
        "print([m for m in ('torch', 'fastapi', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
