"""Requests that are made to cost more than they should."""

from __future__ import annotations

import msgspec
import pytest
from cloud_client import Cloud, refused
from cloud_support import make_samples

from cema.cloud.http.caching import matches
from cema.formats.sample import encode_samples


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
