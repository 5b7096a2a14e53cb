"""STAGE 3, `python -m aft_factory.rank`: scores proposals with a reward model and keeps the top k.

Reads records with proposals; writes them with the k best, in order of their scores (2501.11877,
section 3.2). The scores of all proposals, kept or not, stand in the record's `meta`.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aft_factory.command import add_job_arguments, read_settings, run_command
from aft_factory.drafting import Settings
from aft_factory.engines import EngineError
from aft_factory.engines.reward import DEFAULT_REWARD_MODEL
from aft_factory.engines.scripted import ScriptedEngine
from aft_factory.errors import NoAnswer
from aft_factory.prompts import load_template
from aft_factory.records import Row, record_from_row
from aft_factory.runner import Outcome
from aft_factory.sampling import Completion, Sampling
from aft_factory.scoring import RewardEngine, ScoreEach, opened_scorer
from aft_factory.selection import usable
from aft_factory.settings import setting
from aft_factory.stage import Stage
from aft_factory.stage.engines import Opened
from aft_factory.stage.settings import JobSettings, at_least
from aft_factory.strategies import Answer, Conversation, Sample
from aft_factory.tasks import Query, with_proposals

ADMITTED = 1024  # queries whose proposals are sorted and scored together

EXAMPLES = """\
examples:
  # the paper's: FsfairX-LLaMA3-RM-v0.1 scores ten proposals, the five best are kept
  python -m aft_factory.rank sampled.jsonl --output ranked.jsonl

  # another reward model, by vLLM on two GPUs, or a vLLM server of it (with --runner pooling)
  python -m aft_factory.rank sampled.jsonl --output ranked.jsonl --reward-model my/rm --top-k 3
  python -m aft_factory.rank sampled.jsonl --output ranked.jsonl --reward-model my/rm \\
      --engine vllm --engine-args tensor_parallel_size=2
  python -m aft_factory.rank sampled.jsonl --output ranked.jsonl \\
      --reward-model my/rm --reward-url http://localhost:8000
"""


@dataclass(frozen=True, slots=True)
class RankSettings(JobSettings):
    """How proposals are ranked; see the help texts."""

    reward_model: str | None = setting(
        None, "sequence classifier, folder or hub name (default: sfairXC/FsfairX-LLaMA3-RM-v0.1)"
    )
    reward_url: str | None = setting(None, "vLLM server of the reward model", "URL")
    engine: RewardEngine = setting("transformers", "what runs the reward model in this process")
    engine_args: dict[str, Any] = setting({}, "passed to vLLM, such as tensor_parallel_size=2")
    top_k: int = setting(5, "proposals to keep")
    scripted: bool = setting(False, "no model: the longest is best, to try a configuration")

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        problems = JobSettings.problems(self) + at_least(self, ("top_k", 1))
        if self.engine == "vllm" and self.reward_url:
            problems.append("engine: for a reward model in this process, not for --reward-url")
        if self.engine_args and self.engine != "vllm":
            problems.append("engine_args: needs --engine vllm")
        return problems


async def rank_proposals(
    query: Conversation, sample: Sample, *, proposals: Sequence[Completion], score: ScoreEach
) -> Answer:
    """Score the proposals that a record brings along; the answer is the best one."""
    scores = await score(query, [proposal.text for proposal in proposals])
    numbers = [None if isinstance(score, EngineError) else score for score in scores]
    problems = [str(score) for score in scores if isinstance(score, EngineError)]
    if len(problems) == len(scores):
        raise NoAnswer(f"no proposal could be scored; the first: {problems[0]}")
    best = max(range(len(scores)), key=lambda i: -math.inf if (n := numbers[i]) is None else n)
    return Answer(proposals[best], {"scores": numbers, "problems": problems})


def ranked_row(query: Query, outcome: Outcome, settings: RankSettings) -> Row:
    """Return the record with its best proposals, in order of their scores."""
    record = record_from_row(query.row)
    [details] = outcome.details
    scores: dict[int, float | None] = dict(zip(usable(record), details["scores"], strict=True))
    known = [(score, i) for i, score in scores.items() if score is not None]
    kept = [i for _, i in sorted(known, key=lambda pair: (-pair[0], pair[1]))[: settings.top_k]]
    about: dict[str, Any] = {
        "model": settings.reward_model or DEFAULT_REWARD_MODEL,
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
        meta=record.meta | {"ranking": about},
    ).to_row()


@contextlib.asynccontextmanager
async def opened_reward(settings: RankSettings) -> AsyncIterator[Opened]:
    """Open the reward model; no other model is asked."""
    if settings.scripted:
        yield nobody("longest", length_of_each)
        return
    opening = opened_scorer(
        settings.reward_model,
        settings.reward_url,
        timeout=settings.timeout,
        retries=settings.retries,
        engine=settings.engine,
        engine_args=settings.engine_args,
    )
    async with opening as scorer:
        yield nobody(scorer.model, scorer.score_each)


def nobody(model: str, score: ScoreEach) -> Opened:
    """Return what a job asks that asks no model but `score`."""
    return Opened({"": ScriptedEngine(model=model)}, {}, ADMITTED // 4, None, score)


async def length_of_each(query: Conversation, texts: Sequence[str]) -> list[float | EngineError]:
    """Score by length, without a model."""
    return [float(len(text)) for text in texts]


def build_stage(settings: RankSettings) -> Stage:
    """Return what happens to a row."""
    return Stage(
        read_row=with_proposals,
        strategy=rank_proposals,
        options={},
        drafting=Settings(load_template("paper"), Sampling(), Sampling()),
        write_row=lambda query, outcome: ranked_row(query, outcome, settings),
        open=lambda: opened_reward(settings),
        dry=nobody("dry-run", length_of_each),
        dry_note="nothing but the reward model's work: each proposal is read once",
    )


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        prog="python -m aft_factory.rank",
        description="Score proposals with a reward model and keep the best.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_job_arguments(parser, RankSettings, "records with proposals")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    args = build_parser().parse_args(argv)
    return run_command(args, lambda: read_settings(args, RankSettings), build_stage)


if __name__ == "__main__":
    sys.exit(main())
