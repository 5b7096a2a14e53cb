"""STAGE 5, `python -m aft_factory.run`: a data set through propose-and-aggregate.

Reads queries; writes one row per query in the input's order, what could not be answered to a
rejects file, and a summary. Everything answered is in the journal at once: a run can be killed at
any moment, and the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from aft_factory.errors import AftError, UsageError, suggest
from aft_factory.inspection import describe_query
from aft_factory.journal import Journal
from aft_factory.run_job import Job, survey
from aft_factory.run_settings import PRESETS, RunSettings, preset_names
from aft_factory.settings import add_flags, build, read_yaml
from aft_factory.strategies import STRATEGIES
from aft_factory.tasks import TASKS, detect_task

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
    """Return the parser: what runs, then a flag for each of the settings."""
    parser = argparse.ArgumentParser(
        prog="python -m aft_factory.run",
        description="Answer queries by propose-and-aggregate or another strategy.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "input",
        nargs="?",
        help="queries: records, AlpacaEval, MT-Bench, GSM8K or IFEval rows (.jsonl, .json, .gz, "
        ".zst, .parquet, `datasets` folder or hub name)",
    )
    add("--output", type=Path, help="file to write (.jsonl, .json, .gz, .zst, .parquet)")
    add("--preset", metavar="NAME", help=f"settings of a paper: {', '.join(preset_names())}")
    add("--config", type=Path, metavar="YAML", help="file of settings; flags override it")
    add("--dry-run", action="store_true", help="only tell requests, tokens and FLOPs to expect")
    add("--export", action="store_true", help="ask nothing; write what the last run has done")
    add("--inspect", nargs=2, metavar=("JOURNAL", "ID"), help="show a query's layers and leave")
    add("--overwrite", action="store_true", help="replace an existing output")
    add("--strict", action="store_true", help="exit with 1 if any row was rejected")
    add("--quiet", action="store_true", help="no progress bar")
    add_flags(parser.add_argument_group("settings (also keys of --config)"), RunSettings)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1 (rejected rows and --strict), 2 (usage), 130."""
    args = build_parser().parse_args(argv)
    try:
        if args.inspect is not None:
            path, name = args.inspect
            with Journal(Path(path), read_only=True) as journal:
                print(describe_query(journal, name))
            return 0
        return run(args, read_settings(args))
    except AftError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        problem = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"error: {problem}", file=sys.stderr)
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted; the same command goes on where this one was", file=sys.stderr)
        return 130
    return 2


def read_settings(args: argparse.Namespace) -> RunSettings:
    """Put preset, file and flags together.

    Raises:
        UsageError: With everything that is wrong with them.
    """
    flags = {f.name: getattr(args, f.name) for f in fields(RunSettings) if hasattr(args, f.name)}
    config = {} if args.config is None else read_yaml(args.config)
    preset = {}
    if args.preset is not None:
        if args.preset not in preset_names():
            raise UsageError(
                f"--preset: unknown {args.preset!r}; {suggest(args.preset, preset_names())}"
            )
        preset = read_yaml(PRESETS / f"{args.preset}.yaml")
    strategy = flags.get("strategy") or config.get("strategy") or preset.get("strategy")
    if strategy in STRATEGIES and strategy != preset.get("strategy"):
        preset = {key: preset[key] for key in preset if key not in ("width", "layers")}
    layers = [(f"preset {args.preset}", preset), (str(args.config), config), ("flags", flags)]
    settings = build(RunSettings, layers)
    settings.check()
    return settings


def run(args: argparse.Namespace, settings: RunSettings) -> int:
    """Do what the arguments say and print the account."""
    if args.input is None:
        raise UsageError("name the INPUT: a file of queries (see --help)")
    total, first = survey(args.input, settings)
    task_name = settings.task or detect_task(first)
    job = Job(args, settings, TASKS[task_name], total)
    if args.dry_run:
        asyncio.run(job.dry_run())
        return 0
    job.check_outputs()
    with Journal(job.journal_path, read_only=args.export) as journal:
        if not args.export and not asyncio.run(job.answer(journal)):
            print(
                f"stopped; everything answered is in {job.journal_path}. The same command goes on "
                "from there; with --export it writes what is done so far.",
                file=sys.stderr,
            )
            return 130
        totals = job.write(journal)
    return 1 if (args.strict and totals.rejected) or (totals.read and not totals.written) else 0


if __name__ == "__main__":
    sys.exit(main())
