"""STAGE 5, `python -m aft_factory.run`: a data set through propose-and-aggregate.

Reads queries; writes one row per query in the input's order, what could not be answered to a
rejects file, and a summary. Everything answered is in the journal at once: a run can be killed at
any moment, and the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from aft_factory.command import add_job_arguments, flags_of, read_settings, run_command
from aft_factory.console import guarded
from aft_factory.decoding import decoded, decoding_told, used
from aft_factory.errors import UsageError, suggest
from aft_factory.inspection import describe_query
from aft_factory.journal import Journal
from aft_factory.outcome import Outcome
from aft_factory.queries import Query, read_record
from aft_factory.records import Row
from aft_factory.run_settings import PRESETS, RunSettings, preset_names
from aft_factory.scoring import Longest, Scores
from aft_factory.settings import read_yaml
from aft_factory.stage import Stage
from aft_factory.stage.engines import Opened, dry, dry_note, opened
from aft_factory.stage.reward import opened_scorer
from aft_factory.strategies import STRATEGIES, WITHOUT_FINAL
from aft_factory.tasks import TASKS, detect_task

_log = logging.getLogger(__name__)
EXAMPLES = """\
examples:
  # AlpacaEval 2 as in the paper, by a trained model in this process
  python -m aft_factory.run alpaca_eval.json --output out.jsonl --preset alpaca_eval \\
      --model saves/llama-aft --task-output model_outputs.json

  # the same adapter unmerged; all drafts in the output
  python -m aft_factory.run queries.jsonl --output out.jsonl --width 5 --layers 2 \\
      --model meta-llama/Llama-3.1-8B --adapter saves/llama-aft/lora --keep-drafts

  # two servers share the load; what would it take?
  python -m aft_factory.run queries.jsonl --output out.jsonl --dry-run \\
      --base-url http://gpu1:8000/v1 http://gpu2:8000/v1 --tokenizer saves/llama-aft

  # the published checkpoints, as their own code prompts them
  python -m aft_factory.run queries.jsonl --output out.jsonl --preset release \\
      --model linzw/Llama-AFT-On-Policy

  # read one query's drafts, layer by layer
  python -m aft_factory.run --inspect out.jsonl.journal 4f0c9be1d2a37e55
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        prog="python -m aft_factory.run",
        description="Answer queries by propose-and-aggregate or another strategy.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--preset", metavar="NAME", help=f"settings of a paper: {', '.join(preset_names())}")
    add("--inspect", nargs=2, metavar=("JOURNAL", "ID"), help="show a query's layers and leave")
    reads = "queries: records, AlpacaEval, MT-Bench, GSM8K or IFEval rows"
    add_job_arguments(parser, RunSettings, reads)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code; see `run_command`."""
    args = build_parser().parse_args(argv)
    if args.inspect is not None:
        return guarded(lambda: inspect_query(*args.inspect))
    found: list[str] = []
    return run_command(
        args,
        RunSettings,
        lambda: run_settings(args),
        lambda settings: build_stage(settings, settings.task or found[0]),
        task_output=lambda settings: settings.task_output,
        first_row=lambda row: found.append(detect_task(row)),
    )


def inspect_query(journal_path: str, name: str) -> int:
    """Print a query's layers."""
    with Journal(Path(journal_path), read_only=True) as journal:
        print(describe_query(journal, name))
    return 0


def run_settings(args: argparse.Namespace) -> RunSettings:
    """Put preset, file and flags together.

    Raises:
        UsageError: With everything that is wrong with them.
    """
    preset = {}
    if args.preset is not None:
        if args.preset not in preset_names():
            raise UsageError(
                f"--preset: unknown {args.preset!r}; {suggest(args.preset, preset_names())}"
            )
        preset = read_yaml(PRESETS / f"{args.preset}.yaml")
        config = {} if args.config is None else read_yaml(args.config)
        strategy = (config | flags_of(args, RunSettings)).get("strategy")
        if strategy in STRATEGIES and strategy != preset["strategy"]:
            preset = {key: preset[key] for key in preset if key not in ("width", "layers")}
        if strategy in WITHOUT_FINAL:  # its one layer is the final one
            preset = {key: preset[key] for key in preset if f"final_{key}" not in preset}
            preset = {key.removeprefix("final_"): value for key, value in preset.items()}
    return read_settings(args, RunSettings, [(f"preset {args.preset}", preset)])


