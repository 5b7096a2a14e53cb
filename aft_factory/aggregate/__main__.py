"""The command `python -m aft_factory.aggregate`: parse, call, print."""

from __future__ import annotations

import sys

from aft_factory.aggregate.aggregating import (
    DEFAULT_MODEL,
    AggregateSettings,
    build_stage,
    defaults,
    rehearse,
)
from aft_factory.stage.job_command import JobCommand

EXAMPLES = f"""\
examples:
  # the paper's: {DEFAULT_MODEL}, on four GPUs of this machine
  aft aggregate ranked.jsonl --output aft.jsonl \\
      --engine-args tensor_parallel_size=4

  # by a server; what would it take?
  aft aggregate ranked.jsonl --output aft.jsonl --dry-run \\
      --base-url http://localhost:8000/v1

  # leave out copies of a proposal and texts about "the responses provided"
  aft aggregate ranked.jsonl --output aft.jsonl --drop copy mentions_responses

  # the ablation: direct answers as pseudo aggregations
  aft aggregate ranked.jsonl --output pseudo.jsonl --pseudo
"""


COMMAND = JobCommand(
    name="aggregate",
    description="Let a strong model write the aggregation of each record's proposals.",
    examples=EXAMPLES,
    settings=AggregateSettings,
    reads="records with proposals",
    below=defaults,
    build_stage=lambda settings, _: build_stage(settings),
    rehearse=rehearse,
)
main = COMMAND.main

if __name__ == "__main__":
    sys.exit(main())
