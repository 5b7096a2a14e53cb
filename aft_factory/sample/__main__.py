"""The command `python -m aft_factory.sample`: parse, call, print."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from aft_factory.sample.drawing import SampleSettings, build_stage
from aft_factory.stage.command_line import add_job_arguments, read_settings, run_command

EXAMPLES = """\
examples:
  # the paper's: 10 URIAL samples per prompt from the base model, on this machine's GPU
  python -m aft_factory.sample prompts.jsonl --output sampled.jsonl --model meta-llama/Llama-3.1-8B

  # from a server; what would it take?
  python -m aft_factory.sample prompts.jsonl --output sampled.jsonl --dry-run \\
      --base-url http://localhost:8000/v1

  # from an instruct model by its chat template
  python -m aft_factory.sample prompts.jsonl --output sampled.jsonl --chat --samples 5 \\
      --model Qwen/Qwen2.5-7B-Instruct
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        prog="python -m aft_factory.sample",
        description="Draw on-policy proposals from a base model by in-context learning (URIAL).",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_job_arguments(parser, SampleSettings)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    args = build_parser().parse_args(argv)
    settings = lambda: read_settings(args, SampleSettings)  # noqa: E731
    return run_command(args, SampleSettings, settings, build_stage)


if __name__ == "__main__":
    sys.exit(main())
