"""What a server is doing: loading, answering or stopping, and whom it answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator

from aft_factory.serve.answering import Answering
from aft_factory.serve.metrics import Metrics
from aft_factory.serve.refusals import later
from aft_factory.serve.settings import ServeSettings


class State:
    """What all requests have in common.

    Attributes:
        settings: Of the server.
        metrics: Counts.
        answering: Answers; None while the model is loaded.
        stopping: Whether nobody new is let in.
        aborted: Set when those who are in are given up.
        under_way: How many requests are, by client.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.answering: Answering | None = None
        self.stopping = False
        self.aborted = asyncio.Event()
        self.under_way: Counter[str] = Counter()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def problem(self) -> str | None:
        """Why no request is answered now; None if they are."""
        if self.stopping:
            return "the server stops"
        if self.answering is None:
            return "the model is being loaded"
        failure = self.answering.failure
        return None if failure is None else f"the model has failed: {failure}"

    def ready(self) -> Answering:
        """Return what answers.

        Raises:
            Refusal: If nothing does now.
        """
        problem = self.problem
        if problem is not None or self.answering is None:
            raise later(str(problem), "unavailable")
        return self.answering

    @contextlib.contextmanager
    def admitted(self, client: str) -> Iterator[Answering]:
        """Let a request of a client in.

        Raises:
            Refusal: If there is no room for it.
        """
        answering = self.ready()
        total, own, queue = self.under_way.total(), self.under_way[client], self.settings.queue
        if total >= queue:
            raise later(f"{total} requests are under way already", "queue_full", 429)
        if own >= (self.settings.client_queue or -(-queue // 2)):
            raise later(f"{own} requests of yours are under way already", "queue_full", 429)
        self.under_way[client] += 1
        self._idle.clear()
        try:
            yield answering
        finally:
            self.under_way[client] -= 1
            if not self.under_way[client]:
                del self.under_way[client]
            if not self.under_way:
                self._idle.set()

    async def stop(self) -> None:
        """Let nobody in any more, and wait for who is in; after the grace, give them up."""
        self.stopping = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), self.settings.grace)
        self.aborted.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), 5.0)