def build_stage(settings: RunSettings, name: str) -> Stage:
    """Return what a run does with a row of a task."""
    task = TASKS[name]
    if problems := settings.output_problems(name):
        raise UsageError("\n".join(problems))
    for told in decoding_told(settings, name):
        _log.warning("%s", told)
    longest = Longest() if settings.strategy == "best_of_n" else None
    pretended = dry(settings, proposers_of(settings), longest and longest.score_each)
    if longest is not None:
        pretended = replace(pretended, count=longest.count, reward_shape=settings.reward_shape)
    generator = settings.generator or settings.model or "aft"
    write = task.write_row
    read_row = task.read_row
    if name == "records":
        read_row = partial(read_record, columns=settings.columns())
    elif settings.column:
        raise UsageError(f"column: the layout of {name} is known; --task records takes it")
    return Stage(
        read_row=lambda row: decoded(read_row(row), settings, task),
        strategy=STRATEGIES[settings.strategy],
        options=settings.options(),
        drafting=settings.drafting,
        write_row=lambda query, outcome: output_row(query, outcome, settings),
        keep_drafts=settings.keep_drafts,
        open=lambda: opened_run(settings, proposers_of(settings)),
        dry=pretended,
        dry_note=dry_note(settings),
        task_row=write and (lambda query, answers: write(query, answers, generator)),
        unread=task.unread,
        is_right=task.is_right,
        used=used(settings, name),
    )


def proposers_of(settings: RunSettings) -> dict[str, list[str]]:
    """Return the models that draft beside the run's own, and their own servers."""
    urls = settings.proposer_urls
    return {name: [str(urls[name])] if name in urls else [] for name in settings.proposers}


@contextlib.asynccontextmanager
async def opened_run(
    settings: RunSettings, proposers: Mapping[str, Sequence[str]]
) -> AsyncIterator[Opened]:
    """Open what a run asks, and close it in the end."""
    async with contextlib.AsyncExitStack() as stack:
        engines = await stack.enter_async_context(opened(settings, settings.template, proposers))
        if settings.strategy == "best_of_n":
            scores: Scores = Longest()
            if settings.has_reward:
                opening = opened_scorer(
                    settings, timeout=settings.timeout, retries=settings.retries
                )
                scores = await stack.enter_async_context(opening)
            engines = replace(
                engines,
                score=scores.score_each,
                count=scores.count,
                scorer=scores.identity,
                stop=scores.stop,
                reward_shape=settings.reward_shape,
            )
        yield engines


def output_row(query: Query, outcome: Outcome, settings: RunSettings) -> Row:
    """Return a row: the input's columns, the response, and how it came about."""
    own: Row = {"response": outcome.answers[-1]}
    if len(query.turns) > 1:
        own["responses"] = outcome.answers
    own["finish_reasons"] = outcome.finish_reasons
    if any(outcome.details):
        own["details"] = outcome.details
    own |= {"seed": settings.seed, "usage": outcome.usage, "events": outcome.events}
    if settings.keep_drafts:
        own["layers"] = outcome.layers
    columns: Row = {}
    for name, value in query.row.items():
        if name == "id" and (value in (None, "") or str(value) == query.id):
            continue
        while name in own or name == "id" or name in columns:
            name = f"input_{name}"
        columns[name] = value
    return {"id": query.id, **columns, **own}


if __name__ == "__main__":
    sys.exit(main())
