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
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

from aft_factory.engines.engine import EngineError
from aft_factory.engines.sampling import Completion
from aft_factory.errors import NoAnswer
from aft_factory.inference.answers import extract_number, majority
from aft_factory.inference.strategy import Answer, Conversation, Sample, Score, Strategy


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
    return _voted(sample, 0, await sample(query, layer=0, n=width, final=True))


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
    return _voted(sample, layers, last)


async def moa(
    query: Conversation, sample: Sample, *, models: Sequence[str], width: int, layers: int
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


def _voted(sample: Sample, layer: int, drafts: Sequence[Completion]) -> Answer:
    votes = [extract_number(draft.text, whole=draft.whole) for draft in drafts]
    winner = majority(votes)
    if winner is None:
        sample.note(layer, 0, "no draft has an answer to vote by: the first was taken")
    return Answer(drafts[winner or 0], {"votes": votes})


def _width(*, width: int, **_: Any) -> int:
    return width


def _last_layer(width: int, layers: int) -> int:
    return width if layers else 0


def _aggregating(width: int, layers: int) -> int:
    """Appendix C: a layer's drafts are written by one and read by the next, then the answer."""
    return 2 * layers * width + 1


AFT = Strategy(
    "propose_and_aggregate",
    propose_and_aggregate,
    {"width": 5, "layers": 2},
    first=_width,
    reads=_last_layer,
    flops=_aggregating,
)
STRATEGIES = {
    strategy.name: strategy
    for strategy in (
        AFT,
        replace(AFT, name="sequential_revision", options={"layers": 2}, fixed={"width": 1}),
        replace(AFT, name="parallel_sampling", options={"width": 5}, fixed={"layers": 1}),
        Strategy(
            "best_of_n",
            best_of_n,
            {"width": 5},
            has_final=False,
            single=False,
            needs=frozenset({"score"}),
            flops=lambda width: 2 * width,
        ),
        Strategy(
            "majority_vote",
            majority_vote,
            {"width": 5},
            has_final=False,
            single=False,
            flops=lambda width: width,  # plain answers, which nothing scores
        ),
        Strategy(
            "self_moa_seq",
            self_moa_seq,
            {"width": 30, "window": 6},
            first=_width,
            reads=lambda width, window: min(width, window),
        ),
        Strategy(
            "rsa",
            rsa,
            {"width": 16, "subset": 4, "layers": 10},
            single=False,
            reads=lambda width, subset, layers: min(width, subset) if layers else 0,
        ),
        Strategy(
            "moa",
            moa,
            {"width": 1, "layers": 2},
            needs=frozenset({"models"}),
            first=lambda width, models, **_: width * len(models),
            reads=lambda models, width, layers: len(models) * width if layers else 0,
        ),
    )
}
