"""The command `python -m aft_factory.aggregate`: parse, call, print."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from aft_factory.aggregate.aggregating import DEFAULT_MODEL, AggregateSettings, build_stage
from aft_factory.stage.command_line import add_job_arguments, flags_of, read_settings, run_command
from aft_factory.stage.declaring import read_yaml

EXAMPLES = f"""\
examples:
  # the paper's: {DEFAULT_MODEL}, on four GPUs of this machine
  python -m aft_factory.aggregate ranked.jsonl --output aft.jsonl \\
      --engine-args tensor_parallel_size=4

  # by a server; what would it take?
  python -m aft_factory.aggregate ranked.jsonl --output aft.jsonl --dry-run \\
      --base-url http://localhost:8000/v1

  # leave out copies of a proposal and texts about "the responses provided"
  python -m aft_factory.aggregate ranked.jsonl --output aft.jsonl --drop copy mentions_responses

  # the ablation: direct answers as pseudo aggregations
  python -m aft_factory.aggregate ranked.jsonl --output pseudo.jsonl --pseudo
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        prog="python -m aft_factory.aggregate",
        description="Let a strong model write the aggregation of each record's proposals.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_job_arguments(parser, AggregateSettings, "records with proposals")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    args = build_parser().parse_args(argv)

    def settings() -> AggregateSettings:
        given = flags_of(args, AggregateSettings)
        given = given if args.config is None else read_yaml(args.config) | given
        default = {} if given.get("base_url") or given.get("scripted") else {"model": DEFAULT_MODEL}
        return read_settings(args, AggregateSettings, [("defaults", default)])

    return run_command(args, AggregateSettings, settings, build_stage)


if __name__ == "__main__":
    sys.exit(main())
