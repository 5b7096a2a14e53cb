"""Scoring: a reward model that many queries ask at once, so that it can batch by length.

Knows no settings and no journal. A query whose pairs fail for a passing reason is asked again after
a while; the others go on meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from aft_factory.asking.availability import Availability, Retries
from aft_factory.asking.limiter import Stopped
from aft_factory.engines.engine import EngineError
from aft_factory.engines.scripted import CHARACTERS_PER_TOKEN
from aft_factory.inference.strategy import Conversation

if TYPE_CHECKING:
    from aft_factory.engines.reward import RewardModel

MOST_PAIRS = 1024  # scored by one call: enough to sort by length, and little to lose in a kill
GATHER = 0.01  # seconds to wait for other queries that come at the same time
PROBE: Conversation = [{"role": "user", "content": "Hello"}]  # scored with itself as the answer


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
            EngineError: If the reward model fails at every attempt, or answers nobody.
            Stopped: If the run was asked to stop before.
        """
        ...

    def stop(self) -> None:
        """Begin nothing new; what is being scored is waited for."""
        ...


@dataclass(slots=True, eq=False)
class _Asked:
    """A query's texts, and the scores that they have got.

    Attributes:
        query: The conversation.
        texts: Responses to it.
        scores: By place in `texts`: the score, or a lasting reason for none.
        passing: Why others are missing.
        done: Ends with the call that they go into.
    """

    query: Conversation
    texts: Sequence[str]
    scores: dict[int, float | EngineError] = field(default_factory=dict)
    passing: EngineError | None = None
    done: asyncio.Future[None] = field(init=False)

    @property
    def missing(self) -> list[int]:
        """Which texts have neither a score nor a lasting reason for none."""
        return [i for i in range(len(self.texts)) if i not in self.scores]

    def end(self, error: Exception | None) -> None:
        """End the attempt, unless who asked has gone."""
        if not self.done.done():
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)


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
        self._stopping = asyncio.Event()
        self._available = Availability(
            f"the reward model {reward.model}", retries, self._stopping, reward.reachable
        )
        self._waiting: deque[_Asked] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def count(self, query: Conversation, texts: Sequence[str]) -> list[int | None]:
        """Count tokens; see `Scores`."""
        pairs = [(query, text) for text in texts]
        return await asyncio.to_thread(self._reward.lengths, pairs)

    async def score_each(
        self, query: Conversation, texts: Sequence[str]
    ) -> list[float | EngineError]:
        """Score texts; see `Scores`."""
        asked, probe = _Asked(query, texts), _Asked(PROBE, [PROBE[0]["content"]])
        await self._available.insist(lambda: self._ask(asked), lambda: self._ask(probe))
        return [score for _, score in sorted(asked.scores.items())]

    def stop(self) -> None:
        """Give up what waits; see `Scores`."""
        self._stopping.set()
        for asked in self._waiting:
            asked.end(Stopped())

    async def close(self) -> None:
        """Give up everything, and close the reward model."""
        if self._worker is not None:
            self._worker.cancel()
        await self._reward.close()

    async def _ask(self, asked: _Asked) -> None:
        """Have what is missing scored, in one call with what others ask.

        Raises:
            EngineError: Of kind `retry`, if some is missing still; of kind `fatal`.
            Stopped: If the run was asked to stop.
        """
        if self._stopping.is_set():
            raise Stopped
        asked.done = asyncio.get_running_loop().create_future()
        self._waiting.append(asked)
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        await asked.done

    async def _work(self) -> None:
        taken: list[_Asked] = []
        try:
            while self._waiting:
                await asyncio.sleep(GATHER)
                taken = self._next()
                await self._score(taken)
                for asked in taken:
                    asked.end(asked.passing if asked.missing else None)
        except Exception as error:  # nothing can be scored any more
            for asked in (*taken, *self._waiting):
                asked.end(error)
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
            if not asked.done.done():
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
            self._available.note_answer()


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
