"""The files of the page, as the cloud serves them."""

from __future__ import annotations

from cloud_client import Cloud


def test_the_page_is_served_with_a_strict_policy(cloud: Cloud) -> None:
    answer = cloud.http.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = cloud.http.get("/", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_files_of_the_page_are_kept_for_ever_under_their_digests(cloud: Cloud) -> None:
    plain = cloud.http.get("/page/main.js", headers={"Accept-Encoding": "identity"})
    assert plain.headers["cache-control"] == "no-cache"
    digest = plain.headers["etag"].strip('"')
    kept = cloud.http.get(f"/page/main.js?v={digest}")
    assert "immutable" in kept.headers["cache-control"]
    assert kept.headers["content-encoding"] == "gzip"
    assert kept.content == plain.content
    assert f"/page/main.js?v={digest}" in cloud.http.get("/").text
    for missing in ("/page/none.js", "/page/..%2fassets.py", "/page/assets.py"):
        assert cloud.http.get(missing).status_code == 404, missing
