"""The HTTP client both background threads share: requests in, bounded replies out, and an end on demand."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2

from cema.edge.answers import explain, is_web_page, page_title
from cema.edge.background import Clock
from cema.edge.proxy import environment_proxy, is_loopback, without_password
from cema.edge.retry import LinkError, parse_retry_after
from cema.edge.tls import remedy_for, verifying
from cema.errors import ConfigError
from cema.formats.draw import HEADER

__all__ = ["CloudClient", "Reply"]

logger = logging.getLogger(__name__)

_MAX_ERROR_BYTES = 64 << 10
# Bytes a second at which a request must be taken; the cloud itself ends uploads that are slower.
_LEAST_RATE = 512
# Timeouts of one read that a whole answer may take.
_WHOLE = 10
_LONGEST_ETAG = 1024
_JSON = {"Content-Type": "application/json"}


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

    @property
    def etag(self) -> str | None:
        """The entity tag; None for one that could not be sent back, which would make every later request fail."""
        etag = self.headers.get("etag", "")
        return etag if 0 < len(etag) <= _LONGEST_ETAG and etag.isascii() and etag.isprintable() else None


class CloudClient:
    """A device's connection to one cohort of its cloud.

    A proxy is taken from the environment (``https_proxy`` and its kin; see `cema.edge.proxy`) and named in the log.
    Redirects are not followed: the token would go along.

    Parameters
    ----------
    url : str
        The cloud's address; a path in it is kept as a prefix.
    cohort : str
    token : callable
        Returns the device's token; asked before every request, so that a token file may be replaced at any
        time.
    timeout : float
        Seconds that connecting, one write or one read may take; a whole answer may take ten times that.
    clock : Clock
    ca_file : str or None
        See `cema.edge.config.CloudLink`.

    Raises
    ------
    ConfigError
        When `url` is not an http or https address, there are no certificates in `ca_file`, or the environment's proxy
        cannot be used.

    Attributes
    ----------
    on_sent : callable
        Called, on the thread that sends, after samples were taken: an update may come of them.
    """

    def __init__(
        self,
        url: str,
        cohort: str,
        token: Callable[[], str],
        timeout: float,
        clock: Clock,
        *,
        ca_file: str | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigError(f"cloud.url: expected http://HOST[:PORT] or https://HOST[:PORT], got {url!r}")
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            logger.warning(
                "cloud.url %s is not encrypted: the device's token and images can be read on the way",
                without_password(url),
            )
        self._url, self._prefix = url.rstrip("/"), f"/v1/cohorts/{quote(cohort, safe='')}"
        self._token = token
        self._timeout = timeout
        self._clock = clock
        self._ca_file = ca_file
        proxy = environment_proxy(url)
        verify = verifying(ca_file, needed=proxy is not None or parts.scheme == "https")
        if proxy is not None:
            shown = without_password(url), without_password(proxy)
            logger.warning("requests to cloud.url %s go through the proxy %s", *shown)
        try:
            self._client = httpx2.Client(
                timeout=timeout,
                limits=httpx2.Limits(max_connections=4, keepalive_expiry=30.0),
                follow_redirects=False,
                proxy=proxy,
                trust_env=False,
                verify=verify,
            )
        except (ValueError, ImportError, httpx2.InvalidURL) as error:
            raise ConfigError(
                f"cloud.url: the environment's proxy {without_password(proxy or 'None')} cannot be used: {error}; "
                "set https_proxy to http://HOST:PORT, or list the cloud in no_proxy"
            ) from error
        self._lock = threading.Lock()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._closed = False
        self.on_sent: Callable[[], None] = lambda: None

    def send_samples(
        self,
        body: bytes,
        content_type: str,
        on_sending: Callable[[], None] = lambda: None,
        *,
        drawn: str | None = None,
    ) -> Reply:
        """Post a frame of samples, and which of them were drawn at random; the reply is a 200.

        `on_sending` is called before the first byte of the body is sent: not where there is no connection.
        """
        headers = {"Content-Type": content_type, **({HEADER: drawn} if drawn else {})}
        reply = self._request(
            "POST", "/samples", 1 << 20, headers=headers, content=body, on_sending=on_sending
        )
        reply = self._expect(200, reply, "/samples", "verdicts on the samples")
        self.on_sent()
        return reply

    @property
    def longest_wait(self) -> float:
        """Seconds that `latest_update` may ask the cloud to wait: half of what a whole answer may take."""
        return _WHOLE * self._timeout / 2

    def latest_update(self, etag: str | None, *, wait: float = 0.0, base: str | None = None) -> Reply:
        """Ask for the newest envelope; the reply is a 200, 204 (none yet) or 304 (still `etag`'s).

        With `wait`, a cloud that understands it keeps a 204 or 304 back for so many seconds, or until there is news.
        With `base`, it offers updates for that base alone, and names the one that the device is to have.
        """
        headers = {} if etag is None else {"If-None-Match": etag}
        query = "&".join([f"wait={wait:g}"] * bool(wait) + [f"base={base}"] * bool(base))
        path = f"/updates/latest{'?' * bool(query)}{query}"
        reply = self._request("GET", path, 64 << 10, headers=headers, patience=wait)
        if reply.status in {204, 304}:
            return reply
        return self._expect(200, reply, "/updates/latest", "an update")

    def status(self) -> Reply:
        """Ask where the cohort stands; the reply is a 200 with a JSON object."""
        return self._expect(200, self._request("GET", "/status", 1 << 20), "/status", "the cohort's status")

    def keys(self, etag: str | None) -> Reply:
        """Ask for the keys documents; the reply is a 200, 204 (none), 304 (still `etag`'s) or 404 (a cloud without)."""
        headers = {} if etag is None else {"If-None-Match": etag}
        reply = self._request("GET", "/keys", 1 << 20, headers=headers)
        if reply.status in {204, 304, 404}:
            return reply
        return self._expect(200, reply, "/keys", "keys documents")

    def send_report(self, body: bytes) -> None:
        """Post a report; a 204 says that it came."""
        reply = self._request("POST", "/reports", 4096, headers=_JSON, content=body)
        self._expect(204, reply, "/reports", "nothing more")

    def artifact(self, digest: str, max_bytes: int) -> bytes:
        """Download an artifact, reading at most one byte more than `max_bytes`."""
        path = f"/artifacts/{digest}"
        return self._expect(200, self._request("GET", path, max_bytes), path, "an update's payload").body

    def bundle_notice(self) -> Reply:
        """Ask for the bundle notice; the reply is a 200, 204 (none) or 404 (a cloud without)."""
        reply = self._request("GET", "/bundle", 64 << 10)
        if reply.status in {204, 404}:
            return reply
        return self._expect(200, reply, "/bundle", "a bundle notice")

    def bundle_piece(self, digest: str, first: int, size: int) -> bytes:
        """Download so many bytes of a bundle's file, from one of them on."""
        path = f"/bundles/{digest}"
        asked = {"Range": f"bytes={first}-{first + size - 1}"}
        reply = self._request("GET", path, size, headers=asked)
        if reply.status == 206 and reply.headers.get("content-range", "").startswith(f"bytes {first}-"):
            return reply.body[:size]
        if reply.status in {200, 206}:
            raise LinkError(
                f"expected a part of {self._prefix}{path}, got status {reply.status} and the range "
                f"{reply.headers.get('content-range')!r}: something on the way does not pass ranges on"
            )
        return self._expect(206, reply, path, "a part of a bundle").body

    def close(self) -> None:
        """End the connections, those in use included: their threads see an error at once."""
        with self._lock:
            self._closed = True
        self._shut_all()

    def release(self) -> None:
        """Free the client, once no thread uses it."""
        self._client.close()

    def _shut_all(self) -> None:
        with self._lock:
            sockets = list(self._sockets)
        for each in sockets:
            _shut(each)

    def _request(
        self,
        method: str,
        path: str,
        max_bytes: int,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        patience: float = 0.0,
        on_sending: Callable[[], None] = lambda: None,
    ) -> Reply:
        if self._closed:
            raise LinkError("the connection to the cloud is closed; the agent is shutting down")
        all_headers = {
            "Authorization": f"Bearer {self._token()}",
            # Nothing we fetch compresses, and a compressed reply could unpack beyond every limit.
            "Accept-Encoding": "identity",
            **(headers or {}),
        }
        url = f"{self._url}{self._prefix}{path}"
        shown = f"{method} {without_password(url)}"
        try:
            with (
                self._limited(shown, len(content or b"")) as sent,
                self._client.stream(
                    method,
                    url,
                    headers=all_headers,
                    content=content,
                    timeout=httpx2.Timeout(self._timeout, read=self._timeout + patience),
                    extensions={"trace": partial(self._trace_body, on_sending, sent)},
                ) as response,
            ):
                good = response.status_code in {200, 206}
                body = self._read(response, max_bytes) if good else self._read_error(response)
                return Reply(response.status_code, {k.lower(): v for k, v in response.headers.items()}, body)
        except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL) as error:
            what = str(error) or type(error).__name__
            raise LinkError(f"{shown}: {what}; {remedy_for(error, self._ca_file)}") from error

    @contextlib.contextmanager
    def _limited(self, request: str, size: int) -> Iterator[Callable[[], None]]:
        """End a request that takes too long as a whole; yields what to call once all of it was sent.

        The library's own limits are for one read or write: headers, and answers before the answer, that come a byte at
        a time would hold their thread for ever. Another request that is under way ends too, and is made again.
        """
        answer = _WHOLE * self._timeout
        deadline = _Deadline(self._shut_all)
        deadline.set(answer + size / _LEAST_RATE)
        try:
            yield lambda: deadline.set(answer)
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            if not deadline.expired:
                raise
            raise LinkError(
                f"{request}: the answer took over {answer:g} s, or the request was taken at less than "
                f"{_LEAST_RATE} bytes a second; giving up"
            ) from error
        finally:
            deadline.cancel()

    def _read(self, response: httpx2.Response, limit: int) -> bytes:
        body = bytearray()
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > limit:
                del body[limit + 1 :]
                break
        return bytes(body)

    def _read_error(self, response: httpx2.Response) -> bytes:
        """Read what there is to show; the status stands, whatever becomes of the body behind it."""
        deadline = self._clock.monotonic() + self._timeout
        body = bytearray()
        with contextlib.suppress(httpx2.HTTPError, httpx2.StreamError):
            for chunk in response.iter_raw():
                body += chunk[: _MAX_ERROR_BYTES - len(body)]
                if len(body) >= _MAX_ERROR_BYTES or self._clock.monotonic() > deadline:
                    break
        return bytes(body)

    def _trace_body(
        self, sending: Callable[[], None], sent: Callable[[], None], event: str, info: Mapping[str, Any]
    ) -> None:
        if event.endswith(".send_request_body.started"):
            sending()
        self._trace(sent, event, info)

    def _trace(self, sent: Callable[[], None], event: str, info: Mapping[str, Any]) -> None:
        if event.endswith(".send_request_body.complete"):
            sent()
        stream = info.get("return_value")
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")) and stream is not None:
            found = stream.get_extra_info("socket")
            if isinstance(found, socket.socket):
                with self._lock:
                    self._sockets.add(found)
                    closed = self._closed
                if closed:
                    _shut(found)

    def _expect(self, status: int, reply: Reply, path: str, what: str) -> Reply:
        """Return a reply with that status that is the cloud's; raise what any other one means."""
        path = f"{self._prefix}{path}"
        if reply.status == status:
            if not is_web_page(reply.body):
                return reply
            raise LinkError(
                f"expected {what}, got a web page{page_title(reply.body)}: something else answers in the "
                "cloud's place, such as the login page of a network; log in there, or check cloud.url",
                soon=True,
            )
        words = explain(reply.status, reply.headers, reply.body, f"{self._url}{path}", path)
        raise LinkError(
            f"the cloud answered {reply.status}: {words}",
            status=reply.status,
            retry_after=parse_retry_after(reply.headers.get("retry-after"), self._clock.now()),
            soon=300 <= reply.status < 400 or reply.status == 511,
        )


class _Deadline:
    """A moment at which something is done, unless it is set again or cancelled before."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._do = do
        self._timer: threading.Timer | None = None
        self.expired = False

    def set(self, seconds: float) -> None:
        self.cancel()
        self._timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), self._expire)
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self) -> None:
        self.expired = True
        self._do()


def _shut(connection: socket.socket) -> None:
    # The plain socket's method, also under TLS: nothing but the kernel may be touched from another thread.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
