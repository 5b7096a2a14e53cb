"""The command `python -m aft_factory.merge`: parse, call, print."""

from __future__ import annotations

import sys

from aft_factory.merge.merging import MergeSettings, merge
from aft_factory.stage.command import PlainCommand

EXAMPLES = """\
examples:
  # two machines, each with a half of the rows; then one output, as of one run
  aft run queries.jsonl --output part-0.jsonl --shard 0/2 --model saves/llama-aft
  aft run queries.jsonl --output part-1.jsonl --shard 1/2 --model saves/llama-aft
  aft merge part-*.jsonl --output out.jsonl
"""

COMMAND = PlainCommand(
    name="merge",
    description="Join the shards of a job (run, sample, rank, aggregate) as if one had run.",
    examples=EXAMPLES,
    settings=MergeSettings,
    do=merge,
)
main = COMMAND.main

if __name__ == "__main__":
    sys.exit(main())
