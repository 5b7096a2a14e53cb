"""Engines on Ray: replicas of a model, or of a reward model, behind the interfaces of one.

The driver decides what is served, by its own files; each replica is checked against that. So a
journal's keys are those of a run in this process, and either goes on where the other was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from aft_factory.engines.engine import EngineError
from aft_factory.engines.gathering import gather_or_cancel
from aft_factory.engines.ray_actor import Absent
from aft_factory.engines.ray_replicas import Replicas, result
from aft_factory.engines.reward import Pair
from aft_factory.engines.sampling import Reply, Request, Told
from aft_factory.engines.vllm_loading import contents, fingerprint
from aft_factory.prompts.tokenizer import shows_system

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from aft_factory.engines.vllm_served import Served

ENGINE_FACTS = ("model", "context", "most_samples", "max_sequences")


class RayEngine:
    """An engine (`engine.Engine`) of many replicas.

    Attributes:
        count: How many replicas.
        in_flight: Samples that keep all of them busy; None where that is not known.
    """

    def __init__(self, replicas: Replicas, served: Served | None) -> None:
        assert replicas.first is not None
        facts = replicas.first.facts
        self.model: str = facts["model"] if served is None else served.identity
        self.tokenizer: PreTrainedTokenizerFast | None = None
        self.chat_template: str | None = None
        if served is not None:
            self.tokenizer, self.chat_template = served.tokenizer, served.template
        self.context: int | None = facts["context"]
        self.most_samples: int | None = facts["most_samples"]
        self.count = replicas.count
        each: int | None = facts["max_sequences"]
        # Twice what each works on at a time, so that no queue runs dry.
        self.in_flight = None if each is None else 2 * each * replicas.count
        self._replicas = replicas

    @classmethod
    async def start(
        cls,
        opening: Callable[[], Awaitable[Any]],
        count: int,
        gpus: int,
        *,
        what: str,
        served: Served | None = None,
        folders: Sequence[str] = (),
    ) -> RayEngine:
        """Begin the replicas, and wait for the first.

        Args:
            opening: Loads an engine.
            count: How many replicas.
            gpus: Of each.
            what: The model, for people.
            served: What is to be served, as it is here; None takes the replicas' word for it.
            folders: Of the model and its adapter.

        Raises:
            UsageError: If it cannot be loaded.
        """
        replicas = await Replicas.start(
            opening,
            count,
            gpus,
            what=what,
            folders=folders,
            facts=ENGINE_FACTS,
            identity=None if served is None else served.identity,
        )
        return cls(replicas, served)

    async def sample(self, request: Request) -> Reply:
        """Ask once; see `Engine.sample`."""
        reply: Reply = await self._replicas.ask(
            request.n, lambda actor: result(actor.call.remote("sample", request))
        )
        return reply

    async def stream(self, request: Request, told: Told) -> Reply:
        """Ask once, and tell of the samples while they are written; see `Engine.stream`.

        With a replica that is lost goes what it told: another one begins the texts anew.
        """
        import ray

        async def follow(actor: Any) -> Reply | EngineError | Absent:
            parts = actor.stream.options(num_returns="streaming").remote(request)
            answer: Reply | EngineError | Absent = Absent()
            try:
                async for part in parts:
                    answer = await part
                    for piece in answer if isinstance(answer, list) else ():
                        told(piece)
            except asyncio.CancelledError:
                ray.cancel(parts)
                raise
            return answer

        reply: Reply = await self._replicas.ask(request.n, follow)
        return reply

    async def reachable(self) -> bool:
        """Tell whether any replica is there, or may come."""
        return self._replicas.alive

    async def takes_system(self) -> bool:
        """Tell whether the chat template shows system messages."""
        return self.tokenizer is None or shows_system(self.tokenizer, self.chat_template)

    async def close(self) -> None:
        """End the replicas."""
        await self._replicas.close()


class RayReward:
    """A reward model (`reward.RewardModel`) of many replicas. Made by `start`."""

    def __init__(self, replicas: Replicas, name: str) -> None:
        assert replicas.first is not None
        self.model = name
        self.identity = replicas.first.identity.replace(contents(name), fingerprint(name))
        self._replicas = replicas
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def start(
        cls,
        opening: Callable[[], Awaitable[Any]],
        count: int,
        gpus: int,
        *,
        name: str,
    ) -> RayReward:
        """Begin the replicas, and wait for the first.

        Args:
            opening: Loads a reward model.
            count: How many replicas.
            gpus: Of each.
            name: Folder or name of the model.

        Raises:
            UsageError: If it cannot be loaded.
        """
        return cls(await Replicas.start(opening, count, gpus, what=name, folders=[name]), name)

    async def score(self, pairs: Sequence[Pair]) -> list[float | EngineError]:
        """Score responses; see `RewardModel`. Each replica gets as many, of all lengths."""
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][1]))
        shares = [order[i :: self._replicas.count] for i in range(self._replicas.count)]
        scores: list[Any] = [None] * len(pairs)

        async def score(share: Sequence[int]) -> None:
            asked = [pairs[i] for i in share]
            try:
                found = await self._replicas.ask(
                    len(asked), lambda actor: result(actor.call.remote("score", asked))
                )
            except EngineError as error:
                if error.kind == "fatal":
                    raise
                found = [error] * len(asked)
            for i, value in zip(share, found, strict=True):
                scores[i] = value

        await gather_or_cancel(score(share) for share in shares if share)
        return scores

    def lengths(self, pairs: Sequence[Pair]) -> list[int | None]:
        """Return the tokens of each pair; see `RewardModel`. Not from the event loop's thread."""
        asked = self._replicas.ask(0, lambda actor: result(actor.call.remote("lengths", pairs)))
        found: list[int | None] = asyncio.run_coroutine_threadsafe(asked, self._loop).result()
        return found

    async def reachable(self) -> bool:
        """Tell whether any replica is there, or may come."""
        return self._replicas.alive

    async def close(self) -> None:
        """End the replicas."""
        await self._replicas.close()
