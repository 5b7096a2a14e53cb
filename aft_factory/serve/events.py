"""Server-sent events on their way from what makes them to what sends them. Knows no HTTP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

SILENCE = 15.0  # seconds between two signs of life: proxies cut silent connections
ALIVE = b": keep-alive\n\n"  # a comment, which clients pass over


def event(data: bytes) -> bytes:
    """Return an event as it is sent."""
    return b"data: " + data + b"\n\n"


class Events:
    """A queue of events, and of its end."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._begun = asyncio.Event()

    def put(self, data: bytes) -> None:
        """Add an event."""
        self._queue.put_nowait(event(data))
        self._begun.set()

    def end(self, _: object = None) -> None:
        """Let `sendable` come to an end behind what is there."""
        self._queue.put_nowait(None)
        self._begun.set()

    async def begun(self, seconds: float) -> None:
        """Wait for the first event or the end, but no longer than so many seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._begun.wait(), seconds)

    async def sendable(self) -> AsyncIterator[bytes]:
        """Go through the events up to the end, all that are there at a time, as bytes to send.

        Where nothing happens for a while, it is a sign of life.
        """
        while True:
            try:
                found = [await asyncio.wait_for(self._queue.get(), SILENCE)]
            except TimeoutError:
                yield ALIVE
                continue
            while not self._queue.empty():
                found.append(self._queue.get_nowait())
            some = b"".join(one for one in found if one is not None)
            if some:
                yield some
            if None in found:
                return
