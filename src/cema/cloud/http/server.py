"""The server process: bind, announce, serve, stop."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from cema._util.logs import start_logging
from cema._util.machine import listening_socket
from cema.cloud.config import CloudConfig
from cema.cloud.http.app import create_app
from cema.cloud.http.connections import Connections, guarded_protocol, most_connections
from cema.cloud.http.service import Service
from cema.cloud.worker.supervisor import LocalEngine
from cema.errors import CemaError, ConfigError

__all__ = ["serve"]

log = logging.getLogger(__name__)

BACKLOG = 512
# What open requests may still take once the server was told to stop.
SHUTDOWN_SECONDS = 10


def serve(config_path: Path) -> int:
    """Serve until SIGTERM or SIGINT; ignore both from then on. For the main thread of a process that ends with it.

    Once it accepts requests, one JSON line goes to standard output:
    ``{"event": "listening", "url": "http://127.0.0.1:8080"}``. Logs go to standard error.

    Parameters
    ----------
    config_path
        The configuration file, see `CloudConfig`.

    Returns
    -------
    int
        Exit status: 0 after a requested stop; 1 when it could not start (the reason is on standard error).
    """
    start_logging("server")
    try:
        config = CloudConfig.load(config_path)
        start_logging("server", form=config.log.format, level=config.log.level)
        with _bind(config.host, config.port) as listener:
            return _serve(config, config_path, listener)
    except CemaError as error:
        print(f"cema: {error}", file=sys.stderr, flush=True)
        return 1


def _serve(config: CloudConfig, path: Path, listener: socket.socket) -> int:
    misconfigured = False

    def give_up() -> None:
        nonlocal misconfigured
        misconfigured = True
        server.should_exit = True

    app = create_app(LocalEngine(config, path.resolve(), on_misconfigured=give_up))
    connections = Connections(most_connections())
    service: Service = app.state.service
    # A connection that waits for an update, or a page that is told what happens, is not closed for a new one: the rest
    # is for everybody.
    service.announcements.most = min(service.announcements.most, connections.most // 2)
    service.live.most = min(service.live.most, connections.most // 4)

    def stop_waiting() -> None:
        service.announcements.end()
        service.live.end()

    server = _Server(
        uvicorn.Config(
            app,
            http=guarded_protocol(connections),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            ws="none",
            backlog=BACKLOG,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        ),
        on_stop=stop_waiting,
    )
    with _stopped_by_signals(server):
        server.run(sockets=[listener])
    if misconfigured:
        print("cema: the worker cannot work with this configuration; see above", file=sys.stderr, flush=True)
    return 1 if misconfigured or not server.started else 0


class _Server(uvicorn.Server):
    """Announces its address, and ends the application also when it is hurried.

    Parameters
    ----------
    config : uvicorn.Config
    on_stop : callable
        Called on the event loop before open requests are waited for.
    """

    def __init__(self, config: uvicorn.Config, *, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            url = _url(sockets[0].getsockname())
            print(json.dumps({"event": "listening", "url": url}), flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_stop()
        await super().shutdown(sockets)
        # When forced, uvicorn leaves the application to be cancelled with the event loop. This one still has a worker
        # to end and a store to close. Asked for twice, the application is not shut down twice.
        if self.force_exit:
            await self.lifespan.shutdown()


@contextlib.contextmanager
def _stopped_by_signals(server: uvicorn.Server) -> Iterator[None]:
    """Stop the server on SIGTERM and SIGINT, and let neither change the exit status once it has stopped.

    While it runs, uvicorn has handlers of its own: a second Ctrl-C means now, and SIGTERM may well come twice for one
    stop, from a supervisor and from ``--stop-on-eof``. After that it restores the handlers that it found and sends
    itself every signal again: without these here, the process would die of a signal that it has already obeyed.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)


def _bind(host: str, port: int) -> socket.socket:
    """Take the address before anything else starts, so that a port in use is one clear error.

    It does not listen yet: what is configured is checked first, and until then a connection is refused.
    """
    try:
        return listening_socket(host, port)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error}; stop what uses it, or set another host or port "
            "(0 takes a free one)"
        ) from error


def _url(address: tuple[Any, ...]) -> str:
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"http://{host}:{address[1]}"
