"""Scoring: a reward model that many queries ask at once, so that it can batch by length."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from aft_factory.asking import Retries
from aft_factory.engines import EngineError
from aft_factory.engines.vllm_loading import fingerprint
from aft_factory.sampling import Completion
from aft_factory.strategies import Conversation

if TYPE_CHECKING:
    from aft_factory.engines.reward import Pair, RewardModel

RewardEngine = Literal["transformers", "vllm"]
ScoreEach = Callable[[Conversation, Sequence[str]], Awaitable[list[float | EngineError]]]

MOST_PAIRS = 1024  # scored by one call: enough to sort by length, and little to lose in a kill
GATHER = 0.01  # seconds to wait for other queries that come at the same time


class Scorer:
    """Asks a reward model, all queries that wait together in one call.

    Args:
        reward: The model.
        retries: When to ask again for a pair that failed for a passing reason.
    """

    def __init__(self, reward: RewardModel, retries: Retries) -> None:
        self.model = fingerprint(reward.model)  # a folder may be trained anew
        self._reward = reward
        self._retries = retries
        self._waiting: list[tuple[Pair, asyncio.Future[float | EngineError]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def score(self, query: Conversation, drafts: Sequence[Completion]) -> list[float]:
        """Score drafts of an answer; implements `strategies.Score`.

        Raises:
            EngineError: If one of them has no score.
        """
        scores = await self.score_each(query, [draft.text for draft in drafts])
        for score in scores:
            if isinstance(score, EngineError):
                raise score
        return [score for score in scores if not isinstance(score, EngineError)]

    async def score_each(
        self, query: Conversation, texts: Sequence[str]
    ) -> list[float | EngineError]:
        """Score texts: of each the raw logit, or why it has none.

        Raises:
            EngineError: Of kind `fatal`, if nothing can be scored.
        """
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[float | EngineError]] = [loop.create_future() for _ in texts]
        self._waiting += zip(((query, text) for text in texts), futures, strict=True)
        if self._worker is None:
            self._worker = loop.create_task(self._work())
        return list(await asyncio.gather(*futures))

    async def _work(self) -> None:
        batch: list[tuple[Pair, asyncio.Future[float | EngineError]]] = []
        try:
            while self._waiting:
                await asyncio.sleep(GATHER)
                batch, self._waiting = self._waiting[:MOST_PAIRS], self._waiting[MOST_PAIRS:]
                scores = await self._scores([pair for pair, _ in batch])
                for (_, future), score in zip(batch, scores, strict=True):
                    if not future.done():
                        future.set_result(score)
        except Exception as error:
            for _, future in [*batch, *self._waiting]:
                if not future.done():
                    future.set_exception(error)
            self._waiting = []
        finally:
            self._worker = None

    async def _scores(self, pairs: Sequence[Pair]) -> list[float | EngineError]:
        scores = await self._reward.score(pairs)
        for attempt in range(self._retries.most):
            again = [
                i for i, s in enumerate(scores) if isinstance(s, EngineError) and s.kind == "retry"
            ]
            if not again:
                break
            await asyncio.sleep(self._retries.wait(attempt, None))
            second = await self._reward.score([pairs[i] for i in again])
            for i, score in zip(again, second, strict=True):
                scores[i] = score
        return scores


@contextlib.asynccontextmanager
async def opened_scorer(
    model: str | None,
    url: str | None,
    *,
    timeout: float,
    retries: int,
    engine: RewardEngine = "transformers",
    engine_args: Mapping[str, Any] | None = None,
) -> AsyncIterator[Scorer]:
    """Open a reward model, and close it in the end.

    Args:
        model: Folder or hub name; its tokenizer is read too where a server scores.
        url: vLLM server of it; None loads it into this process.
        timeout: Seconds until a server's answer is given up.
        retries: Attempts after a failed one.
        engine: What runs it in this process.
        engine_args: Of vLLM, passed through.
    """
    from aft_factory.engines.reward import DEFAULT_REWARD_MODEL, TransformersReward

    reward: RewardModel
    name = model or DEFAULT_REWARD_MODEL
    if url is None and engine == "vllm":
        from aft_factory.engines.vllm_reward import VllmReward

        reward = await VllmReward.start(name, engine_args=engine_args)
    elif url is None:
        reward = await asyncio.to_thread(TransformersReward.load, name)
    else:
        from aft_factory.engines.reward_server import ServerReward

        reward = await ServerReward.connect(url, model, timeout=timeout, tokenizer=model)
    try:
        yield Scorer(reward, Retries(retries))
    finally:
        await reward.close()


async def longest(query: Conversation, drafts: Sequence[Completion]) -> list[float]:
    """Score by length, without a model: to try a configuration."""
    return [float(len(draft.text)) for draft in drafts]
