"""Requests that are made to cost more than they should."""

from __future__ import annotations

import hashlib
import struct
import zlib

import msgspec
import numpy as np
import pytest
from cloud_client import Cloud, refused
from cloud_support import make_samples

from cema.cloud.http.caching import matches
from cema.cloud.worker.images import DecodedImages
from cema.formats.image import CodecConfig, decode_image, encode_image
from cema.formats.sample import Sample, encode_samples


@pytest.mark.parametrize("text", [" ", '"', "W/", ", ", '"a",'])
def test_an_entity_tag_list_of_any_form_is_read_at_once(text: str) -> None:
    # Read in quadratic time, as it was, the longer list would take days.
    for length in (4_000, 4_000_000):
        assert not matches(text * (length // len(text)), '"tag"')


def test_a_list_of_tags_may_have_blanks_weak_tags_and_a_star() -> None:
    assert all(matches(text, '"tag"') for text in ('  "a" ,W/"tag"  ', " * ", '"tag"'))
    assert not any(matches(text, '"tag"') for text in ('"a", *', "", '"ta', "tag"))


def test_a_long_id_is_not_repeated(cloud: Cloud) -> None:
    sample = msgspec.structs.replace(make_samples(1)[0], id="x" * 50_000)
    response = cloud.post(encode_samples([sample]))
    (verdict,) = response.json()["verdicts"]
    assert verdict["verdict"] == "rejected"
    assert verdict["id"].startswith("xxxx")
    assert len(response.content) < 1000


@pytest.mark.parametrize(
    "frame",
    [
        {"format": "y" * 50_000, "samples": []},
        {"format": "cema.samples/1", "samples": [], "z" * 50_000: 1},
        {"format": "cema.samples/1", "samples": [{"w" * 50_000: 1}]},
    ],
)
def test_a_malformed_frame_is_not_repeated(cloud: Cloud, frame: object) -> None:
    response = cloud.post(msgspec.msgpack.encode(frame))
    refused(response, 400, "malformed")
    assert len(response.content) < 2000


def test_long_names_and_headers_are_not_repeated(cloud: Cloud) -> None:
    for response in (
        cloud.get(f"/v1/cohorts/{'c' * 20_000}/status"),
        cloud.get(f"/v1/cohorts/north/artifacts/{'d' * 20_000}"),
        cloud.post(b"", Content_Type="t/" + "k" * 20_000),
    ):
        assert response.status_code in (404, 415)
        assert len(response.content) < 2000


def test_no_redirect_repeats_the_host_of_a_stranger(cloud: Cloud) -> None:
    for path in ("/healthz/", "/v1/cohorts/north/status/"):
        response = cloud.http.get(path, headers={"Host": "evil.example"})
        assert "evil.example" not in response.text
        assert "location" not in response.headers
        assert response.status_code == 404


def sample_of(image: bytes) -> Sample:
    return msgspec.structs.replace(make_samples(1)[0], image=image, id=hashlib.sha256(image).hexdigest())


def picture(height: int, width: int, kind: str = "raw") -> bytes:
    return encode_image(np.zeros((height, width, 1), np.uint8), CodecConfig(codec=kind))


@pytest.mark.parametrize(
    ("shape", "kind", "reason"),
    [
        ((1, 17), "raw", "16 times as long as wide"),
        ((3400, 200), "png", "16 times"),
        ((16, 4000), "jpeg", "16 times"),
        ((4100, 4000), "raw", "at most 16000000 pixels"),
        ((4000, 4100), "png", "at most 16000000 pixels"),
    ],
)
def test_an_image_of_an_absurd_shape_is_rejected_and_the_rest_is_stored(
    cloud: Cloud, shape: tuple[int, int], reason: str, kind: str
) -> None:
    (good,) = make_samples(1)
    body = encode_samples([sample_of(picture(*shape, kind)), good])
    rejected, stored = cloud.post(body).json()["verdicts"]
    assert (rejected["verdict"], stored["verdict"]) == ("rejected", "stored")
    assert reason in rejected["reason"]
    assert cloud.store.counters("north")["samples.rejected.image"] == 1


def test_a_header_that_lies_about_its_size_allocates_nothing(cloud: Cloud) -> None:
    lying = b"CEMZ" + (2**31).to_bytes(4, "little") * 2 + b"\x03" + b"\0" * 20
    for image in (lying, lying[:9], b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"CEMZ"):
        (verdict,) = cloud.post(encode_samples([sample_of(image)])).json()["verdicts"]
        assert verdict["verdict"] == "rejected"


def test_damage_inside_the_compressed_pixels_is_stored_and_bad_for_nobody(cloud: Cloud) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (80, 70, 3), dtype=np.uint8)
    whole = [encode_image(noise, CodecConfig(codec=kind)) for kind in ("jpeg", "raw")]
    damaged = [image[:1500] + image[-2:] for image in whole]  # each with its end
    body = encode_samples([sample_of(image) for image in damaged])
    assert [verdict["verdict"] for verdict in cloud.post(body).json()["verdicts"]] == ["stored"] * 2
    stored = cloud.store.fresh("north", after=0, limit=9)
    assert DecodedImages(10**6).new(stored) == [None, None]
    assert [sample.device for sample in stored] == ["cam", "cam"]


def test_nothing_is_decoded_where_samples_arrive_but_unusual_pngs(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []

    def counted(data: bytes) -> object:
        decoded.append(data)
        return decode_image(data)

    monkeypatch.setattr("cema.cloud.http.uploads.decode_image", counted)
    for library in ("simplejpeg.decode_jpeg", "PIL.Image.open", "zlib.decompressobj"):
        monkeypatch.setattr(library, None)  # whoever calls them fails
    samples = [sample_of(picture(20 + i, 30, kind)) for i, kind in enumerate(["jpeg", "png", "raw"] * 2)]
    assert [verdict for _, verdict in cloud.send(samples)] == ["stored"] * 6
    assert not decoded
    monkeypatch.undo()
    monkeypatch.setattr("cema.cloud.http.uploads.decode_image", counted)
    profile = zlib.compress(bytes(2**23))
    chunk = b"iCCPa\0\0" + profile
    png = picture(20, 30, "png")
    unusual = (
        png[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]
    )
    assert [verdict for _, verdict in cloud.send([sample_of(unusual)])] == ["rejected"]
    assert decoded == [unusual]


def test_the_pixels_of_one_request_have_a_limit(cloud: Cloud) -> None:
    images = [np.full((3999, 4000, 1), i, np.uint8) for i in range(5)]
    samples = [sample_of(encode_image(image, CodecConfig(codec="png"))) for image in images]
    refused(cloud.post(encode_samples(samples)), 413, "too_large")
    assert cloud.store.backlog("north").samples == 0
