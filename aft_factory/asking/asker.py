"""Asking: from a request to its reply, by way of the journal, the limit in flight and retries.

Every request of a run goes through one `Asker`. What was answered before is not asked again; what
fails for a passing reason is asked again after a while, without holding its place in flight. What
was sent is waited for and kept, even if whoever asked for it has gone: it is paid for. A server's
asker gives it up instead (`keep_sent`), as those who come next ask for something else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from aft_factory.asking.availability import Availability, Retries
from aft_factory.asking.journal import Journal, Place
from aft_factory.asking.limiter import Limiter
from aft_factory.engines.engine import Engine, Heard, Relaying
from aft_factory.engines.gathering import gather_or_cancel
from aft_factory.engines.sampling import (
    Piece,
    Prompt,
    Reply,
    Request,
    Sampling,
    Told,
    Usage,
    joined,
    shifted,
)

PROBE = "Hello"  # what any model has an answer to


@dataclass(slots=True)
class Counts:
    """What an asker did so far.

    Attributes:
        asked: What requests took that the model answered.
        retried: Attempts that followed a failed one.
    """

    asked: Usage = Usage()  # noqa: RUF009 - frozen
    retried: int = 0


@dataclass(slots=True, eq=False)
class _Flight:
    """A request on its way to its reply, for all who asked the same meanwhile.

    Attributes:
        request: What is asked.
        place: Where in the run it belongs: that of who asked first.
        key: Names it.
        waiters: How many wait for it.
        attempts: How often it was sent.
        sent: Whether it is with the engine now.
        listeners: Those of them who hear of it while it is written.
        written: What they have heard, by sample, of its thought and of its text.
        task: What they wait for.
    """

    request: Request
    place: Place
    key: bytes
    waiters: int = 0
    attempts: int = 0
    sent: bool = False
    listeners: list[Told] = field(default_factory=list)
    written: dict[tuple[int, bool], str] = field(default_factory=dict)
    task: asyncio.Task[Reply] = field(init=False)

    def join(self, told: Told) -> None:
        """Let one more hear of it, from its beginning."""
        self.listeners.append(told)
        for (index, thought), text in self.written.items():
            told(Piece(index, text, 0, thought=thought))

    def tell(self, piece: Piece) -> None:
        """Pass on what is written."""
        part = (piece.index, piece.thought)
        before = self.written.get(part, "") if piece.start else ""
        self.written[part] = before + piece.text
        for told in self.listeners:
            told(piece)


class Asker:
    """Asks engines, through the journal.

    To be entered as a context, as what was sent outlives who asked for it: leaving it waits for
    what is in flight or, after an error, gives it up.

    Args:
        engines: By name; the one named "" is the run's own, the others serve `Request.model`.
        journal: What was answered already; None keeps nothing.
        in_flight: Most samples in flight, of all engines together.
        retries: When to ask again.
        keep_sent: Whether what was sent is kept, though nobody waits for it any more.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        journal: Journal | None,
        in_flight: int,
        retries: Retries = Retries(),  # noqa: B008 - frozen
        *,
        keep_sent: bool = True,
    ) -> None:
        self.limiter = Limiter(in_flight)
        self.counts = Counts()
        self._engines = engines
        self._journal = journal
        self._keep_sent = keep_sent
        self._stopping = asyncio.Event()
        self._flights: dict[bytes, _Flight] = {}
        self._available = {
            name: Availability(
                f"the model {engine.model}", retries, self._stopping, engine.reachable
            )
            for name, engine in engines.items()
        }

    async def __aenter__(self) -> Asker:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        flying = [flight.task for flight in self._flights.values()]
        try:
            if error is None:
                await asyncio.gather(*flying, return_exceptions=True)
        finally:  # of an error here or within
            for task in flying:
                task.cancel()
            await asyncio.gather(*flying, return_exceptions=True)

    @property
    def stopped(self) -> bool:
        """Whether the run was asked to stop."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Send nothing new; what is in flight is waited for and kept."""
        self._stopping.set()
        self.limiter.stop()

    async def ask(self, request: Request, place: Place, told: Told | None = None) -> Reply:
        """Return the reply to a request.

        Where the engine gives fewer samples at a time, it is asked by several requests, each kept
        by itself; a prompt is then read, and accounted in `Usage.prompt`, as often.

        Args:
            request: What is asked.
            place: Where it belongs.
            told: Hears of the samples while they are written; of such as were answered before, and
                of one that is on its way already to others, it need not hear anything.

        Raises:
            EngineError: If the model refuses it or, of kind `retry`, fails at every attempt; of
                kind `fatal`, if it answers nobody.
            Stopped: If the run was asked to stop before this request was sent.
        """
        most = self._engines[request.model or ""].most_samples or request.n
        if request.n <= most:
            return await self._ask(request, place, told)
        parts = (
            self._ask(
                replace(request, n=min(most, request.n - at), seed=request.seed + at),
                replace(place, slot=place.slot + at),
                shifted(told, at),
            )
            for at in range(0, request.n, most)
        )
        return joined(await gather_or_cancel(parts))

    @property
    def relays(self) -> bool:
        """Whether the run's own engine answers bodies of OpenAI's API as they come."""
        return isinstance(self._engines[""], Relaying)

    async def relay(
        self, body: dict[str, Any], sampling: Sampling, seed: int, n: int, heard: Heard | None
    ) -> dict[str, Any]:
        """Hand a body to the run's own engine, once, within the limit in flight; see `Relaying`."""
        engine = self._engines[""]
        assert isinstance(engine, Relaying)
        await self.limiter.enter(n)
        try:
            return await engine.relay(body, sampling, seed, heard)
        finally:
            self.limiter.leave(n)

    async def _ask(self, request: Request, place: Place, told: Told | None) -> Reply:
        key = request.key(self._engines[request.model or ""].model)
        flight = self._flights.get(key)  # rows of equal text and id ask the same at the same time
        if flight is None:
            kept = self._journal.find(key) if self._journal is not None else None
            if kept is not None:
                return kept
            flight = self._flights[key] = _Flight(request, place, key)
            flight.task = asyncio.create_task(self._fly(flight))
            flight.task.add_done_callback(_forgotten)
        flight.waiters += 1
        if told is not None:
            flight.join(told)
        try:
            reply = await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if told is not None:
                flight.listeners.remove(told)
            self._abandon(flight)
        return reply

    async def _fly(self, flight: _Flight) -> Reply:
        """Ask until there is an answer."""
        request = flight.request
        prompt: Prompt = PROBE
        if not isinstance(request.prompt, str):
            prompt = [{"role": "user", "content": PROBE}]
        sampling = replace(request.sampling, max_tokens=1)
        probe = Request(prompt, 1, sampling, request.seed, request.model)
        available = self._available[request.model or ""]
        try:
            return await available.insist(
                lambda: self._send(flight, request), lambda: self._send(flight, probe)
            )
        finally:
            self._land(flight)

    async def _send(self, flight: _Flight, request: Request) -> Reply:
        """Ask once, within the limit in flight: a flight's request or, counted nowhere, a probe.

        What fails is asked again only as long as somebody waits for it.
        """
        engine = self._engines[request.model or ""]
        await self.limiter.enter(request.n)
        self.counts.retried += flight.attempts > 0
        flight.attempts += 1
        flight.sent = True
        began = time.monotonic()
        try:
            if flight.listeners and request is flight.request:
                reply = _storable(await engine.stream(request, flight.tell))
            else:
                reply = _storable(await engine.sample(request))
            if request is flight.request:
                self.counts.asked += reply.usage
                if self._journal is not None:
                    seconds = round(time.monotonic() - began, 3)
                    self._journal.keep(
                        flight.key, flight.place, engine.model, request, reply, seconds
                    )
            self._available[request.model or ""].note_answer()
        finally:
            self.limiter.leave(request.n)
            flight.sent = False
            self._abandon(flight)
        return reply

    def _abandon(self, flight: _Flight) -> None:
        """Give up what nobody waits for, unless it was sent and is kept."""
        if not flight.waiters and not (flight.sent and self._keep_sent):
            flight.task.cancel()
            self._land(flight)

    def _land(self, flight: _Flight) -> None:
        """Share it with nobody who comes now; there may be another of its key already."""
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]


def _forgotten(sent: asyncio.Task[Reply]) -> None:
    """Take note of a failure that nobody waits for any more, or Python would complain."""
    if not sent.cancelled():
        sent.exception()


def _storable(reply: Reply) -> Reply:
    """Replace what no UTF-8 file can hold: half of a surrogate pair, which JSON can spell."""
    if all(c.text.isascii() for c in reply.completions):
        return reply
    whole = (replace(c, text=c.text.encode("utf-8", "replace").decode()) for c in reply.completions)
    return replace(reply, completions=tuple(whole))
