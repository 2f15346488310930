from __future__ import annotations

import pytest
from edge_support import Cloud, FakeTime

from cema.edge.client import CloudClient
from cema.edge.proxy import environment_proxy, without_password
from cema.errors import ConfigError

PROXY = "http://proxy.example:3128"


@pytest.mark.parametrize(
    ("no_proxy", "host", "direct"),
    [
        ("192.0.0.0/8", "192.0.2.7", True),
        ("192.0.0.0/8", "193.0.2.7", False),
        ("10.0.0.0/8, 192.0.2.0/24", "192.0.2.7", True),
        ("10.0.0.0/8 192.0.2.0/24", "192.0.2.7", True),
        ("192.0.2.9/24", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.70", False),
        ("192.0.2.7:8080", "192.0.2.7:8080", True),
        ("192.0.2.7:8080", "192.0.2.7:8081", False),
        ("192.0.0.0/8", "192.example", False),
        ("192.0.0.0/33", "192.0.2.7", False),
        ("0.0.0.0/0", "203.0.113.1", True),
        ("fd00::/8", "[fd12::1]", True),
        ("[fd00::]/8", "[fd12::1]", True),
        ("fd12::1", "[fd12::1]", True),
        ("[fd12::1]:8080", "[fd12::1]:8080", True),
        ("fd00::/8", "[fe80::1]", False),
        ("192.0.0.0/8", "[::ffff:192.0.2.7]", True),
        ("*", "cloud.example", True),
        ("other,*", "cloud.example", True),
        ("cloud.example", "cloud.example", True),
        ("cloud.example", "a.cloud.example", True),
        ("cloud.example", "mycloud.example", False),
        ("CLOUD.example", "Cloud.Example", True),
        (".example", "cloud.example", True),
        (".cloud.example", "cloud.example", False),
        ("*.example", "cloud.example", True),
        ("cloud.example:80", "cloud.example", True),
        ("cloud.example:443", "cloud.example", False),
        ("http://cloud.example", "cloud.example", True),
        ("https://cloud.example", "cloud.example", False),
        ("all://cloud.example", "cloud.example", True),
        ("", "cloud.example", False),
        (",, ,", "cloud.example", False),
    ],
)
def test_no_proxy(monkeypatch: pytest.MonkeyPatch, no_proxy: str, host: str, direct: bool) -> None:
    monkeypatch.setenv("http_proxy", PROXY)
    monkeypatch.setenv("no_proxy", no_proxy)
    assert environment_proxy(f"http://{host}/prefix") == (None if direct else PROXY)


@pytest.mark.parametrize(
    ("variables", "url", "proxy"),
    [
        ({}, "https://c.example", None),
        ({"https_proxy": "p:1"}, "https://c.example", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1"}, "https://c.example", "http://p:1"),
        ({"http_proxy": "http://p:1"}, "https://c.example", None),
        ({"all_proxy": "http://a:1", "https_proxy": "http://p:1"}, "https://c.example", "http://p:1"),
        ({"all_proxy": "socks5://a:1"}, "https://c.example", "socks5://a:1"),
        ({"http_proxy": "http://p:1"}, "http://127.0.0.1:80", None),
        ({"http_proxy": "http://p:1"}, "http://localhost", None),
    ],
)
def test_the_environments_proxy(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], url: str, proxy: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert environment_proxy(url) == proxy


def test_the_proxy_is_named_once_and_without_its_password(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = Cloud()
    monkeypatch.setenv("http_proxy", proxy.url.replace("://", "://user:pass%40word@"))
    link = CloudClient("http://192.0.2.7", "north", lambda: "t", 2.0, FakeTime().clock)
    try:
        for _ in range(3):
            assert link.latest_update(None).status == 204
        said = [record.getMessage() for record in caplog.records if "proxy" in record.getMessage()]
        where = without_password(f"http://user:x@{proxy.url.removeprefix('http://')}")
        assert said == [f"requests to cloud.url http://192.0.2.7 go through the proxy {where}"]
        assert "pass" not in caplog.text
        assert len(proxy.requests) == 3
    finally:
        link.close()
        link.release()
        proxy.close()


def test_a_network_in_no_proxy_keeps_requests_from_the_proxy(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = Cloud()
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "0.0.0.0/8")
    cloud = Cloud()
    # This machine, by an address that is not in the loopback's network.
    link = CloudClient(cloud.url.replace("127.0.0.1", "0.0.0.0"), "north", lambda: "t", 2.0, FakeTime().clock)
    try:
        assert link.latest_update(None).status == 204
        assert (len(cloud.requests), proxy.requests) == (1, [])
        assert "proxy" not in caplog.text
    finally:
        link.close()
        link.release()
        cloud.close()
        proxy.close()


@pytest.mark.parametrize("proxy", ["ftp://p:1", "nonsense://user:secret@x"])
def test_a_proxy_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(ConfigError, match=r"proxy .* cannot be used.*set https_proxy to") as caught:
        CloudClient("https://cloud.example", "north", lambda: "t", 2.0, FakeTime().clock)
    assert "secret" not in str(caught.value)
