"""A pipeline's dry run: what every stage would ask, on stand-ins for files that are not there yet.

A stand-in has the rows that a stage would write, with filler for the texts that only a model can
give. Rows are read by the stage's own reader, under its own limit and split.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from aft_factory.convert.__main__ import build_conversion
from aft_factory.engines.scripted import CHARACTERS_PER_TOKEN
from aft_factory.errors import RecordError, UsageError
from aft_factory.pipeline.done import is_done
from aft_factory.pipeline.steps import ASKING, Step, check_ready, without_tokenizer
from aft_factory.records.record import Record, Row, record_from_row
from aft_factory.records.rejects import Rejects
from aft_factory.records.tables import Line, TableWriter, read_rows


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
            if step.stage in ("train", "stats"):
                continue
            source = stand_ins.get(Path(step.input).resolve(), Path(step.input))
            if source in stand_ins.values():
                print("    (its input is not made yet: reckoned with as many rows)", flush=True)
            _check_local(step, source)
            code = _tell(step.reading(source))
            if code:
                return code
            stand_in = Path(folder) / f"{step.number}.jsonl"
            write_stand_in(step.reading(source), stand_in)
            stand_ins[step.outputs[0].resolve()] = stand_in
    return 0


def _check_local(step: Step, source: Path) -> None:
    if not source.exists() and step.read.limit is None:
        raise UsageError(
            f"stages[{step.number}].{step.stage}: {step.input} is on the hub, and a dry run would "
            "read all of it; name a local copy as input, or set a limit"
        )


def _tell(step: Step) -> int:
    """Print what a step would ask; return an exit code."""
    if step.stage in ASKING:
        code = subprocess.run(step.command("--dry-run", "--quiet"), check=False).returncode
        if code:
            return code
    if step.stage == "rank":
        pairs = characters = 0
        for record in _records(step):
            pairs += len(record.proposals)
            said = sum(len(message["content"]) for message in record.messages)
            characters += sum(said + len(text) for text in record.proposals)
        tokens = characters // CHARACTERS_PER_TOKEN
        print(f"{pairs:,} pairs to score, {tokens:,} tokens to read", flush=True)
    return 0


def write_stand_in(step: Step, path: Path) -> None:
    """Write the rows that a step would leave."""
    with TableWriter(path) as table:
        if step.stage == "convert":
            # The real one, but nothing is shortened, as that takes a tokenizer.
            conversion = build_conversion(without_tokenizer(step.read))
            done = conversion.run(_lines(step), table, Rejects(None))
            print(f"{done.read} rows, {done.rejected} of them unusable", flush=True)
            return
        for row in _rows(step):
            table.write(row)


def _rows(step: Step) -> Iterator[Row]:
    settings = step.read
    if step.stage == "rank":
        for record in _records(step):
            row = record.to_row() | {"scores": None, "proposal_models": None}
            yield row | {"proposals": record.proposals[: settings.top_k]}
        return
    filler = "0" * CHARACTERS_PER_TOKEN * min(settings.draft_tokens, settings.max_tokens)
    if step.stage == "run":
        for line in _lines(step):
            if isinstance(line.value, dict):
                yield line.value | {"response": filler}
        return
    for record in _records(step):
        row = record.to_row()
        if step.stage == "aggregate":
            yield row | {"aggregation": filler}
        else:
            proposals = [filler] * settings.samples
            yield row | {"proposals": proposals, "scores": None, "proposal_models": None}


def _records(step: Step) -> Iterator[Record]:
    """Go through the rows that the stages after sampling can use; others they reject."""
    for line in _lines(step):
        try:
            record = record_from_row(line.value, step.read.columns())
        except RecordError:
            continue
        if record.proposals or step.stage == "sample":
            yield record


def _lines(step: Step) -> Iterator[Line]:
    return islice(read_rows(step.input, split=step.read.split), step.read.limit)
