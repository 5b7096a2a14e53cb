"""K of N drafts: all subsets aggregated and scored, as a job of its own (section 6.2).

Drafts are drawn once for each query. Of each subset: how different its drafts are (Vendi score),
how good (their mean reward), and how good the aggregation of them is (its reward).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from statistics import fmean
from typing import Any

from aft_factory.analyze.vendi import need_vendi, vendi_scores
from aft_factory.engines.engine import EngineError
from aft_factory.errors import NoAnswer
from aft_factory.inference.drafting_options import DraftingOptions
from aft_factory.inference.outcome import Outcome
from aft_factory.inference.queries import Query, drawing, read_record
from aft_factory.inference.scoring import Longest
from aft_factory.inference.strategy import Answer, Conversation, Sample, Score, Strategy
from aft_factory.inference.tasks import TASKS, detect_task, read_as
from aft_factory.prompts.rendering import load_template
from aft_factory.records.record import Row
from aft_factory.stage.declaring import COMMON, setting
from aft_factory.stage.engines import OpenEngines, dry_run_engines, dry_run_note, open_engines
from aft_factory.stage.job_settings import AskSettings
from aft_factory.stage.reading import AGGREGATOR, at_least
from aft_factory.stage.reward import RewardSettings, with_scores
from aft_factory.stage.stage import Stage

MOST_GROUPS = 100_000  # of one query: what is larger is a slip
UNSCORED = "that cannot be scored left out"


@dataclass(frozen=True, slots=True)
class SubsetSettings(RewardSettings, AskSettings):
    """Which drafts are drawn, aggregated and scored; see the help texts."""

    samples: int = setting(10, "N: drafts of a query", "N", group=COMMON)
    subset: int = setting(5, "K: drafts that one aggregation reads", "K", group=COMMON)
    template: str = setting("paper", AGGREGATOR)
    embedding: str | None = setting(
        None, "encoder whose embeddings tell how alike drafts are (default: by their n-grams)"
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        problems = AskSettings.problems(self) + self.reward_problems()
        problems += at_least(self, ("samples", 2), ("subset", 2), most=1000)
        if not problems and self.subset > self.samples:
            problems.append(f"subset: {self.subset} of {self.samples} drafts cannot be chosen")
        elif not problems and (count := math.comb(self.samples, self.subset)) > MOST_GROUPS:
            problems.append(f"samples: {count:,} subsets of each query; expected at most 100,000")
        if not (self.has_reward or self.scripted):
            problems.append("reward_model: needs one, or a reward_url")
        return problems


async def aggregate_subsets(
    query: Conversation,
    sample: Sample,
    *,
    samples: int,
    subset: int,
    embedding: str | None,
    score: Score,
) -> Answer:
    """Aggregate every K of N drafts; score drafts and aggregations. The answer is the best one."""
    drafts = await sample(query, layer=0, n=samples)
    if len(drafts) < subset:
        raise NoAnswer(f"layer 0: {len(drafts)} usable drafts, {subset} wanted for a subset")
    groups = list(combinations(range(len(drafts)), subset))
    aggregate = partial(sample, query, layer=1, final=True, whole=False)
    async with asyncio.TaskGroup() as tasks:
        asked = [
            tasks.create_task(aggregate([drafts[i] for i in group], slot=slot))
            for slot, group in enumerate(groups)
        ]
    made = {slot: task.result()[0] for slot, task in enumerate(asked) if task.result()}
    texts = [draft.text for draft in drafts]
    scores = _known(await score(query, texts))
    for slot in (slot for slot, one in enumerate(scores) if one is None):
        sample.note(0, slot, f"proposal {UNSCORED}")
    reached = _known(await score(query, [one.text for one in made.values()])) if made else []
    found = dict(zip(made, reached, strict=True))
    known = {slot: one for slot, one in found.items() if one is not None}
    for slot in found.keys() - known:
        sample.note(1, slot, f"aggregation {UNSCORED}")
    if not known:
        raise NoAnswer("layer 1: no aggregation could be scored")
    details = {
        "proposals": texts,
        "scores": scores,
        "groups": [list(group) for group in groups],
        "vendi": await asyncio.to_thread(vendi_scores, texts, groups, embedding),
        "reached": [known.get(slot) for slot in range(len(groups))],
    }
    return Answer(made[max(known, key=lambda slot: known[slot])], details)


def _known(scores: Sequence[float | EngineError]) -> list[float | None]:
    """Return scores, None for one that is not there or not finite."""
    return [
        None if isinstance(one, EngineError) or not math.isfinite(one) else float(one)
        for one in scores
    ]


SUBSETS = Strategy(
    "aggregate_subsets",
    aggregate_subsets,
    {"samples": 10, "subset": 5, "embedding": None},
    needs=frozenset({"score"}),
    reads=lambda subset, **_: int(subset),
)


def subsets_row(query: Query, outcome: Outcome) -> Row:
    """Return a query's drafts, and of each subset its diversity, its quality and its outcome."""
    [details] = outcome.details
    scores = details["scores"]
    groups = []
    for members, vendi, reached in zip(
        details["groups"], details["vendi"], details["reached"], strict=True
    ):
        known = [scores[i] for i in members if scores[i] is not None]
        quality = fmean(known) if len(known) == len(members) else None
        groups.append({"members": members, "vendi": vendi, "quality": quality, "score": reached})
    row = {"id": query.id, "proposals": details["proposals"], "scores": scores, "groups": groups}
    return row | {"usage": outcome.usage, "events": outcome.events}


def build_stage(settings: SubsetSettings, first: Any) -> Stage:
    """Return what happens to a row, of which this is the first."""
    need_vendi(settings.embedding)
    task, columns = detect_task(first), settings.columns()

    def read(row: Any) -> Query:
        query = read_record(row, columns) if task == "records" else read_as(task, row)
        return drawing(replace(query, turns=query.turns[:1], final={}))

    sampling = settings.proposal()
    longest = Longest()
    shape = settings.reward_shape
    pretended = dry_run_engines(settings, (), longest.score_each)
    return Stage(
        read_row=read,
        strategy=SUBSETS,
        options={name: getattr(settings, name) for name in SUBSETS.options},
        drafting=lambda: DraftingOptions(
            load_template(settings.template),
            sampling,
            sampling,
            seed=settings.seed,
            policy=settings.policy(),
        ),
        write_row=subsets_row,
        open=lambda: _open(settings),
        dry_run=replace(pretended, count=longest.count, reward_shape=shape),
        dry_run_note=dry_run_note(settings),
        columns=TASKS[task].known_columns,
    )


@contextlib.asynccontextmanager
async def _open(settings: SubsetSettings) -> AsyncIterator[OpenEngines]:
    async with (
        open_engines(settings, settings.template) as engines,
        with_scores(engines, settings, settings.timeout, settings.retries, settings.ray) as scored,
    ):
        yield scored
