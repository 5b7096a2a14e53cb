"""The inference algorithms: from a query to its answer, each a coroutine that reads like its paper.

Pure: a strategy is handed `sample`, which asks the model and is bound to one query's identity; it
never builds a model, a prompt or a seed. A layer is one round; every draft has its place, (layer,
slot), which is all that its seed depends on. To add a strategy: one coroutine and its `Strategy` in
`STRATEGIES`, which is all that the rest of the house knows of it.

    width K     drafts per layer (for RSA the population N, for self_moa_seq the samples N)
    layers L    rounds of aggregation
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, Protocol

from aft_factory.engines.engine import EngineError
from aft_factory.engines.sampling import Completion
from aft_factory.errors import NoAnswer
from aft_factory.inference.answers import extract_number, majority
from aft_factory.records.messages import Message

Conversation = Sequence[Message]
# From a conversation and texts that answer it: the score of each, or why it has none.
Score = Callable[[Conversation, Sequence[str]], Awaitable[Sequence[float | EngineError]]]


class Sample(Protocol):
    """A(r | q, P): draws drafts for a query, after reading drafts of the layer before."""

    def __call__(
        self,
        query: Conversation,
        drafts: Sequence[Completion] = (),
        *,
        layer: int,
        slot: int = 0,
        n: int = 1,
        final: bool = False,
        model: str | None = None,
        whole: bool = True,
    ) -> Coroutine[Any, Any, list[Completion]]:
        """Draw n drafts at the places (layer, slot) .. (layer, slot + n - 1).

        Args:
            query: The conversation to answer.
            drafts: What to aggregate; none asks the plain query.
            layer: Round, from 0.
            slot: Place of the first draft in its layer.
            n: How many.
            final: Decode under the settings of the final layer: the answer is among these.
            model: Which of several models.
            whole: These are a whole layer; else `require` is to be told of it when it is.

        Returns:
            The usable drafts: at most n, as empty ones may be left out; of one final draft, that.
        """
        ...

    def require(self, drafts: Sequence[Completion], n: int, *, layer: int) -> None:
        """Fail the query if of n drafts of a layer fewer are usable than the run's setting."""
        ...

    def random(self, layer: int, slot: int) -> random.Random:
        """Return the source of chance of a place, the same in every run."""
        ...

    def note(self, layer: int, slot: int, event: str) -> None:
        """Record the use of a policy at a place; the summary counts events of a name."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What a strategy found.

    Attributes:
        completion: The answer.
        details: How it was chosen, such as scores or votes.
    """

    completion: Completion
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Strategy:
    """An inference algorithm, and all that is to be known of it.

    Attributes:
        name: As users type it.
        run: The coroutine: `run(query, sample, **options) -> Answer`.
        options: What can be set, with its defaults.
        fixed: Options of `run` that cannot: what makes it this one and no other.
        has_final: Whether its last layer is decoded by settings of its own; else its one layer is
            the final one, and what is set for drafts holds for the answer.
        single: Whether its last layer is one text, which is the answer; else it chooses among them.
        needs: What `run` is handed besides: `proposals` that the row brings, `score`, `models`.
        flops: Of one query by appendix C of 2501.11877, from all options, in the FLOPs of one
            completion; None for a strategy that it does not cover.
    """

    name: str
    run: Callable[..., Coroutine[Any, Any, Answer]]
    options: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    has_final: bool = True
    single: bool = True
    needs: frozenset[str] = frozenset()
    flops: Callable[..., int] | None = None

    def settled(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return all options: those given, and its own where nothing (None) was."""
        given = {name: value for name, value in given.items() if value is not None}
        return {**self.options, **given, **self.fixed}


async def propose_and_aggregate(
    query: Conversation, sample: Sample, *, width: int, layers: int
) -> Answer:
    """AFT (arXiv 2501.11877, section 3.3): P(0) ~ A(r | q), P(l+1) ~ A(r | q, P(l)).

    Each layer has K drafts, the last one; with L = 0 the model just answers. K = 1 revises one
    draft L times (`sequential_revision`), L = 1 aggregates K drafts once (`parallel_sampling`).
    """
    drafts: list[Completion] = []
    for layer in range(layers):
        drafts = await sample(query, drafts, layer=layer, n=width)
    [final] = await sample(query, drafts, layer=layers, final=True)
    return Answer(final)


async def best_of_n(query: Conversation, sample: Sample, *, width: int, score: Score) -> Answer:
    """Best-of-N: of K drafts the one that a reward model scores highest (2501.11877, table 5)."""
    drafts = await sample(query, layer=0, n=width, final=True)
    best, scores, problems = await scored(query, sample, drafts, score)
    # One text, as files of rows want one type for a column: an empty list has none.
    return Answer(drafts[best], {"scores": scores, "problem": problems[0] if problems else ""})


async def majority_vote(query: Conversation, sample: Sample, *, width: int) -> Answer:
    """Self-consistency (2203.11171): of K drafts the first with the commonest final number."""
    return _voted(await sample(query, layer=0, n=width, final=True))


async def self_moa_seq(query: Conversation, sample: Sample, *, width: int, window: int) -> Answer:
    """Self-MoA-Seq (2502.00674, section 5): slide a window over N drafts, carrying the synthesis.

    Each step aggregates the last step's result and the next W - 1 drafts (the first step, W).
    """
    drafts = await sample(query, layer=0, n=width)
    best, rest = drafts[:1], drafts[1:]
    layer = 1
    while True:
        now, rest = [*best, *rest[: window - 1]], rest[window - 1 :]
        best = await sample(query, now, layer=layer, final=not rest)
        if not rest:
            return Answer(best[0])
        layer += 1


async def rsa(
    query: Conversation, sample: Sample, *, width: int, subset: int, layers: int
) -> Answer:
    """Recursive self-aggregation (2509.26626): each member of P(t) aggregates K of the N of P(t-1).

    A member is asked as soon as its own parents are done. The answer is the first member of the
    last population, which is the final layer, with the commonest final number.
    """
    populations: list[list[asyncio.Task[list[Completion]]]] = []

    async def member(t: int, i: int) -> list[Completion]:
        ask = partial(sample, query, layer=t, slot=i, whole=False, final=t == layers)
        if t == 0:
            return await ask()
        parents = sample.random(t, i).sample(populations[t - 1], min(subset, width))
        drafts = list(chain.from_iterable([await parent for parent in parents]))
        return await ask(drafts=drafts) if drafts else []

    async with asyncio.TaskGroup() as group:
        for t in range(layers + 1):
            populations.append([group.create_task(member(t, i)) for i in range(width)])
    last = list(chain.from_iterable(task.result() for task in populations[-1]))
    sample.require(last, width, layer=layers)
    return _voted(last)


async def moa(
    query: Conversation,
    sample: Sample,
    *,
    models: Sequence[str],
    width: int,
    layers: int,
) -> Answer:
    """Mixture-of-Agents (2406.04692): every layer asks each proposer; the run's model aggregates.

    K counts the drafts of each proposer.
    """
    drafts: list[Completion] = []
    for layer in range(layers):
        ask = partial(sample, query, drafts, layer=layer, n=width, whole=False)
        async with asyncio.TaskGroup() as group:
            proposers = [
                group.create_task(ask(slot=i * width, model=model))
                for i, model in enumerate(models)
            ]
        drafts = list(chain.from_iterable(proposer.result() for proposer in proposers))
        sample.require(drafts, len(models) * width, layer=layer)
    [final] = await sample(query, drafts, layer=layers, final=True)
    return Answer(final)


async def scored(
    query: Conversation, sample: Sample, drafts: Sequence[Completion], score: Score
) -> tuple[int, list[float | None], list[str]]:
    """Score drafts; one without a finite score, which nothing can be compared with, never wins.

    Returns:
        Which is best, the first of equals; the score of each, None where it has none; why it has
        none.

    Raises:
        NoAnswer: If none of them has one.
    """
    found = await score(query, [draft.text for draft in drafts])
    known: dict[int, float] = {}
    problems: list[str] = []
    for slot, one in enumerate(found):
        if not isinstance(one, EngineError) and math.isfinite(one):
            known[slot] = one
        else:
            problems.append(str(one))
            sample.note(0, slot, "proposal that cannot be scored left out")
    if not known:
        raise NoAnswer(f"no proposal could be scored; the first: {problems[0]}")
    best = max(known, key=known.__getitem__)
    return best, [known.get(slot) for slot in range(len(found))], problems


def _voted(drafts: Sequence[Completion]) -> Answer:
    votes = [extract_number(draft.text, whole=draft.whole) for draft in drafts]
    winner = majority(votes)
    return Answer(drafts[winner or 0], {"votes": votes})


def _aggregating(width: int, layers: int) -> int:
    """Appendix C: a layer's drafts are written by one and read by the next, then the answer."""
    return 2 * layers * width + 1


STRATEGIES = {
    strategy.name: strategy
    for strategy in (
        Strategy(
            "propose_and_aggregate",
            propose_and_aggregate,
            {"width": 5, "layers": 2},
            flops=_aggregating,
        ),
        Strategy(
            "sequential_revision",
            propose_and_aggregate,
            {"layers": 2},
            fixed={"width": 1},
            flops=_aggregating,
        ),
        Strategy(
            "parallel_sampling",
            propose_and_aggregate,
            {"width": 5},
            fixed={"layers": 1},
            flops=_aggregating,
        ),
        Strategy(
            "best_of_n",
            best_of_n,
            {"width": 5},
            has_final=False,
            single=False,
            needs=frozenset({"score"}),
            flops=lambda width: 2 * width,
        ),
        Strategy("majority_vote", majority_vote, {"width": 5}, has_final=False, single=False),
        Strategy("self_moa_seq", self_moa_seq, {"width": 30, "window": 6}),
        Strategy("rsa", rsa, {"width": 16, "subset": 4, "layers": 10}, single=False),
        Strategy("moa", moa, {"width": 1, "layers": 2}, needs=frozenset({"models"})),
    )
}
