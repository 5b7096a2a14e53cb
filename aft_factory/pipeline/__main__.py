"""The command `python -m aft_factory.pipeline`: parse, run what is left to do, print."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from aft_factory.pipeline.done import (
    check_places,
    check_unchanged,
    fingerprint,
    forget,
    is_done,
    note_done,
)
from aft_factory.pipeline.rehearsal import rehearse
from aft_factory.pipeline.step import Step
from aft_factory.pipeline.steps import STAGES, check_ready, read_pipeline
from aft_factory.pipeline.supervisor import Supervisor
from aft_factory.stage.console import guarded
from aft_factory.stage.flags import Parser

EXAMPLES = """\
the file:
  folder: data/mine     # of files that are named without a folder; by default the working directory
  allow_failed: 0.01    # the share of a stage's rows that may lack an answer as the engine failed
  stages:               # in order; each is one of STAGES
    - sample: {input: prompts.jsonl, output: sampled.jsonl, model: meta-llama/Llama-3.1-8B}
    - rank: {top_k: 5, output: ranked.jsonl}
    - train: {config: examples/aft_llama.yaml}
  Settings of a stage are the flags of `aft STAGE`, with _ for -; `config` names a file of them.
  Its input is the output of the stage before, unless it names one.
  Paths with a folder count from the working directory, not from where the file is.

examples:
  # everything, or what is left of it
  aft pipeline examples/pipeline_on_policy_llama.yaml

  # which stages, how many requests, how many tokens?
  aft pipeline examples/pipeline_on_policy_llama.yaml --dry-run
""".replace("STAGES", ", ".join(STAGES))
AGAIN = "the same command goes on from here"


def build_parser() -> Parser:
    """Return the parser."""
    told = "Run stages in order, from one file; each goes on where it was."
    parser = Parser("pipeline", told, EXAMPLES, "FILE [FLAGS]")
    parser.add_argument("file", type=Path, help="YAML: folder, and stages with their settings")
    parser.add_argument(
        "--dry-run", action="store_true", help="only tell stages, requests and tokens to expect"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: that of the stage that failed, 1, 130 or 0."""
    args = build_parser().parse_args(argv)

    def run() -> int:
        steps = read_pipeline(args.file)
        return rehearse(steps, args.file) if args.dry_run else run_steps(steps, args.file)

    return guarded(run, lines=True)


def run_steps(steps: list[Step], path: Path) -> int:
    """Do what is not done yet; stop at the first stage that fails, with its exit code.

    One whose engine failed for more rows than is allowed fails with 1: what comes next, such as a
    training, would be made from what is left.
    """
    check_ready(steps)
    check_places(steps, path)
    with Supervisor() as supervisor:
        for step in steps:
            title = f"[{step.number}/{len(steps)}] {step.stage}"
            if is_done(step, path):
                print(f"{title}: done before", flush=True)
                continue
            if supervisor.asked:
                print(f"stopped before stage {step.number}, {step.stage}; {AGAIN}", file=sys.stderr)
                return 130
            check_unchanged(step, path)
            print(f"{title}: {step}", flush=True)
            state = fingerprint(step)
            forget(step, path)
            code = supervisor.run(step.command(*step.begin(state)), training=step.trains)
            if code:
                why = "interrupted" if supervisor.asked else f"exit code {code}"
                place = f"stopped at stage {step.number}, {step.stage} ({why})"
                print(f"{place}; {AGAIN}", file=sys.stderr)
                return 130 if supervisor.asked else code if code > 0 else 128 - code
            failed = note_done(step, path, state)
            if failed and failed.count > step.allow_failed * failed.read:
                share = f"allow_failed (a share of the rows, now {step.allow_failed:g}) in {path}"
                print(f"stopped after stage {step.number}, {step.stage}: {failed}", file=sys.stderr)
                print(f"To go on with the other rows, raise {share}", file=sys.stderr)
                return 1
            if failed:
                print(f"{title}: {failed}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
