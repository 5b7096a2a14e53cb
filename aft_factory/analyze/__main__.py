"""The command `aft analyze SUB`, `python -m aft_factory.analyze`: find the analysis, and run it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from aft_factory.analyze import cost, curves, diversity, perplexity, radar, scaling
from aft_factory.errors import suggest
from aft_factory.stage.command import Command

ANALYSES: dict[str, Command[Any]] = {
    module.COMMAND.name.removeprefix("analyze "): module.COMMAND
    for module in (curves, perplexity, diversity, scaling, cost, radar)
}
EXAMPLES = """\
examples:
  # SFT and AFT side by side, as LLaMA-Factory logged them
  aft analyze curves saves/sft_llama saves/aft_llama --output curves.png

  # MT-Bench by category, and scores by width, depth and FLOPs, of what `aft eval` left
  aft analyze radar eval/sft eval/aft --output radar.png
  aft analyze scaling eval/k1_l1 eval/k3_l1 eval/k5_l1 eval/k5_l2 --output scaling.png
  aft analyze cost eval/sft eval/sft_best_of_11 eval/aft eval/k5_l2 --output cost.png

  # perplexity of training sets under the base model
  aft analyze perplexity sft aft --dataset-dir data --model meta-llama/Llama-3.1-8B \\
      --template aft_llama3 --output perplexity.png

  # what subsets of ten drafts lead to, by their diversity and their quality
  aft analyze diversity alpaca_eval.json --limit 100 --output diversity.jsonl --dry-run \\
      --model saves/aft_llama_merged --reward-model sfairXC/FsfairX-LLaMA3-RM-v0.1
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run an analysis; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print("usage: aft analyze SUB ...    (aft analyze SUB --help tells more)\n")
        print("Every plot is a PNG and an SVG, with its numbers as CSV.\n")
        print("\n".join(f"  {key:<11} {one.description}" for key, one in ANALYSES.items()))
        print(f"\n{EXAMPLES}", end="")
        return 0 if arguments else 2
    if name not in ANALYSES:
        print(f"error: no analysis {name!r}; {suggest(name, ANALYSES)}", file=sys.stderr)
        return 2
    return ANALYSES[name].main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
