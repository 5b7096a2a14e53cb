"""The command `python -m aft_factory.run`: parse, call, print."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aft_factory.asking.journal import Journal
from aft_factory.errors import UsageError, suggest
from aft_factory.inference.strategies import STRATEGIES
from aft_factory.inference.tasks import detect_task
from aft_factory.run.answering import build_stage, rehearse
from aft_factory.run.inspection import describe_query, first_id, journal_of
from aft_factory.run.replaying import prompts_of
from aft_factory.run.settings import PRESETS, RunSettings, preset_names
from aft_factory.stage.console import guarded, show
from aft_factory.stage.declaring import COMMON, setting
from aft_factory.stage.job_command import JobArguments, JobCommand
from aft_factory.stage.job_settings import FILES
from aft_factory.stage.yaml_file import read_yaml

EXAMPLES = """\
examples:
  # AlpacaEval 2 as in the paper, by a trained model in this process
  aft run alpaca_eval.json --output out.jsonl --preset alpaca_eval \\
      --model saves/llama-aft --task-output model_outputs.json

  # the same adapter unmerged; all drafts in the output
  aft run queries.jsonl --output out.jsonl --width 5 --layers 2 \\
      --model meta-llama/Llama-3.1-8B --adapter saves/llama-aft/lora --keep-drafts

  # two servers share the load; what would it take?
  aft run queries.jsonl --output out.jsonl --dry-run \\
      --base-url http://gpu1:8000/v1 http://gpu2:8000/v1 --tokenizer saves/llama-aft

  # the published checkpoints, as their own code prompts them
  aft run queries.jsonl --output out.jsonl --preset release \\
      --model linzw/Llama-AFT-On-Policy

  # read one query's drafts, layer by layer, and what was asked for them
  aft run --inspect out.jsonl 4f0c9be1d2a37e55 --prompts
"""


@dataclass(frozen=True, slots=True)
class RunArguments(JobArguments):
    """What a run takes beside its settings."""

    preset: str | None = setting(
        None, f"settings of a paper: {', '.join(preset_names())}", "NAME", group=COMMON
    )
    allow_failed: float = setting(
        0.0,
        "exit with 0 though at most this share of the rows has no answer in --task-output",
        group=FILES,
    )

    def __post_init__(self) -> None:
        if not 0 <= self.allow_failed <= 1:
            raise UsageError(f"allow_failed: expected a share from 0 to 1, got {self.allow_failed}")


def preset_settings(args: RunArguments, given: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return what file and flags override: the settings of the preset that go with these.

    Raises:
        UsageError: If there is no such preset.
    """
    if args.preset is None:
        return "", {}
    if args.preset not in preset_names():
        raise UsageError(
            f"--preset: unknown {args.preset!r}; {suggest(args.preset, preset_names())}"
        )
    preset = read_yaml(PRESETS / f"{args.preset}.yaml")
    if "max_tokens" in given:  # what is said of every answer holds for the final one too
        preset.pop("final_max_tokens", None)
    strategy = given.get("strategy")
    if strategy in STRATEGIES and strategy != preset["strategy"]:
        preset = {key: preset[key] for key in preset if key not in ("width", "layers")}
    found = STRATEGIES.get(strategy or "")
    if found is not None and not found.has_final:  # its one layer is the final one
        preset = {key: preset[key] for key in preset if f"final_{key}" not in preset}
        preset = {key.removeprefix("final_"): value for key, value in preset.items()}
    return f"preset {args.preset}", preset


COMMAND = JobCommand(
    name="run",
    description="Answer queries by propose-and-aggregate or another strategy.",
    examples=EXAMPLES,
    settings=RunSettings,
    reads="queries: records, AlpacaEval, MT-Bench, GSM8K or IFEval rows",
    arguments=RunArguments,
    below=preset_settings,
    task_output=lambda settings: settings.task_output,
    allowed=lambda args: args.allow_failed,
    build_stage=lambda settings, row: build_stage(settings, settings.task or detect_task(row), row),
    rehearse=rehearse,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, or show a query's layers and leave; return the exit code."""
    parser = COMMAND.parser()
    files = parser.group(FILES)
    show = "show a query's layers (the first's, without ID) of an output or journal, and leave"
    files.add_argument("--inspect", nargs="+", metavar=("OUTPUT", "ID"), help=show)
    prompts = "with --inspect: also what the model was asked"
    files.add_argument("--prompts", action="store_true", help=prompts)
    given = vars(parser.parse_args(argv))
    shown, prompted = given.pop("inspect"), given.pop("prompts")
    return guarded(lambda: inspect_query(shown, prompted)) if shown else COMMAND.run(given)


def inspect_query(words: Sequence[str], prompted: bool) -> int:
    """Print a query's layers."""
    if len(words) > 2:
        raise UsageError(f"--inspect: expected OUTPUT and one ID, got {' '.join(words)}")
    path = Path(words[0])
    with Journal(journal_of(path), read_only=True) as journal:
        name = words[1] if len(words) == 2 else first_id(path, journal)
        prompts = prompts_of(journal, name) if prompted else {}
        show(describe_query(journal, name, prompts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
