"""Asking: from a request to its reply, by way of the journal, the limit in flight and retries.

Every request of a run goes through one `Asker`. What was answered before is not asked again; what
fails for a passing reason is asked again after a while, without holding its place in flight. What
was sent is waited for and kept, even if whoever asked for it has gone: it is paid for.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

from aft_factory.asking.journal import Journal, Place
from aft_factory.asking.limiter import Limiter
from aft_factory.engines.engine import Engine, EngineError
from aft_factory.engines.sampling import Completion, Reply, Request, Usage, joined
from aft_factory.engines.together import together


@dataclass(frozen=True, slots=True)
class Retries:
    """When to ask again: waits double from `first` to `longest` seconds, with jitter.

    Attributes:
        most: How often to ask again after the first attempt.
        first: Seconds before the second attempt.
        longest: Most seconds between two.
    """

    most: int = 10
    first: float = 0.5
    longest: float = 30.0

    def wait(self, attempt: int, after: float | None) -> float:
        """Return the seconds to wait after a failed attempt, counted from 0."""
        wait: float = min(self.longest, self.first * 2 ** min(attempt, 30)) * random.uniform(0.5, 1)
        return max(wait, min(after or 0.0, 10 * self.longest))  # Retry-After, within reason


@dataclass(slots=True)
class Counts:
    """What an asker did so far.

    Attributes:
        asked: What requests took that the model answered.
        replayed: Requests answered from the journal, as they were sent.
        retried: Attempts that failed and were followed by another.
    """

    asked: Usage = Usage()  # noqa: RUF009 - frozen
    replayed: int = 0
    retried: int = 0


class Asker:
    """Asks engines, through the journal.

    To be entered as a context, as what was sent outlives who asked for it: leaving it waits for
    what is in flight or, after an error, gives it up.

    Args:
        engines: By name; the one named "" is the run's own, the others serve `Request.model`.
        journal: What was answered already; None keeps nothing.
        in_flight: Most samples in flight, of all engines together.
        retries: When to ask again.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        journal: Journal | None,
        in_flight: int,
        retries: Retries = Retries(),
    ) -> None:
        self.limiter = Limiter(in_flight)
        self.counts = Counts()
        self._engines = engines
        self._journal = journal
        self._retries = retries
        self._stopping = asyncio.Event()
        self._same: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()
        self._flying: dict[bytes, asyncio.Task[Reply]] = {}
        self._answered = time.monotonic()  # when the last request was
        self._given_up = 0  # requests since then
        self._probing = asyncio.Lock()

    async def __aenter__(self) -> Asker:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        flying = list(self._flying.values())
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

    async def ask(self, request: Request, place: Place) -> Reply:
        """Return the reply to a request.

        Where the engine gives fewer samples at a time, it is asked by several requests, each kept
        by itself; a prompt is then read, and accounted in `Usage.prompt`, as often.

        Raises:
            EngineError: If the model refuses it, or, of kind `retry`, fails at every attempt.
            Stopped: If the run was asked to stop before this request was sent.
        """
        engine = self._engines[request.model or ""]
        most = engine.most_samples or request.n
        if request.n <= most:
            return await self._ask(engine, request, place)
        parts = (
            self._ask(
                engine,
                replace(request, n=min(most, request.n - at), seed=request.seed + at),
                replace(place, slot=place.slot + at),
            )
            for at in range(0, request.n, most)
        )
        return joined(await together(parts))

    async def _ask(self, engine: Engine, request: Request, place: Place) -> Reply:
        key = request.key(engine.model)
        # Rows of equal text and id ask the same at the same time: the second waits for the first.
        async with self._same.setdefault(key, asyncio.Lock()):
            kept = self._journal.find(key) if self._journal is not None else None
            if kept is not None:
                self.counts.replayed += kept.usage.requests
                return kept
            return await self._attempts(engine, key, request, place)

    async def _attempts(self, engine: Engine, key: bytes, request: Request, place: Place) -> Reply:
        attempt, since = 0, 0.0
        while True:
            try:
                sent = self._flying.get(key)  # by one who has gone
                if sent is None:
                    await self.limiter.enter(request.n)
                    if attempt == 0:
                        since = time.monotonic()
                    sent = asyncio.create_task(self._send(engine, key, request, place))
                    self._flying[key] = sent
                    sent.add_done_callback(_forgotten)
                return await asyncio.shield(sent)
            except EngineError as error:
                if error.kind != "retry":
                    raise
                if attempt == self._retries.most:
                    raise await self._give_up(engine, error, attempt, since) from error
                if attempt == 0:  # an answer to others before this failure tells nothing
                    since = time.monotonic()
                wait = self._retries.wait(attempt, error.retry_after)
            attempt += 1
            self.counts.retried += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait)

    async def _send(self, engine: Engine, key: bytes, request: Request, place: Place) -> Reply:
        """Ask once, within the room that was taken, and keep the reply."""
        try:
            reply = _storable(await engine.sample(request))
            if self._journal is not None:
                self._journal.keep(key, place, engine.model, request, reply)
        finally:
            self.limiter.leave(request.n)
            del self._flying[key]
        self._answered, self._given_up = time.monotonic(), 0
        self.counts.asked += reply.usage
        return reply

    async def _give_up(
        self, engine: Engine, error: EngineError, attempts: int, since: float
    ) -> EngineError:
        """Say what to raise after the last attempt; if nobody gets an answer, end the run.

        A few requests may be at fault themselves, and may be all that is left of a run. So nobody
        gets an answer only if the engine cannot be reached at all either, or if as many gave up as
        may be in flight.
        """
        problem = f"no answer after {attempts + 1} attempts; the last: {error}"
        self._given_up += 1
        if self._given_up > 1 and await self._nobody_answers(engine, since):
            seconds = time.monotonic() - self._answered
            return EngineError(
                f"the model has answered nothing for {seconds:.0f} s; {problem}", "fatal"
            )
        return EngineError(problem, "retry")

    async def _nobody_answers(self, engine: Engine, since: float) -> bool:
        async with self._probing:  # one that fails ends the run, and with it all who wait here
            if self._answered >= since:
                return False
            return self._given_up > self.limiter.limit or not await engine.reachable()


def _forgotten(sent: asyncio.Task[Reply]) -> None:
    """Take note of a failure that nobody waits for any more, or Python would complain."""
    if not sent.cancelled():
        sent.exception()


def _storable(reply: Reply) -> Reply:
    """Replace what no UTF-8 file can hold: half of a surrogate pair, which JSON can spell."""
    if all(c.text.isascii() for c in reply.completions):
        return reply
    return replace(reply, completions=tuple(_cleaned(c) for c in reply.completions))


def _cleaned(completion: Completion) -> Completion:
    return replace(completion, text=completion.text.encode("utf-8", "replace").decode())
