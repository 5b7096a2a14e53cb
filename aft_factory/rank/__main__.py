"""The command `python -m aft_factory.rank`: parse, call, print."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from aft_factory.rank.ranking import RankSettings, build_stage
from aft_factory.stage.command_line import add_job_arguments, read_settings, run_command

EXAMPLES = """\
examples:
  # the paper's: FsfairX-LLaMA3-RM-v0.1 scores ten proposals, the five best are kept
  python -m aft_factory.rank sampled.jsonl --output ranked.jsonl

  # another reward model, by vLLM on two GPUs, or a vLLM server of it (with --runner pooling)
  python -m aft_factory.rank sampled.jsonl --output ranked.jsonl --reward-model my/rm --top-k 3
  python -m aft_factory.rank sampled.jsonl --output ranked.jsonl --reward-model my/rm \\
      --reward-engine vllm --reward-engine-args tensor_parallel_size=2
  python -m aft_factory.rank sampled.jsonl --output ranked.jsonl --reward-url http://localhost:8000
"""


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
    return run_command(args, RankSettings, lambda: read_settings(args, RankSettings), build_stage)


if __name__ == "__main__":
    sys.exit(main())
