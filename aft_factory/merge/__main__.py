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

  # the same of a conversion that counts tokens; with --register, the merge registers the whole
  aft convert ultrafeedback uf.jsonl --output uf-0.jsonl --shard 0/2 \\
      --tokenizer meta-llama/Llama-3.1-8B --cutoff-len 4096 --register data
  aft convert ultrafeedback uf.jsonl --output uf-1.jsonl --shard 1/2 \\
      --tokenizer meta-llama/Llama-3.1-8B --cutoff-len 4096 --register data
  aft merge uf-*.jsonl --output data/uf.jsonl

  # and of counts
  aft stats data/uf.jsonl --shard 0/2 --json s-0.json --tokenizer saves/llama-aft --sample 0
  aft stats data/uf.jsonl --shard 1/2 --json s-1.json --tokenizer saves/llama-aft --sample 0
  aft merge s-*.json --output stats.json
"""

COMMAND = PlainCommand(
    name="merge",
    description="Join the shards of a command (run, sample, rank, aggregate, convert, stats).",
    examples=EXAMPLES,
    settings=MergeSettings,
    do=merge,
)
main = COMMAND.main

if __name__ == "__main__":
    sys.exit(main())
