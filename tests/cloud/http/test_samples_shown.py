"""Operators look at the samples that came last, and at their images unless the cohort is private."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import numpy as np
import pytest
from cloud_client import Cloud, auth, refused
from cloud_support import StillEngine, make_samples, serving, write_config
from PIL import Image

from cema.cloud.config import CloudConfig
from cema.cloud.store.data import TeacherLabel, newest_samples
from cema.cloud.store.sqlite import SqliteStore
from cema.formats.draw import Draw
from cema.formats.image import CodecConfig, decode_image, encode_image
from cema.formats.sample import Sample, sample_id

NORTH = "/v1/cohorts/north/samples"


def encoded(pixels: np.ndarray, codec: Any, label: int = 1) -> Sample:
    image = encode_image(pixels, CodecConfig(codec=codec))
    return Sample(id=sample_id(image), image=image, entropy=0.5, label=label, version=2, captured_at=5.0)


def put(cloud: Cloud, samples: list[Sample], device: str = "cam", **more: Any) -> None:
    cloud.store.put("north", samples, device=device, now=9.0, max_backlog=10**6, **more)


def read(cloud: Cloud, query: str = "") -> list[dict[str, Any]]:
    found = cloud.get(f"{NORTH}{query}", token=cloud.operator)
    assert (found.status_code, found.headers["cache-control"]) == (200, "no-store")
    told: dict[str, Any] = found.json()
    assert told["private"] is False
    samples: list[dict[str, Any]] = told["samples"]
    return samples


def test_the_newest_samples_are_told_with_what_they_are_taken_for(cloud: Cloud) -> None:
    assert read(cloud) == []
    mine, others, late = make_samples(3, seed=1), make_samples(2, seed=2), make_samples(1, seed=3)
    put(cloud, mine, draws={1: Draw(0.5, True)})
    put(cloud, others, "other")
    put(cloud, late)
    assert isinstance(cloud.store, SqliteStore)
    seqs = cloud.store.sequence("north", after=0, limit=9)
    epoch = cloud.store.claim("north").epoch
    cloud.store.commit_step("north", seqs[0], b"", epoch=epoch, now=1.0, taught=[TeacherLabel(seqs[0], 3)])
    cloud.store.put_labels("north", {mine[0].id: 2}, actor="ann", now=1.0)
    told = read(cloud)
    assert [one["id"] for one in told] == [s.id for s in (late[0], *others[::-1], *mine[::-1])]
    first = told[-1]
    assert (first["label"], first["teacher"], first["truth"]) == (mine[0].label, 3, 2)
    assert (first["waiting"], told[0]["waiting"]) == (False, True)
    assert [one["drawn"] for one in told] == [False, False, False, False, True, False]
    assert (first["entropy"], first["received_at"], first["bytes"]) == (
        mine[0].entropy,
        9.0,
        len(mine[0].image),
    )
    assert [one["id"] for one in read(cloud, "?device=cam&limit=2")] == [late[0].id, mine[2].id]
    assert read(cloud, "?device=nobody") == []
    assert len(read(cloud, "?limit=4")) == 4


def test_classes_have_names_where_the_bundle_has_them(tmp_path: Path) -> None:
    config = CloudConfig.load(write_config(tmp_path))
    manifest = tmp_path / "bundle" / "manifest.json"
    named = msgspec.json.decode(manifest.read_bytes()) | {"labels": ["ant", "bee", "cat", "dog"]}
    engine = StillEngine(config)
    operator = engine.devices.add("ops", cohort=None, role="operator")
    engine.store.put(
        "north", [encoded(np.zeros((8, 8, 3), np.uint8), "png")], device="c", now=1.0, max_backlog=9
    )
    with serving(engine) as url, httpx2.Client(base_url=url, headers=auth(operator)) as http:
        assert http.get(NORTH).json()["samples"][0]["label_name"] is None
        manifest.write_bytes(msgspec.json.encode(named))
        (sample,) = http.get(NORTH).json()["samples"]
        assert (sample["label_name"], sample["teacher_name"]) == ("bee", None)
        manifest.write_bytes(b"damaged")
        assert http.get(NORTH).json()["samples"][0]["label_name"] is None
        manifest.unlink()
        assert http.get(NORTH).json()["samples"][0]["label_name"] is None


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("codec", "kind"), [("jpeg", "jpeg"), ("png", "png"), ("raw", "png")])
def test_an_image_is_shown_as_pixels_and_nothing_else(
    cloud: Cloud, codec: str, kind: str, channels: int
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, channels), dtype=np.uint8)
    sample = encoded(pixels, codec)
    put(cloud, [sample])
    found = cloud.get(f"{NORTH}/{sample.id}/image", token=cloud.operator)
    assert (found.status_code, found.headers["content-type"]) == (200, f"image/{kind}")
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert found.headers["cache-control"] == "no-store"
    if codec == "raw":
        with Image.open(io.BytesIO(found.content), formats=("PNG",)) as picture:
            shown = np.array(picture).reshape(20, 30, channels)
        np.testing.assert_array_equal(shown, pixels)
    else:
        assert found.content == sample.image
        assert decode_image(found.content).shape == (20, 30, channels)


def test_images_that_are_slow_to_decode_hold_nothing_else_up(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = encoded(np.zeros((90, 90, 3), np.uint8), "raw")
    put(cloud, [sample])
    decoding, go_on = threading.Semaphore(0), threading.Event()

    def slowly(image: bytes) -> np.ndarray:
        decoding.release()
        assert go_on.wait(60)
        return decode_image(image)

    monkeypatch.setattr("cema.cloud.http.samples_shown.decode_image", slowly)
    where = f"{cloud.url}{NORTH}/{sample.id}/image"
    many = 60  # more than the threads of the server
    with ThreadPoolExecutor(many) as pool:
        try:
            asked = [
                pool.submit(httpx2.get, where, headers=auth(cloud.operator), timeout=60) for _ in range(many)
            ]
            assert decoding.acquire(timeout=20)
            for _ in range(many):  # while they are asked for
                assert (
                    httpx2.get(f"{cloud.url}{NORTH}", headers=auth(cloud.operator), timeout=10).status_code
                    == 200
                )
        finally:
            go_on.set()
        assert {each.result().status_code for each in asked} == {200}


def test_what_is_not_there_or_damaged_is_not_shown(cloud: Cloud) -> None:
    sample = encoded(np.zeros((90, 90, 3), np.uint8), "raw")
    broken = sample.image[:-8] + bytes(8)
    damaged = msgspec.structs.replace(sample, image=broken, id=sample_id(broken))
    put(cloud, [damaged])
    for name in (damaged.id, sample.id, "0" * 64, "%00", "short"):
        refused(cloud.get(f"{NORTH}/{name}/image", token=cloud.operator), 404, "unknown_sample")
    refused(cloud.get(f"{NORTH}/{damaged.id}/image"), 403, "not_an_operator")
    south = f"/v1/cohorts/south/samples/{damaged.id}/image"
    refused(cloud.get(south, token=cloud.northern_operator), 403, "wrong_cohort")
    refused(cloud.get(south, token=cloud.operator), 404, "unknown_sample")


def test_no_image_of_a_private_cohort_is_ever_shown(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    path.write_text(path.read_text().rstrip() + "\nprivate = true\n")
    config = CloudConfig.load(path)
    engine = StillEngine(config)
    admin = engine.devices.add("boss", cohort=None, role="admin")
    sample = make_samples(1)[0]
    engine.store.put("north", [sample], device="c", now=1.0, max_backlog=9)
    with serving(engine) as url, httpx2.Client(base_url=url, headers=auth(admin)) as http:
        told = http.get(NORTH).json()
        assert (told["private"], told["samples"][0]["id"]) == (True, sample.id)
        for name in (sample.id, "0" * 64):
            error = refused(http.get(f"{NORTH}/{name}/image"), 403, "private")
        assert "private = true" in error["remedy"]
        for found in (http.get(NORTH), http.get(f"/v1/cohorts/north/data/{sample.id}")):
            assert sample.image not in found.content
    with closing(config.open_store()) as store:
        assert len(newest_samples(store, "north", limit=5)) == 1


def test_a_store_that_shows_none_has_none() -> None:
    assert newest_samples(object(), "north", limit=5) == []  # type: ignore[arg-type]
