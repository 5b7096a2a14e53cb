"""Stopping gracefully at Ctrl-C or SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def graceful(*stops: Callable[[], object]) -> Iterator[None]:
    """At the first Ctrl-C or SIGTERM call each of `stops`; at the second, interrupt."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    asked = False

    def handle() -> None:
        nonlocal asked
        if asked:
            if task is not None:
                task.cancel()
            return
        asked = True
        print(
            "\nstopping: waiting for the requests in flight (once more: leave them)",
            file=sys.stderr,
        )
        for stop in stops:
            stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, handle)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
