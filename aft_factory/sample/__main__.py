"""The command `python -m aft_factory.sample`: parse, call, print."""

from __future__ import annotations

import sys

from aft_factory.sample.drawing import SampleSettings, build_stage, rehearse
from aft_factory.stage.job_command import JobCommand

EXAMPLES = """\
examples:
  # the paper's: 10 URIAL samples per prompt from the base model, on this machine's GPU
  aft sample prompts.jsonl --output sampled.jsonl --model meta-llama/Llama-3.1-8B

  # from a server; what would it take?
  aft sample prompts.jsonl --output sampled.jsonl --dry-run \\
      --base-url http://localhost:8000/v1

  # from an instruct model by its chat template
  aft sample prompts.jsonl --output sampled.jsonl --chat --samples 5 \\
      --model Qwen/Qwen2.5-7B-Instruct
"""


COMMAND = JobCommand(
    name="sample",
    description="Draw on-policy proposals from a base model by in-context learning (URIAL).",
    examples=EXAMPLES,
    settings=SampleSettings,
    build_stage=lambda settings, _: build_stage(settings),
    rehearse=rehearse,
)
main = COMMAND.main

if __name__ == "__main__":
    sys.exit(main())
