"""The worker process: ``python -m cema.cloud.worker.process --config FILE``.

It ends when its parent does: it holds the read end of a pipe as standard input, and the kernel closes the
other end however the parent dies. A step that is interrupted was not committed and is done again.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from cema._util.events import report
from cema._util.lifetime import on_eof
from cema._util.logs import start_logging
from cema._util.memory import keep_freed_memory
from cema._util.names import import_from_here
from cema.cloud import events
from cema.cloud.config import CloudConfig
from cema.cloud.store.base import Fenced
from cema.errors import CemaError, ConfigError

__all__ = ["EXIT_CONFIG", "EXIT_FENCED", "main"]

log = logging.getLogger(__name__)

# Exit statuses that the engine understands: sysexits.h's EX_CONFIG, and EX_TEMPFAIL for "another took over".
EXIT_CONFIG = 78
EXIT_FENCED = 75
# What a step may still take once the parent is gone.
GRACE_SECONDS = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the worker until standard input ends; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m cema.cloud.worker.process", description=main.__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the cloud's configuration (TOML)")
    parser.add_argument(
        "--moved",
        action="append",
        default=[],
        metavar="fd:A=fd:B",
        help="a passphrase that the configuration has at descriptor A is at B in this process",
    )
    options = parser.parse_args(arguments)
    moved = dict(text.split("=", 1) for text in options.moved)
    start_logging("worker")
    keep_freed_memory()
    stop, working = threading.Event(), threading.Event()
    import_from_here()
    # Before torch is loaded, which takes seconds in which the parent may die too.
    on_eof(lambda: _end(stop, working))
    from cema.cloud.worker.rounds import run  # noqa: PLC0415

    try:
        config = CloudConfig.load(options.config)
        start_logging("worker", form=config.log.format, level=config.log.level)
        run(config, stop, working, moved=moved, reread=lambda: CloudConfig.load(options.config))
    except Fenced as error:
        report(log, events.WORKER_FENCED, error=str(error))
        return EXIT_FENCED
    except ConfigError as error:
        report(log, events.WORKER_MISCONFIGURED, error=str(error))
        return EXIT_CONFIG
    except CemaError as error:
        report(log, events.WORKER_FAILED, error=str(error))
        return 1
    return 0


def _end(stop: threading.Event, working: threading.Event) -> None:
    """End the process: at once, or after the present step where one may be going on."""
    stop.set()
    if working.is_set():
        time.sleep(GRACE_SECONDS)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
