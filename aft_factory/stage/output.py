"""What a job leaves behind: rows in the input's order, rejects, a benchmark's file, a summary.

Written from the journal once all queries have ended, or, with `--export`, from what is there.
Every row read is written, rejected or (with `--export`) not done yet.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import orjson

from aft_factory.errors import RecordError, UsageError
from aft_factory.inference.outcome import Outcome
from aft_factory.inference.queries import Query
from aft_factory.records.files import read_text
from aft_factory.records.record import Row
from aft_factory.records.rejects import Rejects, rejects_path
from aft_factory.records.table_writer import TableWriter
from aft_factory.records.tables import Line
from aft_factory.stage.stage import Stage
from aft_factory.stage.totals import Totals


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where a job's rows go.

    Attributes:
        stage: What becomes of a row.
        table: The output file.
        rejects: Rows without answer.
        task_table: A benchmark's own file, if there is one.
    """

    stage: Stage
    table: TableWriter
    rejects: Rejects
    task_table: TableWriter | None = None

    def write(
        self,
        lines: Iterable[Line],
        read: Callable[[Line], Query],
        key_of: Callable[[Query], bytes],
        outcome_of: Callable[[bytes], Outcome | None],
    ) -> Totals:
        """Write every row, in the order of the input.

        A benchmark's file has a row for each: its scorer fails where one is missing, or leaves it
        out. An empty answer stands for one that is not there, and `rejected` says why.

        Args:
            lines: The input.
            read: Line to query; raises RecordError.
            key_of: Names the outcome of a query.
            outcome_of: How the query of this key ended, None if it has not.
        """
        stage, is_right = self.stage, self.stage.is_right
        totals = Totals(of_drafts=stage.of_drafts, correct=None if is_right is None else 0)
        for line in lines:
            totals.read += 1
            query, answers = None, []
            try:
                query = read(line)
                key = key_of(query)
                outcome = outcome_of(key)
                if outcome is None:
                    totals.unfinished += 1
                    continue
                totals.count(outcome, key)
                if outcome.problem is not None:
                    answers = outcome.answers
                    stage.tally.on_problem(outcome)
                    raise RecordError(outcome.about or "row", outcome.problem)
                row = stage.write_row(query, outcome)
            except RecordError as error:
                self.rejects.add(line, error.problem, error.field)
                self._mark(query or stage.unread(line.value), answers, str(error), totals)
                continue
            _write(self.table, row)
            if self.task_table is not None and stage.task_row is not None:
                _write(self.task_table, stage.task_row(query, outcome.answers))
            if is_right is not None and is_right(query, outcome.answers):
                totals.correct = (totals.correct or 0) + 1
        totals.written = self.table.rows
        totals.rejected = self.rejects.count
        totals.rejects = dict(self.rejects.by_field)
        return totals

    def _mark(self, query: Query | None, answers: list[str], why: str, totals: Totals) -> None:
        """Write the row of a benchmark's file for a query that has no answer."""
        task_row = self.stage.task_row
        if self.task_table is None or task_row is None:
            return
        if query is None:
            totals.unnamed += 1
            return
        empty = [""] * (len(query.turns) - len(answers))
        _write(self.task_table, task_row(query, [*answers, *empty]) | {"rejected": why})
        totals.marked += 1


def _write(table: TableWriter, row: Row) -> None:
    try:
        table.write(row)
    except TypeError:  # an input column of a type that JSON has not; the answer was paid for
        table.write(json.loads(json.dumps(row, default=str)))


def read_summary(output: Path) -> Row:
    """Return the summary of an output that is there; nothing where there is none."""
    try:
        return read_report(output) if output.exists() else {}
    except OSError:  # it may be where we must not look
        return {}


def read_report(output: Path) -> Row:
    """Return the last summary of a job, even if that left no output; nothing where it has none."""
    try:
        found = orjson.loads(read_text(summary_path(output)))
    except (OSError, ValueError, UsageError):
        return {}
    return found if isinstance(found, dict) else {}


def summary_path(output: Path) -> Path:
    """Return where the summary of an output goes: `out.summary.json` for `out.jsonl`."""
    rejects = rejects_path(output)
    return rejects.with_name(rejects.name.replace(".rejects.jsonl", ".summary.json"))
