"""What a job reads and writes: its files, written from the journal, and its account printed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from aft_factory.asking.journal import Journal
from aft_factory.errors import AftError, RecordError, UsageError
from aft_factory.inference.accounting import ModelShape
from aft_factory.inference.outcome import Outcome
from aft_factory.inference.queries import Query
from aft_factory.inference.runner import Runner
from aft_factory.inference.strategies import Strategy
from aft_factory.records.files import check_writable
from aft_factory.records.record import Row
from aft_factory.records.rejects import Rejects
from aft_factory.records.table_writer import TableWriter
from aft_factory.records.tables import Line
from aft_factory.stage.job_settings import JobSettings
from aft_factory.stage.output import Outputs, summary_path, write_summary
from aft_factory.stage.reading import check_paths
from aft_factory.stage.stage import Files, Stage
from aft_factory.stage.totals import Totals, describe, summary


class JobFiles:
    """What a job reads and writes.

    Attributes:
        files: Its files, as named.
        settings: Its settings.
        stage: From rows to queries, and from outcomes to rows.
        session: What the run that has just ended took.
        shapes: The names of the model and of the reward model, to know their sizes by.
    """

    def __init__(self, files: Files, settings: JobSettings, stage: Stage) -> None:
        self.files = files
        self.settings = settings
        self.stage = stage
        self.session: Row = {}
        self.shapes = (stage.dry_run.shape_name, stage.dry_run.reward_shape)

    @property
    def output(self) -> Path:
        """The output file.

        Raises:
            UsageError: If none was named.
        """
        if self.files.output is None:
            raise UsageError("--output is missing (it is optional only with --dry-run)")
        return self.files.output

    @property
    def journal_path(self) -> Path:
        """Where the journal is."""
        return self.settings.journal_of(self.output)

    @property
    def rejects_path(self) -> Path:
        """Where rows without answer go."""
        return self.settings.rejects_of(self.output)

    def check_outputs(self) -> None:
        """Refuse outputs that cannot be meant, before anything is paid for."""
        writes = {
            "--output": self.output,
            "--rejects": self.rejects_path,
            "--task-output": self.files.task_output,
            "the summary": summary_path(self.output),
            "--journal": self.journal_path,
        }
        check_paths([self.files.source], list(writes.items()))
        overwrite = self.files.overwrite
        for path in (self.output, self.files.task_output):
            if path is not None:
                TableWriter(path, overwrite=overwrite)  # checks
        if self.settings.rejects is not None:
            check_writable(self.settings.rejects, overwrite=overwrite)

    def lines(self) -> Iterator[Line]:
        """Go through the rows of the input."""
        return self.settings.lines(self.files.source)

    def query(self, line: Line) -> Query:
        """Read a row.

        Raises:
            RecordError: If it cannot be used.
        """
        if line.problem is not None:
            raise RecordError("row", line.problem)
        return self.stage.read_row(line.value)

    def write_outputs(self, journal: Journal) -> Totals:
        """Write the outputs from the journal, and print the account.

        The output appears last: where it is, all is there, and where it is not, the same command
        ends what was begun.
        """
        fingerprint = journal.last_run()
        if fingerprint is None:
            raise UsageError(f"{self.journal_path}: no run has begun in it")

        def outcome_of(key: bytes) -> Outcome | None:
            content = journal.outcome(key)
            return None if content is None else Outcome(**content)

        key_of = partial(Runner.outcome_key, fingerprint=fingerprint)
        task_output, overwrite = self.files.task_output, self.files.overwrite
        with (
            contextlib.ExitStack() as until,
            TableWriter(self.output, overwrite=overwrite) as table,
            Rejects(self.rejects_path, overwrite=True, until=until) as rejects,
        ):
            outputs = Outputs(
                table,
                rejects,
                self.stage.write_row,
                task_row=self.stage.task_row,
                unread=self.stage.unread,
                is_right=self.stage.is_right,
                on_problem=self.stage.tally.on_problem,
                of_drafts=self.stage.of_drafts,
            )
            with contextlib.suppress(_NotDoneError), contextlib.ExitStack() as stack:
                if task_output is not None:
                    task_table = TableWriter(task_output, overwrite=overwrite, until=until)
                    outputs = replace(outputs, task_table=stack.enter_context(task_table))
                totals = outputs.write(self.lines(), self.query, key_of, outcome_of)
                if totals.unfinished:  # the benchmark's file would look complete
                    raise _NotDoneError
            flops = self.flops_of(totals, self.stage.strategy, self.stage.options)
            sessions = journal.sessions()
            more = {
                "seconds": round(sum(session["seconds"] for session in sessions), 3),
                "sessions": sessions,
                "session": self.session,
                "settings": asdict(self.settings) | dict(self.stage.used),
                "input": self.files.source,
                **self.stage.tally.summary(),
            }
            write_summary(summary_path(self.output), summary(totals, flops, more))
        counts = f"{totals.written} written to {self.output}, {totals.rejected} rejected"
        if totals.rejected:
            counts += f" ({self.rejects_path})"
        if totals.unfinished:
            counts += f", {totals.unfinished} not done yet"
        print(f"read {totals.read} rows: {counts}")
        for name, (count, first) in totals.rejects.items():
            print(f"  {count} x {name}: {first}")
        if task_output is not None:
            print("\n".join(_told_of_task(totals, task_output)))
        print("\n".join([*describe(totals, flops), *self.stage.tally.describe()]))
        return totals

    def flops_of(
        self, totals: Totals, strategy: Strategy, options: Mapping[str, Any]
    ) -> dict[str, float | None] | None:
        """Return the FLOPs of what a job asked; None where the model's size is unknown."""
        own = _shape(self.shapes[0])
        if own is None:
            return None
        # Of another model at a server its name is all there is to go by.
        others = {name: _shape(name) for name in totals.by_model if name and _is_named(name)}
        reward = None if totals.scored is None else _shape(self.shapes[1], classifier=True)
        return totals.flops({"": own, **others}, reward, strategy, options)


class _NotDoneError(Exception):
    """Some rows are not done yet."""


def _told_of_task(totals: Totals, path: Path) -> list[str]:
    """Return what there is to know of a benchmark's file."""
    if totals.unfinished:
        return [f"{path} is not written: {totals.unfinished} rows are not done yet"]
    rows = totals.written + totals.marked
    told = [f"{path}: {rows} rows"]
    if totals.marked:
        told[0] += f", {totals.marked} of them with an empty answer, marked `rejected`"
    if totals.unnamed:
        told.append(
            f"{path}: {totals.unnamed} rows are not in it, as they lack what its scorer knows "
            "them by"
        )
    return told


def _is_named(name: str) -> bool:
    """Tell whether a name is a folder or OWNER/NAME; a server may call a model by any word."""
    return name.count("/") == 1 or Path(name).is_dir()


def _shape(name: str | None, *, classifier: bool = False) -> ModelShape | None:
    if name is None:
        return None
    try:
        return ModelShape.load(name, classifier=classifier)
    except AftError:  # a served name that is no folder and no hub name here
        return None
