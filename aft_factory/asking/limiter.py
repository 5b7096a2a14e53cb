"""The limit on samples in flight. Knows nothing of what they are."""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import ContextVar

from aft_factory.errors import AftError

# For whom a task asks, where several share an engine; tasks have it from those that begin them.
client: ContextVar[str] = ContextVar("client", default="")


class Stopped(AftError):
    """The run was asked to stop: nothing new is sent to the model."""


class Limiter:
    """At most so many samples in flight: clients in turn, of each first come first served.

    A request for n samples counts n, as an engine runs each as a sequence of its own.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self.most = 0
        # By client, in the order of their turns.
        self._queues: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {}
        self._stopped = False

    @property
    def waiting(self) -> int:
        """How many requests wait for room."""
        return sum(map(len, self._queues.values()))

    async def enter(self, n: int) -> None:
        """Wait for room for n samples and take it; one of more than the limit takes all of it.

        Raises:
            Stopped: Instead of going in, once `stop` was called.
        """
        n = min(n, self.limit)
        if self._stopped:
            raise Stopped
        if self._queues or self.taken + n > self.limit:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._queues.setdefault(client.get(), deque()).append((n, turn))
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
        while self._queues:
            name, queue = next(iter(self._queues.items()))
            wanted, turn = queue[0]
            if not turn.done():
                if self.taken + wanted > self.limit:
                    return
                self.taken += wanted
                turn.set_result(None)
                del self._queues[name]  # and behind all others with what it has left
                self._queues[name] = queue
            queue.popleft()
            if not queue:
                del self._queues[name]

    def stop(self) -> None:
        """Let nobody in any more."""
        self._stopped = True
        for _, turn in (one for queue in self._queues.values() for one in queue):
            if not turn.done():
                turn.set_exception(Stopped())
        self._queues.clear()
