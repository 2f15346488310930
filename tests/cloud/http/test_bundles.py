"""A cohort with another base model, as devices see it: which versions they are offered, the notice, the files."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from bundle_offer import CONTENT, migrated, sha256
from cloud_client import Cloud, auth, refused
from hypothesis import given
from hypothesis import strategies as st

from cema.cloud.bundle_folder import BundleFolder
from cema.cloud.http.bases import HOUR
from cema.cloud.http.bundles import _part
from cema.cloud.http.waiting import TICK_SECONDS
from cema.cloud.store.base import PublishedUpdate

LATEST = "/v1/cohorts/north/updates/latest"
BUNDLE, BUNDLES = "/v1/cohorts/north/bundle", "/v1/cohorts/north/bundles"
NEW = "1" * 64


def asked(cloud: Cloud, *, base: str | None, known: str | None = None, **query: Any) -> tuple[int, Any, Any]:
    """Ask for updates; returns the status, the version in the tag, and the base that devices are to have."""
    parameters = {name: str(value) for name, value in ({"base": base} | query).items() if value is not None}
    headers = auth(cloud.token) | ({"If-None-Match": known} if known else {})
    answer = cloud.http.get(LATEST, params=parameters, headers=headers)
    tag = answer.headers.get("ETag")
    version = int(tag.strip('"').rsplit("-", 1)[1]) if tag else None
    return answer.status_code, version, answer.headers.get("CEMA-Base")


def test_a_device_is_offered_versions_for_its_base_alone(cloud: Cloud) -> None:
    old = cloud.store.status("north")["base"]
    cloud.publish(1, b"one")
    for base in (None, old, NEW):  # until a cohort has had several bases, nothing is told of them
        assert asked(cloud, base=base) == (200, 1, None)
    migrated(cloud.engine)
    assert asked(cloud, base=old) == (200, 1, NEW)
    assert asked(cloud, base=NEW) == (204, None, NEW)
    cloud.publish(2, b"two")
    second = cloud.publish(3, b"three")
    assert asked(cloud, base=old) == (200, 1, NEW)
    assert asked(cloud, base=NEW) == (200, 3, NEW)
    assert asked(cloud, base=NEW, known=f'"{second.digest}-3"') == (304, 3, NEW)
    assert asked(cloud, base="2" * 64) == (200, 3, NEW)  # it refuses that, and its owner sees it
    refused(cloud.get(f"{LATEST}?base=old"), 400, "invalid_request")


def test_a_version_of_a_base_of_before_is_offered_until_it_expires(cloud: Cloud) -> None:
    old = cloud.store.status("north")["base"]
    epoch = cloud.store.claim("north").epoch
    envelope = b'{"manifest": "", "signatures": []}'
    update = PublishedUpdate(1, sha256(b"one"), envelope, b"one", 1.0, time.time() - 1)
    cloud.store.commit_step("north", 0, b"", update, epoch=epoch, now=1.0)
    assert asked(cloud, base=old) == (
        200,
        1,
        None,
    )  # while it is the newest the device says that it has expired
    migrated(cloud.engine)
    tag = f'"{sha256(b"one")}-1"'
    assert asked(cloud, base=old) == asked(cloud, base=old, known=tag) == (204, None, NEW)
    assert asked(cloud, base=None) == (204, None, None)


def test_back_at_the_first_base_its_versions_are_offered_again(cloud: Cloud) -> None:
    old = cloud.store.status("north")["base"]
    cloud.publish(1, b"one")
    migrated(cloud.engine)
    cloud.publish(2, b"two")
    migrated(cloud.engine, base=old, serial=2)
    assert asked(cloud, base=old) == (200, 1, old)
    assert asked(cloud, base=NEW) == (200, 2, old)
    cloud.publish(3, b"three")
    assert asked(cloud, base=old) == (200, 3, old)
    assert asked(cloud, base=NEW) == (200, 2, old)


def test_a_device_that_knows_nothing_of_bases_sees_one_new_version_an_hour(cloud: Cloud) -> None:
    cloud.publish(1, b"one")
    migrated(cloud.engine)
    assert asked(cloud, base=None) == (200, 1, None)  # nothing else there is yet
    hour = time.time() // HOUR * HOUR
    epoch = cloud.store.claim("north").epoch
    for version, created in ((2, hour - 20), (3, hour - 10), (4, hour + 1), (5, hour + 2)):
        payload = bytes([version])
        update = PublishedUpdate(
            version, sha256(payload), b'{"manifest": "", "signatures": []}', payload, created, 1e12
        )
        cloud.store.commit_step("north", 0, b"", update, epoch=epoch, now=1.0)
    assert asked(cloud, base=None) == (200, 3, None)
    assert asked(cloud, base=NEW) == (200, 5, NEW)


def test_who_waits_is_woken_for_versions_of_its_own_base(cloud: Cloud) -> None:
    old = cloud.store.status("north")["base"]
    cloud.publish(1, b"one")
    migrated(cloud.engine)
    begin = time.monotonic()
    known = asked(cloud, base=old)
    assert known == (200, 1, NEW)
    tag = f'"{sha256(b"one")}-1"'
    assert asked(cloud, base=old, known=tag, wait=20) == (304, 1, NEW)  # at once: none will come
    assert asked(cloud, base=None, known=tag, wait=20) == (304, 1, None)
    assert time.monotonic() - begin < 20
    # Those of the base before are no news: nothing comes in the time of several looks at the store.
    assert asked(cloud, base=NEW, wait=3 * TICK_SECONDS) == (204, None, NEW)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(asked, cloud, base=NEW, wait=25)
        cloud.publish(2, b"two")
        assert waiting.result(60) == (200, 2, NEW)


def test_operators_are_told_which_device_has_which_base(cloud: Cloud) -> None:
    old = cloud.store.status("north")["base"]
    cloud.publish(1, b"one")
    path = "/v1/cohorts/north/bases"
    assert cloud.get(path, token=cloud.operator).json() == {
        "cohort": "north",
        "base": old,
        "bases": [{"base": old, "since": None, "version": 1, "devices": []}],
        "unknown": ["cam"],
    }
    second = cloud.engine.devices.add("second", cohort="north")
    cloud.engine.devices.add("third", cohort="north")
    gone = cloud.engine.devices.add("gone", cohort="north")
    for token in (cloud.token, second, gone):
        cloud.get(f"{LATEST}?base={old}", token=token)
    migrated(cloud.engine)
    cloud.publish(2, b"two")
    cloud.get(f"{LATEST}?base={NEW}")
    cloud.get(f"{LATEST}?base={NEW}", token=cloud.operator)  # is no device
    cloud.engine.devices.revoke("gone")

    def told() -> dict[str, Any]:
        found: dict[str, Any] = cloud.get(path, token=cloud.operator).json()
        return found

    deadline = time.monotonic() + 60
    while not any("cam" in found["devices"] for found in told()["bases"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    found = told()
    assert found["bases"][1].pop("since") == pytest.approx(time.time(), abs=600)
    assert found == {
        "cohort": "north",
        "base": NEW,
        "bases": [
            {"base": old, "since": None, "version": 1, "devices": ["second"]},
            {"base": NEW, "version": 2, "devices": ["cam"]},
        ],
        "unknown": ["third"],
    }
    refused(cloud.get(path), 403, "not_an_operator")


def test_the_notice_is_served_as_it_was_signed(cloud: Cloud) -> None:
    nothing = cloud.get(BUNDLE)
    assert (nothing.status_code, nothing.content) == (204, b"")
    signed, _ = migrated(cloud.engine)
    answer = cloud.get(BUNDLE)
    assert (answer.status_code, answer.content) == (200, signed)
    same = cloud.get(BUNDLE, headers={"If-None-Match": answer.headers["ETag"]})
    assert (same.status_code, same.content) == (304, b"")
    refused(cloud.get(BUNDLE, token=cloud.southern), 403, "wrong_cohort")


def test_files_are_served_whole_and_in_ranges(cloud: Cloud) -> None:
    migrated(cloud.engine)
    for content in CONTENT.values():
        answer = cloud.get(f"{BUNDLES}/{sha256(content)}")
        assert (answer.status_code, answer.content) == (200, content)
    content = CONTENT["model.onnx"]
    path = f"{BUNDLES}/{sha256(content)}"
    for header, first, last in (("bytes=3-9", 3, 9), ("bytes=3-", 3, 89), ("bytes=88-1000", 88, 89)):
        part = cloud.get(path, headers={"Range": header})
        assert (part.status_code, part.content) == (206, content[first : last + 1])
        assert part.headers["Content-Range"] == f"bytes {first}-{last}/90"
        assert part.headers["Content-Length"] == str(last + 1 - first)
    for header in ("bytes=90-", "bytes=9-3", "bytes=-5", "bytes=1-2,5-6", "lines=1-2", "bytes=", "bytes=a-b"):
        whole = cloud.get(path, headers={"Range": header})
        assert (whole.status_code, whole.content) == (200, content)
    same = cloud.get(path, headers={"If-None-Match": f'"{sha256(content)}"'})
    assert (same.status_code, same.content) == (304, b"")


def test_nothing_but_the_files_of_the_newest_notice_is_served(cloud: Cloud) -> None:
    content = CONTENT["norm.bin"]
    refused(cloud.get(f"{BUNDLES}/{sha256(content)}"), 404, "unknown_bundle")
    migrated(cloud.engine)
    other = BundleFolder(Path(cloud.engine.config.data)).file(sha256(b"other"))
    other.write_bytes(b"other")
    for name in (other.name, "..%2f..%2fcloud.toml", "x", sha256(content).upper()):
        refused(cloud.get(f"{BUNDLES}/{name}"), 404, "not_found" if "%2f" in name else "unknown_bundle")
    refused(cloud.get(f"{BUNDLES}/{sha256(content)}", token=cloud.southern), 403, "wrong_cohort")
    southern = cloud.get(f"/v1/cohorts/south/bundles/{sha256(content)}", token=cloud.southern)
    refused(southern, 404, "unknown_bundle")
    BundleFolder(Path(cloud.engine.config.data)).file(sha256(content)).unlink()
    refused(cloud.get(f"{BUNDLES}/{sha256(content)}"), 404, "unknown_bundle")


@given(st.integers(0, 50), st.one_of(st.none(), st.integers(0, 50)), st.integers(1, 40))
def test_a_range_is_within_the_file_or_none(first: int, last: int | None, size: int) -> None:
    part = _part(f"bytes={first}-{'' if last is None else last}", size)
    wanted = (
        range(size)[first : None if last is None else last + 1] if last is None or last >= first else range(0)
    )
    if part is None:
        assert not len(wanted)
    else:
        assert range(part.first, part.first + part.size) == wanted


@pytest.mark.parametrize(
    "header", [None, "", "bytes", "bytes=1-2-3", "bytes=٣-", "bytes=1-2, 4-5", "b" * 5000]
)
def test_what_is_no_single_range_is_ignored(header: str | None) -> None:
    assert _part(header, 100) is None
