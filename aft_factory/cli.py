"""The command `aft`: `aft <stage> ...` is `python -m aft_factory.<stage> ...`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from aft_factory import __version__
from aft_factory.errors import suggest

STAGES = {
    "convert": "UltraFeedback and rows with proposals to records, ShareGPT and SFT files",
    "sample": "on-policy proposals from a base model (URIAL)",
    "rank": "reward-model scores; keep the best proposals",
    "aggregate": "aggregation targets by a strong model",
    "run": "a data set through propose-and-aggregate",
    "merge": "the shards of a command as one output",
    "serve": "propose-and-aggregate as a model of OpenAI's API",
    "eval": "benchmarks through their own harnesses, a strategy as the model",
    "report": "a page to read a run's drafts on",
    "pipeline": "several stages in order, from one file",
    "stats": "what is in a record file",
    "analyze": "the paper's analyses, as plots with their numbers",
    "template": "a chat template that takes proposals",
    "push": "a record file as a data set on the hub",
}
FOLDERS = {"eval": "evaluate"}  # `eval` is a word of Python's


def main(argv: Sequence[str] | None = None) -> int:
    """Run a stage; return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--version"]:
        print(f"aft-factory {__version__}")
        return 0
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: aft STAGE ...    (aft STAGE --help tells more)\n\nstages:")
        print("\n".join(f"  {name:<10} {text}" for name, text in STAGES.items()))
        print("\nexamples:\n  aft run queries.jsonl --output out.jsonl --model saves/llama-aft")
        return 0 if arguments else 2
    name = arguments[0]
    if name not in STAGES:
        print(f"error: no stage {name!r}; {suggest(name, STAGES)}", file=sys.stderr)
        return 2
    try:
        module = importlib.import_module(f"aft_factory.{FOLDERS.get(name, name)}.__main__")
    except KeyboardInterrupt:  # a second or so, in which nothing has begun
        print("interrupted; nothing has begun", file=sys.stderr)
        return 130
    code: int = module.main(arguments[1:])
    return code


if __name__ == "__main__":
    sys.exit(main())
