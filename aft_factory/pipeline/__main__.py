"""The command `python -m aft_factory.pipeline`: parse, run what is left to do, print."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from aft_factory.pipeline.done import check_places, fingerprint, forget, is_done, note_done
from aft_factory.pipeline.rehearsal import rehearse
from aft_factory.pipeline.step import Step
from aft_factory.pipeline.steps import check_ready, read_pipeline
from aft_factory.pipeline.supervisor import Supervisor
from aft_factory.stage.console import guarded
from aft_factory.stage.flags import Parser

EXAMPLES = """\
examples:
  # everything, or what is left of it
  aft pipeline examples/pipeline_on_policy_llama.yaml

  # which stages, how many requests, how many tokens?
  aft pipeline examples/pipeline_on_policy_llama.yaml --dry-run
"""
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
