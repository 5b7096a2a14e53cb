"""The contenders of `runner.py`, and the engine that all of them ask."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aft_factory.asking.asker import Asker
from aft_factory.asking.journal import Journal
from aft_factory.engines.sampling import Reply, Request, identity_seed
from aft_factory.engines.vllm_engine import VllmEngine
from aft_factory.inference.drafting_options import DraftingOptions
from aft_factory.inference.outcome import Outcome
from aft_factory.inference.queries import Query
from aft_factory.inference.runner import Runner, window
from aft_factory.inference.strategies import STRATEGIES
from aft_factory.prompts.fitting import Fitter
from aft_factory.prompts.rendering import with_aggregator
from aft_factory.prompts.tokenizer import tokenizer_markers

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput

BATCH = 8  # of the published code
Answers = dict[str, str]  # final answers by query


@dataclass
class Spent:
    """What the engine did during one turn."""

    asked: list[tuple[list[int], Request, int]] = field(default_factory=list)
    read: int = 0
    cached: int = 0
    written: int = 0
    running: float = 0.0  # seconds, summed over the samples


class Measured(VllmEngine):
    """The real engine; only gives each sample a length of its own, and notes what was asked."""

    lengths: Sequence[int] = ()
    spent = Spent()
    shares_prefixes = True

    def _prompt(self, ids: list[int]) -> Any:
        prompt = super()._prompt(ids)
        if not self.shares_prefixes:  # a salt of its own keeps a prompt to itself
            prompt["cache_salt"] = f"{len(self.spent.asked)}"
        return prompt

    async def _one(self, ids: list[int], request: Request, index: int) -> RequestOutput:
        self.spent.asked.append((ids, request, index))
        length = self.lengths[(request.seed + index) % len(self.lengths)]
        sampling = replace(request.sampling, max_tokens=length, extra={"ignore_eos": True})
        output = await super()._one(ids, replace(request, sampling=sampling), index)
        self.spent.read += len(ids)
        self.spent.cached += output.num_cached_tokens or 0
        self.spent.written += len(output.outputs[0].token_ids)
        times: Any = output.metrics
        self.spent.running += times.last_token_ts - times.scheduled_ts
        return output

    async def replay(self, asked: Sequence[tuple[list[int], Request, int]]) -> None:
        """Ask for all samples at once."""
        await asyncio.gather(*(self._one(*one) for one in asked))

    async def forget(self) -> None:
        """Empty the prefix cache and begin to count anew."""
        assert await self._llm.reset_prefix_cache(), "vLLM is still busy"
        self.spent = Spent()


@dataclass(frozen=True)
class Work:
    """What all contenders do."""

    engine: Measured
    queries: list[Query]
    width: int
    layers: int
    settings: DraftingOptions
    in_flight: int

    async def layer_by_layer(self, queries: Sequence[Query], *, copies: bool) -> Answers:
        """Wait for all queries in every layer; ask with n=K, or with K copies of every prompt."""
        assert self.engine.tokenizer is not None
        markers = tokenizer_markers(self.engine.tokenizer, self.engine.chat_template)
        drafts: list[list[str]] = [[] for _ in queries]
        for layer in range(self.layers + 1):
            n = self.width if layer < self.layers else 1
            requests = [
                Request(
                    with_aggregator(query.turns[0], before, self.settings.template),
                    *(n, self.settings.proposal),
                    identity_seed(self.settings.seed, query.id, 0, layer, 0, 0),
                )
                for query, before in zip(queries, drafts, strict=True)
            ]
            if copies:
                requests = [replace(r, n=1, seed=r.seed + i) for i in range(n) for r in requests]
            replies = await asyncio.gather(*map(self.engine.sample, requests))
            drafts = [
                [markers.sanitise(text) for text in texts]
                for texts in _by_query(replies, len(queries))
            ]
        return {query.id: texts[0] for query, texts in zip(queries, drafts, strict=True)}

    async def lock_step(self) -> Answers:
        """As the published code: batch after batch."""
        answers: Answers = {}
        for start in range(0, len(self.queries), BATCH):
            batch = self.queries[start : start + BATCH]
            answers |= await self.layer_by_layer(batch, copies=True)
        return answers

    async def as_published(self) -> Answers:
        """The same without prefix caching, which the published code did not switch on."""
        self.engine.shares_prefixes = False
        try:
            return await self.lock_step()
        finally:
            self.engine.shares_prefixes = True

    async def ours(self) -> Answers:
        """As `stage.job.Job`, less reading and writing of files."""
        engine = self.engine
        assert engine.tokenizer is not None
        assert engine.context
        assert engine.chat_template
        fitter = Fitter(
            engine.tokenizer, engine.chat_template, engine.context, self.settings.template
        )
        outcomes: dict[str, Outcome] = {}
        with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal") as journal:
            asker = Asker({"": engine}, journal, self.in_flight)
            options = {"width": self.width, "layers": self.layers}
            fitters = {"": fitter}
            runner = Runner(
                STRATEGIES["propose_and_aggregate"],
                options,
                self.settings,
                asker,
                engine.model,
                fitters,
            )
            fingerprint = runner.fingerprint

            def keep(query: Query, outcome: Outcome) -> None:
                key = runner.outcome_key(query, fingerprint)
                journal.keep_outcome(key, outcome, done=True)
                outcomes[query.id] = outcome

            for query in self.queries:
                journal.keep_query(query.id, query.turns)
            async with asker:
                await runner.answer_all(self.queries, window(self.in_flight), keep)
        return {name: outcome.answers[0] for name, outcome in outcomes.items()}


def _by_query(replies: Sequence[Reply], count: int) -> list[list[str]]:
    """Gather the drafts of each query: replies stand query by query, copies behind all of them."""
    return [
        [c.text for reply in replies[i::count] for c in reply.completions] for i in range(count)
    ]
