"""A pipeline's dry run: what every stage would ask, on stand-ins for files that are not there yet.

A stand-in has the rows that a stage would write, with filler for the texts that only a model can
give: the stage's own folder tells them. Rows are read under the stage's own limit and split.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from aft_factory.errors import UsageError
from aft_factory.pipeline.done import check_unchanged, is_done
from aft_factory.pipeline.step import COMMANDS, Step
from aft_factory.pipeline.steps import check_ready
from aft_factory.records.table_writer import TableWriter
from aft_factory.stage.console import show


def rehearse(steps: list[Step], path: Path) -> int:
    """Print every stage and what it would ask; return 0, or the exit code of the first that cannot.

    Args:
        steps: Of the pipeline.
        path: Its file.
    """
    check_ready(steps)
    stand_ins: dict[Path, Path] = {}
    with tempfile.TemporaryDirectory() as folder:
        for step in steps:
            print(f"\n[{step.number}] {step}", flush=True)
            if not stand_ins and is_done(step, path):
                print("    done before")
                continue
            if not stand_ins:  # of later ones it is not known yet whether they are done anew
                check_unchanged(step, path)
            command = COMMANDS.get(step.stage)
            if command is None or command.rehearse is None:
                continue
            source = stand_ins.get(Path(step.input).resolve(), Path(step.input))
            if source in stand_ins.values():
                print("    (its input is not made yet: reckoned with as many rows)", flush=True)
            if not source.exists() and step.read.limit is None:
                raise UsageError(
                    f"{step.place}: {step.input} is on the hub, and a dry run would read all of "
                    "it; name a local copy as input, or set a limit"
                )
            if command.asks:
                asking = step.reading(source).command("--dry-run", "--quiet")
                code = subprocess.run(asking, check=False).returncode
                if code:
                    return code
            stand_in = Path(folder) / f"{step.number}.jsonl"
            with TableWriter(stand_in) as table:
                told = command.rehearse(step.read, step.read.lines(str(source)), table)
            if told:
                show(told)
            if not stand_in.stat().st_size and any(True for _ in step.read.lines(str(source))):
                raise UsageError(f"{step.place}: no row can be used; nothing comes after it")
            stand_ins[step.outputs[0].resolve()] = stand_in
    return 0
