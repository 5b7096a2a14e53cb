"""The command `python -m aft_factory.rank`: parse, call, print."""

from __future__ import annotations

import sys

from aft_factory.rank.ranking import RankSettings, build_stage, rehearse
from aft_factory.stage.job_command import JobCommand

EXAMPLES = """\
examples:
  # the paper's: FsfairX-LLaMA3-RM-v0.1 scores ten proposals, the five best are kept
  aft rank sampled.jsonl --output ranked.jsonl

  # another reward model, by vLLM on two GPUs, or a vLLM server of it (with --runner pooling)
  aft rank sampled.jsonl --output ranked.jsonl --reward-model my/rm --top-k 3
  aft rank sampled.jsonl --output ranked.jsonl --reward-model my/rm \\
      --reward-engine vllm --reward-engine-args tensor_parallel_size=2
  aft rank sampled.jsonl --output ranked.jsonl \\
      --reward-url http://localhost:8000 --reward-tokenizer my/rm
"""


COMMAND = JobCommand(
    name="rank",
    description="Score proposals with a reward model and keep the best.",
    examples=EXAMPLES,
    settings=RankSettings,
    reads="records with proposals",
    build_stage=lambda settings, _: build_stage(settings),
    rehearse=rehearse,
)
main = COMMAND.main

if __name__ == "__main__":
    sys.exit(main())
