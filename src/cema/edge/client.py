"""The HTTP client both background threads share: requests in, bounded replies out, and an end on demand."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import ssl
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2
import msgspec

from cema.edge.background import Clock
from cema.edge.retry import LinkError, parse_retry_after
from cema.errors import ConfigError

__all__ = ["CloudClient", "Reply"]

logger = logging.getLogger(__name__)

_MAX_ERROR_BYTES = 64 << 10


@dataclass(frozen=True)
class Reply:
    """A reply, read to its end or to its limit.

    Attributes
    ----------
    status : int
    headers : Mapping of str to str
        Names in lower case.
    body : bytes
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class CloudClient:
    """A device's connection to one cohort of its cloud.

    Proxies are taken from the environment (``https_proxy`` and its kin), except for a cloud on this machine,
    which no proxy could reach.

    Parameters
    ----------
    url : str
        The cloud's address; a path in it is kept as a prefix.
    cohort : str
    token : callable
        Returns the device's token; asked before every request, so that a token file may be replaced at any
        time.
    timeout : float
        Seconds that connecting, one write or one read may take; a whole reply may take ten times that.
    clock : Clock

    Raises
    ------
    ConfigError
        When `url` is not an http or https address.
    """

    def __init__(self, url: str, cohort: str, token: Callable[[], str], timeout: float, clock: Clock) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigError(f"cloud.url: expected http://HOST[:PORT] or https://HOST[:PORT], got {url!r}")
        local = _is_loopback(parts.hostname)
        if parts.scheme == "http" and not local:
            logger.warning(
                "cloud.url %s is not encrypted: the device's token and images can be read on the way", url
            )
        self._base = f"{url.rstrip('/')}/v1/cohorts/{quote(cohort, safe='')}"
        self._token = token
        self._timeout = timeout
        self._clock = clock
        self._client = httpx2.Client(
            timeout=timeout,
            limits=httpx2.Limits(max_connections=4, keepalive_expiry=30.0),
            follow_redirects=False,
            trust_env=not local,
            verify=_tls(needed=not local or parts.scheme == "https"),
        )
        self._lock = threading.Lock()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._closed = False

    def send_samples(self, body: bytes, content_type: str) -> Reply:
        """Post a frame of samples; the reply is a 200."""
        headers = {"Content-Type": content_type}
        return self._expect(200, self._request("POST", "/samples", 1 << 20, headers=headers, content=body))

    def latest_update(self, etag: str | None) -> Reply:
        """Ask for the newest envelope; the reply is a 200, 204 (none yet) or 304 (still `etag`'s)."""
        headers = {} if etag is None else {"If-None-Match": etag}
        reply = self._request("GET", "/updates/latest", 64 << 10, headers=headers)
        return reply if reply.status in {204, 304} else self._expect(200, reply)

    def artifact(self, digest: str, max_bytes: int) -> bytes:
        """Download an artifact, reading at most one byte more than `max_bytes`."""
        return self._expect(200, self._request("GET", f"/artifacts/{digest}", max_bytes)).body

    def close(self) -> None:
        """End the connections, those in use included: their threads see an error at once."""
        with self._lock:
            self._closed = True
            sockets = list(self._sockets)
        for each in sockets:
            _shut(each)

    def release(self) -> None:
        """Free the client, once no thread uses it."""
        self._client.close()

    def _request(
        self,
        method: str,
        path: str,
        max_bytes: int,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
    ) -> Reply:
        if self._closed:
            raise LinkError("the connection to the cloud is closed; the agent is shutting down")
        all_headers = {
            "Authorization": f"Bearer {self._token()}",
            # Nothing we fetch compresses, and a compressed reply could unpack beyond every limit.
            "Accept-Encoding": "identity",
            **(headers or {}),
        }
        try:
            with self._client.stream(
                method,
                self._base + path,
                headers=all_headers,
                content=content,
                extensions={"trace": self._trace},
            ) as response:
                limit = max_bytes if response.status_code == 200 else _MAX_ERROR_BYTES
                body = self._read(response, limit)
                return Reply(response.status_code, {k.lower(): v for k, v in response.headers.items()}, body)
        except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL) as error:
            what = str(error) or type(error).__name__
            raise LinkError(
                f"{method} {self._base}{path}: {what}; is the cloud running and reachable?"
            ) from error

    def _read(self, response: httpx2.Response, limit: int) -> bytes:
        deadline = self._clock.monotonic() + 10 * self._timeout
        body = bytearray()
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > limit:
                del body[limit + 1 :]
                break
            if self._clock.monotonic() > deadline:
                raise LinkError(
                    f"{response.request.url}: the reply took over {10 * self._timeout:g} s; giving up"
                )
        return bytes(body)

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        stream = info.get("return_value")
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")) and stream is not None:
            found = stream.get_extra_info("socket")
            if isinstance(found, socket.socket):
                with self._lock:
                    self._sockets.add(found)
                    closed = self._closed
                if closed:
                    _shut(found)

    def _expect(self, status: int, reply: Reply) -> Reply:
        if reply.status == status:
            return reply
        raise LinkError(
            f"the cloud answered {reply.status}: {_explanation(reply)}",
            status=reply.status,
            retry_after=parse_retry_after(reply.headers.get("retry-after"), self._clock.now()),
        )


def _tls(*, needed: bool) -> ssl.SSLContext:
    """Return what verifies servers; reading the authorities takes long, and plain HTTP does without."""
    if not needed:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody
    return httpx2.create_ssl_context()  # with SSL_CERT_FILE, which `trust_env` would switch off too


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _shut(connection: socket.socket) -> None:
    # The plain socket's method, also under TLS: nothing but the kernel may be touched from another thread.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


class _Error(msgspec.Struct):
    code: str = ""
    message: str = ""
    remedy: str = ""


class _ErrorBody(msgspec.Struct):
    error: _Error


_REMEDIES = {
    401: "check cloud.token or cloud.token_file",
    403: "the token is revoked or belongs to another cohort",
    404: "check cloud.url and cloud.cohort",
}


def _explanation(reply: Reply) -> str:
    """Put the server's error into one line, whatever it sent."""
    try:
        error = msgspec.json.decode(reply.body, type=_ErrorBody).error
        parts = [error.message or error.code, error.remedy]
    except msgspec.MsgspecError:
        parts = [reply.body[:200].decode("utf-8", "replace").strip()]
    parts.append(_REMEDIES.get(reply.status, ""))
    return "; ".join(part for part in parts if part) or "no explanation"
