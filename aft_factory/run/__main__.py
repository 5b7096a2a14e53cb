"""The command `python -m aft_factory.run`: parse, call, print."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from aft_factory.asking.journal import Journal
from aft_factory.errors import UsageError, suggest
from aft_factory.inference.strategies import STRATEGIES
from aft_factory.inference.tasks import detect_task
from aft_factory.run.answering import build_stage
from aft_factory.run.inspection import describe_query
from aft_factory.run.settings import PRESETS, RunSettings, preset_names
from aft_factory.stage.command_line import add_job_arguments, flags_of, read_settings, run_command
from aft_factory.stage.console import guarded
from aft_factory.stage.declaring import read_yaml

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
        found = STRATEGIES.get(strategy or "")
        if found is not None and not found.has_final:  # its one layer is the final one
            preset = {key: preset[key] for key in preset if f"final_{key}" not in preset}
            preset = {key.removeprefix("final_"): value for key, value in preset.items()}
    return read_settings(args, RunSettings, [(f"preset {args.preset}", preset)])


if __name__ == "__main__":
    sys.exit(main())
