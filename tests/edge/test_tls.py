"""A cloud with a certificate of one's own: a real TLS server, whom a device trusts, and whom it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from cloud_support import StillEngine, serving, write_config
from edge_support import FakeTime
from own_authority import Authority

from cema.cloud.config import CloudConfig
from cema.edge.agent import EdgeAgent
from cema.edge.client import CloudClient
from cema.edge.config import CloudLink, EdgeConfig
from cema.edge.retry import LinkError
from cema.errors import ConfigError


class Secure:
    """A served cloud behind TLS, the authority that signed its certificate, and a device's token."""

    def __init__(self, url: str, authority: Authority, token: str) -> None:
        self.url, self.authority, self.token = url, authority, token

    def link(self, ca_file: Path | None) -> CloudClient:
        given = None if ca_file is None else str(ca_file)
        return CloudClient(self.url, "north", lambda: self.token, 5.0, FakeTime().clock, ca_file=given)

    def error(self, ca_file: Path | None) -> str:
        link = self.link(ca_file)
        try:
            with pytest.raises(LinkError) as raised:
                link.latest_update(None)
        finally:
            link.close()
            link.release()
        return str(raised.value)


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[Callable[[str], Secure]]:
    """Serve a real cloud with a certificate for a host."""
    (tmp_path / "cloud").mkdir()
    engine = StillEngine(CloudConfig.load(write_config(tmp_path / "cloud")))
    token = engine.devices.add("camera", cohort="north")
    authority = Authority(tmp_path, "ours")
    entered = []

    def serve(host: str = "127.0.0.1") -> Secure:
        certificate, key = authority.certificate(tmp_path, host)
        running = serving(engine, ssl_certfile=str(certificate), ssl_keyfile=str(key))
        url = running.__enter__()
        entered.append(running)
        return Secure(url.replace("http://", "https://"), authority, token)

    yield serve
    for running in entered:
        running.__exit__(None, None, None)


def test_a_device_that_is_told_its_authority_reaches_the_cloud(secure: Callable[[str], Secure]) -> None:
    cloud = secure("127.0.0.1")
    link = cloud.link(cloud.authority.path)
    try:
        assert link.latest_update(None).status == 204
    finally:
        link.close()
        link.release()


def test_names_beside_certificates_may_be_in_any_language(
    secure: Callable[[str], Secure], tmp_path: Path
) -> None:
    cloud = secure("127.0.0.1")
    bundle = tmp_path / "bundle.pem"  # as the lists of well-known authorities have them
    for name in ("# Főtanúsítvány\n".encode(), b"# F\xf5tan\xfas\xedtv\xe1ny\n"):
        bundle.write_bytes(name + cloud.authority.path.read_bytes())
        link = cloud.link(bundle)
        try:
            assert link.latest_update(None).status == 204
        finally:
            link.close()
            link.release()


def test_a_private_authority_is_refused_where_it_is_not_named(secure: Callable[[str], Secure]) -> None:
    error = secure("127.0.0.1").error(None)
    assert "CERTIFICATE_VERIFY_FAILED" in error
    assert "name its certificate (PEM) in cloud.ca_file" in error


def test_another_authority_is_refused(secure: Callable[[str], Secure], tmp_path: Path) -> None:
    other = Authority(tmp_path, "theirs")
    error = secure("127.0.0.1").error(other.path)
    assert f"not signed by an authority in cloud.ca_file {other.path}" in error


def test_a_certificate_for_another_host_is_refused(secure: Callable[[str], Secure]) -> None:
    cloud = secure("elsewhere.example")
    assert "certificate for this name" in cloud.error(cloud.authority.path)


def test_a_cloud_that_is_not_there_is_told_as_such(tmp_path: Path) -> None:
    nobody = Secure("https://127.0.0.1:1", Authority(tmp_path, "ours"), "t")
    assert nobody.error(nobody.authority.path).endswith("is the cloud running and reachable?")


def test_a_file_without_certificates_says_what_was_expected(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ours")
    _, key = authority.certificate(tmp_path)
    contents = {
        "empty": b"",
        "text": b"a certificate",
        "key": key.read_bytes(),
        "der": b"\x30\x82\x01\xff" * 9,
        "damaged": authority.path.read_bytes()[:300],
    }
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(
            ConfigError, match=r"cloud.ca_file: expected certificates in PEM.*put the certificate"
        ):
            Secure("https://127.0.0.1:1", authority, "t").link(path)


def test_a_device_without_its_authoritys_file_does_not_start(
    make_config: Callable[..., EdgeConfig], tmp_path: Path
) -> None:
    missing = tmp_path / "ca.pem"
    link = CloudLink(url="https://127.0.0.1:1", cohort="north", token="t", ca_file=str(missing))
    config = msgspec.structs.replace(make_config(), cloud=link)
    with pytest.raises(ConfigError, match=r"cloud.ca_file: .*ca.pem.*put the certificate \(PEM\)"):
        EdgeAgent(config)
    Authority(tmp_path, "ca")
    EdgeAgent(config).close()  # nothing was left locked


def test_the_file_is_relative_to_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    path.write_text(
        'bundle = "b"\nstate = "s"\n[cloud]\nurl = "https://c"\ncohort = "n"\ntoken = "t"\nca_file = "ca.pem"\n'
    )
    cloud = EdgeConfig.load(path).cloud
    assert cloud is not None
    assert cloud.ca_file == str(tmp_path / "ca.pem")
    path.write_text(path.read_text().replace("https://", "http://"))
    with pytest.raises(ConfigError, match=r"ca_file: expected https:// in `url`, got 'http://c'"):
        EdgeConfig.load(path)
