"""Engines on Ray: replicas of a model, or of a reward model, behind the interfaces of one.

The driver decides what is served, by its own files; each replica is checked against that. So a
journal's keys are those of a run in this process, and either goes on where the other was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aft_factory.engines.engine import EngineError
from aft_factory.engines.gathering import gather_or_cancel
from aft_factory.engines.identity import contents, fingerprint
from aft_factory.engines.ray_actor import Absent, Hello
from aft_factory.engines.ray_replicas import Replicas
from aft_factory.engines.reward import Pair
from aft_factory.engines.sampling import Reply, Request, Told
from aft_factory.prompts.tokenizer import shows_system

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from aft_factory.engines.vllm_served import Served


class RayEngine(Replicas):
    """An engine (`engine.Engine`) of many replicas.

    Attributes:
        in_flight: Samples that keep all of them busy; None where that is not known.
    """

    facts = ("model", "context", "most_samples", "max_sequences")
    model: str
    context: int | None
    most_samples: int | None
    in_flight: int | None
    tokenizer: PreTrainedTokenizerFast | None = None
    chat_template: str | None = None
    tried: int = 0

    def _begun(self, first: Hello, what: str, served: Served | None) -> None:
        each: Any
        self.model, self.context, self.most_samples, each = map(first.facts.__getitem__, self.facts)
        # Twice what each works on at a time, so that no queue runs dry.
        self.in_flight = each and 2 * each * self.count
        if served is not None:
            self.model, self.tokenizer = served.identity, served.tokenizer
            self.chat_template = served.template

    async def sample(self, request: Request) -> Reply:
        """Ask once; see `Engine.sample`."""
        reply: Reply = await self.call(request.n, "sample", request)
        return reply

    async def stream(self, request: Request, told: Told) -> Reply:
        """Ask once, and tell of the samples while they are written; see `Engine.stream`.

        With a replica that is lost goes what it told: another one begins the texts anew.
        """
        import ray

        async def follow(actor: Any) -> Reply | EngineError | Absent:
            parts = actor.stream.options(num_returns="streaming").remote(request)
            answer: Any = Absent()
            try:
                async for part in parts:
                    answer = await part
                    for piece in answer if isinstance(answer, list) else ():
                        told(piece)
            except asyncio.CancelledError:
                ray.cancel(parts)
                raise
            return Absent() if isinstance(answer, list) else answer  # it ended before its reply

        reply: Reply = await self.ask(request.n, follow)
        return reply

    async def takes_system(self) -> bool:
        """Tell whether the chat template shows system messages."""
        return self.tokenizer is None or shows_system(self.tokenizer, self.chat_template)


class RayReward(Replicas):
    """A reward model (`reward.RewardModel`) of many replicas."""

    model: str
    identity: str

    def _begun(self, first: Hello, what: str, served: Served | None) -> None:
        self.model = what
        self.identity = first.identity.replace(contents(what), fingerprint(what))
        self._loop = asyncio.get_running_loop()

    async def score(self, pairs: Sequence[Pair]) -> list[float | EngineError]:
        """Score responses; see `RewardModel`. Each replica gets as many, of all lengths."""
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][1]))
        scores: list[Any] = [None] * len(pairs)

        async def score(share: Sequence[int]) -> None:
            try:
                found = await self.call(len(share), "score", [pairs[i] for i in share])
            except EngineError as error:
                if error.kind == "fatal":
                    raise
                found = [error] * len(share)
            for i, value in zip(share, found, strict=True):
                scores[i] = value

        shares = (order[i :: self.count] for i in range(min(self.count, len(pairs))))
        await gather_or_cancel(map(score, shares))
        return scores

    def lengths(self, pairs: Sequence[Pair]) -> list[int | None]:
        """Return the tokens of each pair; see `RewardModel`. Not from the event loop's thread."""
        asked = self.call(0, "lengths", pairs)
        found: list[int | None] = asyncio.run_coroutine_threadsafe(asked, self._loop).result()
        return found
