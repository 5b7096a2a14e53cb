"""The limit on samples in flight. Knows nothing of what they are."""

from __future__ import annotations

import asyncio
from collections import deque

from aft_factory.errors import AftError


class Stopped(AftError):
    """The run was asked to stop: nothing new is sent to the model."""


class Limiter:
    """At most so many samples in flight, first come first served.

    A request for n samples counts n, as an engine runs each as a sequence of its own.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self.most = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._stopped = False

    async def enter(self, n: int) -> None:
        """Wait for room for n samples and take it; one of more than the limit takes all of it.

        Raises:
            Stopped: Instead of going in, once `stop` was called.
        """
        n = min(n, self.limit)
        if self._stopped:
            raise Stopped
        if self._waiting or self.taken + n > self.limit:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((n, turn))
            try:
                await turn  # whoever wakes it has taken its room
            except asyncio.CancelledError:
                served = turn.done() and not turn.cancelled() and turn.exception() is None
                self.leave(n if served else 0)  # or who stands behind would wait on
                raise
        else:
            self.taken += n
        self.most = max(self.most, self.taken)

    def leave(self, n: int) -> None:
        """Give the room for n samples back."""
        self.taken -= min(n, self.limit)
        while self._waiting:
            wanted, turn = self._waiting[0]
            if not turn.done():
                if self.taken + wanted > self.limit:
                    return
                self.taken += wanted
                turn.set_result(None)
            self._waiting.popleft()

    def stop(self) -> None:
        """Let nobody in any more."""
        self._stopped = True
        while self._waiting:
            _, turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(Stopped())
