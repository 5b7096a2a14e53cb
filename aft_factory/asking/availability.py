"""Whether an engine answers anybody: who is asked again, who is given up, and what ends a run.

One for each engine, be it a model or a reward model. Knows no request and no journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from aft_factory.engines.engine import EngineError

T = TypeVar("T")


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
        return max(wait, min(after or 0.0, self._patience))  # Retry-After, within reason

    def outlast(self, after: float | None) -> bool:
        """Tell whether what passes after so many seconds is over by the last attempt."""
        return (after or 0.0) <= self.most * self._patience

    @property
    def _patience(self) -> float:
        return 10 * self.longest


@dataclass(slots=True, eq=False)
class Availability:
    """Asks an engine again, and finds out whether it is of any use to go on.

    Who gets no answer at any attempt is given up alone: a server may fail for one text and answer
    all others. Where several in a row are given up and nobody else got an answer meanwhile, either
    they are all at fault or the engine is. If it cannot even be reached, it is the engine; else it
    is asked something harmless, with the same patience, and what becomes of that tells.

    Attributes:
        name: What the engine is to people, such as "the model NAME".
        retries: When to ask again.
        stopping: Set once the run is asked to stop: nobody waits for another attempt then.
        reachable: Tells whether anybody is there, see `Engine.reachable`.
    """

    name: str
    retries: Retries
    stopping: asyncio.Event
    reachable: Callable[[], Awaitable[bool]]
    _answers: int = 0
    _answered: float = field(default_factory=time.monotonic)  # when the last one came
    _given_up: int = 0  # who got none since then
    _probing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def note_answer(self) -> None:
        """Take note that somebody got an answer."""
        self._answers += 1
        self._answered, self._given_up = time.monotonic(), 0

    async def insist(
        self, ask: Callable[[], Awaitable[T]], probe: Callable[[], Awaitable[object]] | None = None
    ) -> T:
        """Ask until there is an answer, or too often.

        Args:
            ask: Asks once.
            probe: Asks once for something that the engine answers if it answers anything.

        Raises:
            EngineError: If the engine refuses; of kind `retry` after the last attempt; of kind
                `fatal` if it answers nobody.
        """
        attempt, before = 0, self._answers
        while True:
            try:
                return await ask()
            except EngineError as error:
                if error.kind != "retry":
                    raise
                if self.retries.most and not self.retries.outlast(error.retry_after):
                    asked = f"{self.name} asks to wait {error.retry_after:.0f} s"
                    raise EngineError(f"{asked}: {error}", "fatal") from error
                if attempt == self.retries.most:
                    problem = f"no answer after {attempt + 1} attempts; the last: {error}"
                    if probe is not None and await self._answers_nobody(before, probe):
                        silent = f"{time.monotonic() - self._answered:.0f} s"
                        problem = f"{self.name} has answered nothing for {silent}; {problem}"
                        raise EngineError(problem, "fatal") from error
                    raise EngineError(problem, "retry") from error
                wait = self.retries.wait(attempt, error.retry_after)
            if attempt == 0:  # an answer to others before the first failure tells nothing
                before = self._answers
            attempt += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), wait)

    async def _answers_nobody(self, before: int, probe: Callable[[], Awaitable[object]]) -> bool:
        """Tell whether one who is given up is so because all are, `before` answers ago."""
        self._given_up += 1
        if self._given_up == 1:
            return False
        async with self._probing:  # one that fails ends the run, and with it all who wait here
            if self._answers > before:
                return False
            if not await self.reachable():
                return True
            try:
                await self.insist(probe)
            except EngineError as error:
                if error.kind == "fatal":
                    raise
                if error.kind == "retry":
                    return self._answers == before  # it may have answered others meanwhile
            self.note_answer()  # if only to say no
            return False
