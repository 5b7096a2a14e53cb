"""STAGE 3, `python -m aft_factory.rank`: scores proposals with a reward model and keeps the top k.

Reads records with proposals; writes them with the k best, in order of their scores (2501.11877,
section 3.2). The scores of all proposals, kept or not, stand in the record's `meta`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from aft_factory.engines.engine import shown_url
from aft_factory.engines.sampling import Completion, Sampling
from aft_factory.engines.scripted import CHARACTERS_PER_TOKEN, ScriptedEngine
from aft_factory.inference.drafting_options import DraftingOptions
from aft_factory.inference.outcome import Outcome
from aft_factory.inference.queries import Query, read_with_proposals
from aft_factory.inference.scoring import Longest, Scores
from aft_factory.inference.strategies import scored
from aft_factory.inference.strategy import Answer, Conversation, Sample, Strategy
from aft_factory.prompts.rendering import load_template
from aft_factory.prompts.selection import usable
from aft_factory.rank.spread import Spread
from aft_factory.records.record import Record, Row, record_from_row
from aft_factory.records.table_writer import TableWriter
from aft_factory.records.tables import Line
from aft_factory.records.told import is_told, with_told
from aft_factory.stage.declaring import COMMON, setting
from aft_factory.stage.engine_checks import tell_of_script
from aft_factory.stage.engines import OpenEngines
from aft_factory.stage.job_settings import JobSettings
from aft_factory.stage.placing import RaySettings
from aft_factory.stage.reading import at_least
from aft_factory.stage.rehearsing import records
from aft_factory.stage.reward import RewardSettings, open_scorer
from aft_factory.stage.stage import Stage

ADMITTED = 1024  # queries whose proposals are sorted and scored together


@dataclass(frozen=True, slots=True)
class RankSettings(RaySettings, RewardSettings, JobSettings):
    """How proposals are ranked; see the help texts."""

    top_k: int = setting(5, "proposals to keep", group=COMMON)
    scripted: bool = setting(
        False, "no model: the longest is best, to try a configuration", group=COMMON
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        problems = JobSettings.problems(self) + self.reward_problems()
        elsewhere = "--reward-url" if self.reward_url else "--scripted" if self.scripted else None
        problems += self.ray_problems(elsewhere)
        return problems + at_least(self, ("top_k", 1))


async def rank_proposals(
    query: Conversation, sample: Sample, *, proposals: Sequence[Completion], score: Scores
) -> Answer:
    """Score the proposals that a record brings along; the answer is the best one."""
    best, scores, problems = await scored(query, sample, proposals, score.score_each)
    about = {"model": score.model, "scores": scores, "problems": problems}
    return Answer(proposals[best], about)


RANK = Strategy("rank_proposals", rank_proposals, needs=frozenset({"proposals", "score"}))


def ranked_row(query: Query, outcome: Outcome, settings: RankSettings, spread: Spread) -> Row:
    """Return the record with its best proposals, in order of their scores; count these."""
    record = record_from_row(query.row, settings.columns())
    [details] = outcome.details
    scores: dict[int, float | None] = dict(zip(usable(record), details["scores"], strict=True))
    known = [(score, i) for i, score in scores.items() if score is not None]
    kept = [i for _, i in sorted(known, key=lambda pair: (-pair[0], pair[1]))[: settings.top_k]]
    spread.add([score for score, _ in known], [score for score, i in known if i in kept])
    about: dict[str, Any] = {
        "model": details["model"],
        "scores": [scores.get(i) for i in range(len(record.proposals))],
        "kept": kept,
        "problems": details["problems"],
    }
    models = record.proposal_models
    return replace(
        record,
        proposals=[record.proposals[i] for i in kept],
        scores=[scores[i] for i in kept],
        proposal_models=models and [models[i] for i in kept],
        meta=with_told(record.meta | sampling_of(record, kept), "ranking", about),
    ).to_row()


def sampling_of(record: Record, kept: Sequence[int]) -> dict[str, Any]:
    """Return what `meta` says about the sampling, its lists cut to the proposals that are kept."""
    sampling = record.meta.get("sampling", {})
    if not is_told("sampling", sampling):  # the user's own column
        return {}
    count = len(record.proposals)
    parallel = {
        name: [values[i] for i in kept]
        for name, values in sampling.items()
        # Events are the query's, however many there are.
        if isinstance(values, list) and len(values) == count and name != "events"
    }
    return {"sampling": sampling | parallel}


@contextlib.asynccontextmanager
async def open_reward(settings: RankSettings) -> AsyncIterator[OpenEngines]:
    """Open the reward model; no other model is asked."""
    if settings.scripted:
        tell_of_script("scores", shown_url(settings.reward_url or "") or settings.reward_model)
        yield reward_only(Longest())
        return
    opening = open_scorer(
        settings,
        timeout=settings.timeout,
        retries=settings.retries,
        ray=settings.ray,
        replicas=settings.replicas,
    )
    async with opening as scorer:
        yield reward_only(scorer)


def reward_only(scores: Scores) -> OpenEngines:
    """Return what a job asks that asks nothing but a reward model."""
    return OpenEngines(
        {"": ScriptedEngine(model="none")},
        {},
        ADMITTED // 4,
        None,
        score=scores,
        scorer=scores.identity,
        stop=scores.stop,
    )


def build_stage(settings: RankSettings) -> Stage:
    """Return what happens to a row."""
    spread = Spread()
    return Stage(
        read_row=partial(read_with_proposals, columns=settings.columns()),
        strategy=RANK,
        options={},
        drafting=lambda: DraftingOptions(load_template("paper"), Sampling(), Sampling()),
        write_row=lambda query, outcome: ranked_row(query, outcome, settings, spread),
        tally=spread,
        open=lambda: open_reward(settings),
        dry_run=reward_only(Longest()),
        dry_run_note="nothing but the reward model's work: each proposal is read once",
        following=lambda output: (
            *("aft", "aggregate", output, "--output"),
            output.with_name("aggregated.jsonl"),
        ),
    )


def rehearse(settings: RankSettings, lines: Iterator[Line], table: TableWriter) -> str:
    """Write the rows that it would leave; tell what the reward model would read."""
    pairs = characters = 0
    for record in records(lines, settings):
        pairs += len(record.proposals)
        said = sum(len(message["content"]) for message in record.messages)
        characters += sum(said + len(text) for text in record.proposals)
        kept = record.proposals[: settings.top_k]
        ranked = replace(record, proposals=kept, scores=None, proposal_models=None)
        table.write(ranked.to_row())
    return f"{pairs:,} pairs to score, {characters // CHARACTERS_PER_TOKEN:,} tokens to read"
