"""Scoring: a reward model that many queries ask at once, so that it can batch by length.

Knows no settings and no journal. A query whose pairs fail for a passing reason is asked again after
a while; the others go on meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from aft_factory.asking.asker import Retries
from aft_factory.asking.limiter import Stopped
from aft_factory.engines.engine import EngineError
from aft_factory.engines.scripted import CHARACTERS_PER_TOKEN
from aft_factory.inference.strategies import Conversation

if TYPE_CHECKING:
    from aft_factory.engines.reward import RewardModel

MOST_PAIRS = 1024  # scored by one call: enough to sort by length, and little to lose in a kill
MOST_SILENT = 16  # queries given up in a row that may be at fault themselves
GATHER = 0.01  # seconds to wait for other queries that come at the same time


class Scores(Protocol):
    """What scores: a reward model, or a stand-in.

    Attributes:
        model: What scores, for people.
        identity: All that decides a score, for journals.
    """

    model: str
    identity: str

    async def count(self, query: Conversation, texts: Sequence[str]) -> list[int | None]:
        """Return how many tokens are read to score each text, None of one that cannot be."""
        ...

    async def score_each(
        self, query: Conversation, texts: Sequence[str]
    ) -> list[float | EngineError]:
        """Score texts: of each the raw logit, or why it has none; implements `strategies.Score`.

        Raises:
            EngineError: If the reward model fails at every attempt.
            Stopped: If the run was asked to stop before.
        """
        ...

    def stop(self) -> None:
        """Begin nothing new; what is being scored is waited for."""
        ...


@dataclass(slots=True, eq=False)
class _Asked:
    """A query's texts, and the scores that they have got."""

    query: Conversation
    texts: Sequence[str]
    future: asyncio.Future[list[float | EngineError]]
    scores: dict[int, float | EngineError] = field(default_factory=dict)
    passing: EngineError | None = None  # why others are missing
    attempt: int = 0
    since: float = 0.0  # when the first attempt failed

    @property
    def missing(self) -> list[int]:
        """Which texts have neither a score nor a lasting reason for none."""
        return [i for i in range(len(self.texts)) if i not in self.scores]

    def fail(self, error: Exception) -> None:
        """End it, unless it has ended."""
        if not self.future.done():
            self.future.set_exception(error)


class Scorer:
    """Asks a reward model, all queries that wait together in one call; implements `Scores`.

    Args:
        reward: The model.
        retries: When to ask again for pairs that failed for a passing reason.
    """

    def __init__(self, reward: RewardModel, retries: Retries) -> None:
        self.model = reward.model
        self.identity = reward.identity
        self._reward = reward
        self._retries = retries
        self._open: set[_Asked] = set()
        self._waiting: deque[_Asked] = deque()
        self._scoring: list[_Asked] = []
        self._worker: asyncio.Task[None] | None = None
        self._stopped = False
        self._answered = time.monotonic()  # when the last score came
        self._given_up = 0  # queries since then

    async def count(self, query: Conversation, texts: Sequence[str]) -> list[int | None]:
        """Count tokens; see `Scores`."""
        pairs = [(query, text) for text in texts]
        return await asyncio.to_thread(self._reward.lengths, pairs)

    async def score_each(
        self, query: Conversation, texts: Sequence[str]
    ) -> list[float | EngineError]:
        """Score texts; see `Scores`."""
        if self._stopped:
            raise Stopped
        asked = _Asked(query, texts, asyncio.get_running_loop().create_future())
        self._open.add(asked)
        self._wait(asked)
        try:
            return await asked.future
        finally:
            self._open.discard(asked)

    def stop(self) -> None:
        """Give up what waits; see `Scores`."""
        self._stopped = True
        for asked in self._open.difference(self._scoring):
            asked.fail(Stopped())

    async def close(self) -> None:
        """Give up everything, and close the reward model."""
        if self._worker is not None:
            self._worker.cancel()
        await self._reward.close()

    def _wait(self, asked: _Asked) -> None:
        self._waiting.append(asked)
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())

    async def _work(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(GATHER)
                self._scoring = self._next()
                await self._score(self._scoring)
                # First those that have all: what becomes of the others may end everything.
                for asked in sorted(self._scoring, key=lambda asked: bool(asked.missing)):
                    await self._settle(asked)
                self._scoring = []
        except Exception as error:  # nothing can be scored any more
            for asked in self._open:
                asked.fail(error)
            self._waiting.clear()
        finally:
            self._worker = None

    def _next(self) -> list[_Asked]:
        """Take the queries that go into one call; their pairs stay together."""
        taken: list[_Asked] = []
        pairs = 0
        while self._waiting:
            asked = self._waiting[0]
            pairs += len(asked.missing)
            if taken and pairs > MOST_PAIRS:
                break
            self._waiting.popleft()
            if not asked.future.done():
                taken.append(asked)
        return taken

    async def _score(self, taken: Sequence[_Asked]) -> None:
        """Ask once for what is missing."""
        places = [(asked, i) for asked in taken for i in asked.missing]
        pairs = [(asked.query, asked.texts[i]) for asked, i in places]
        scores = await self._reward.score(pairs)
        for (asked, i), score in zip(places, scores, strict=True):
            if isinstance(score, EngineError) and score.kind == "retry":
                asked.passing = score
            else:
                asked.scores[i] = score
        if any(isinstance(score, float) for score in scores):
            self._answered, self._given_up = time.monotonic(), 0

    async def _settle(self, asked: _Asked) -> None:
        """Hand the scores out, or see to it that what failed is asked again.

        Raises:
            EngineError: Of kind `fatal`, if nothing is scored any more.
        """
        if asked.future.done():
            return
        if not asked.missing or asked.passing is None:
            asked.future.set_result([score for _, score in sorted(asked.scores.items())])
        elif self._stopped:
            asked.fail(Stopped())
        elif asked.attempt == self._retries.most:
            asked.fail(await self._give_up(asked, asked.passing))
        else:
            if asked.attempt == 0:  # scores of others before this failure tell nothing
                asked.since = time.monotonic()
            wait = self._retries.wait(asked.attempt, asked.passing.retry_after)
            asked.attempt += 1
            asyncio.get_running_loop().call_later(wait, self._wait, asked)

    async def _give_up(self, asked: _Asked, error: EngineError) -> EngineError:
        """Return what the query fails with after its last attempt; see `asking.Asker`.

        Raises:
            EngineError: Of kind `fatal`, if nobody else gets a score either.
        """
        problem = f"no score after {asked.attempt + 1} attempts; the last: {error}"
        self._given_up += 1
        silent = self._given_up > 1 and self._answered < asked.since
        if silent and (self._given_up > MOST_SILENT or not await self._reward.reachable()):
            seconds = time.monotonic() - self._answered
            raise EngineError(
                f"the reward model has scored nothing for {seconds:.0f} s; {problem}", "fatal"
            )
        return EngineError(problem, "retry")


class Longest:
    """Scores by length, without a model: to try a configuration; implements `Scores`."""

    model = identity = "longest"

    async def count(self, query: Conversation, texts: Sequence[str]) -> list[int | None]:
        """Reckon with four characters a token."""
        said = sum(len(message["content"]) for message in query)
        return [-(-(said + len(text)) // CHARACTERS_PER_TOKEN) for text in texts]

    async def score_each(
        self, query: Conversation, texts: Sequence[str]
    ) -> list[float | EngineError]:
        """Return the lengths."""
        return [float(len(text)) for text in texts]

    def stop(self) -> None:
        """Nothing waits."""
