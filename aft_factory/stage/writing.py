"""What a job reads and writes: its files, written from the journal, and its account printed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from aft_factory.asking.journal import Journal
from aft_factory.errors import AftError, RecordError, UsageError
from aft_factory.inference.accounting import ModelShape
from aft_factory.inference.outcome import Outcome
from aft_factory.inference.queries import Query
from aft_factory.inference.runner import Runner
from aft_factory.inference.strategy import Strategy
from aft_factory.network import without_secrets
from aft_factory.prompts.tokenizer import Pretrained
from aft_factory.records.record import Row
from aft_factory.records.rejects import Rejects
from aft_factory.records.replacing import check_writable, write_report
from aft_factory.records.table_writer import TableWriter
from aft_factory.records.tables import Line
from aft_factory.stage.console import show
from aft_factory.stage.following import following, merging
from aft_factory.stage.job_settings import JobSettings
from aft_factory.stage.kept import NOT_BEGUN
from aft_factory.stage.output import Outputs, read_summary, summary_path
from aft_factory.stage.reading import check_paths
from aft_factory.stage.stage import Files, Stage
from aft_factory.stage.totals import Totals, describe, summary

TO_MEND = {"context": " (a smaller --max-tokens leaves it more room)"}  # by what a reject is about


class JobFiles:
    """What a job reads and writes.

    Attributes:
        files: Its files, as named.
        settings: Its settings.
        stage: From rows to queries, and from outcomes to rows.
        session: What the run that has just ended took.
        before: The summary of the output that is there.
        shapes: Where the sizes of the model and of the reward model are read.
    """

    def __init__(self, files: Files, settings: JobSettings, stage: Stage) -> None:
        self.files = files
        self.settings = settings
        self.stage = stage
        self.session: Row = {}
        self.shapes = (stage.dry_run.shape, stage.dry_run.reward_shape)
        self.before = {} if files.output is None else read_summary(files.output)

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

    @property
    def overwrite(self) -> bool:
        """Whether the output may be replaced: one that `--export` wrote in between always may."""
        return self.files.overwrite or bool(self.before.get("unfinished"))

    def check_outputs(self, *, export: bool = False) -> None:
        """Refuse outputs that cannot be meant or written, before anything is paid for."""
        writes = {
            "--output": self.output,
            "--rejects": self.rejects_path,
            "--task-output": self.files.task_output,
            "the summary": summary_path(self.output),
        }
        reads = [self.files.source]
        if export:
            reads.append(str(self.journal_path))
        else:
            writes["--journal"] = self.journal_path
        check_paths(reads, list(writes.items()))
        journal = self.journal_path
        note = f"; the answers in {journal} are used again" if journal.exists() else ""
        checked = [(self.output, self.overwrite), (self.files.task_output, self.files.overwrite)]
        for path, overwrite in checked:
            if path is not None:
                check_writable(path, overwrite=overwrite, note=note)
                TableWriter(path, overwrite=overwrite)  # checks the rest
        if self.settings.rejects is not None:
            check_writable(self.settings.rejects, overwrite=self.overwrite, note=note)

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
            raise UsageError(f"{self.journal_path}: {NOT_BEGUN}")

        def outcome_of(key: bytes) -> Outcome | None:
            content = journal.outcome(key)
            return None if content is None else Outcome(**content)

        key_of = partial(Runner.outcome_key, fingerprint=fingerprint)
        task_output = self.files.task_output
        with (
            contextlib.ExitStack() as until,
            TableWriter(self.output, overwrite=self.overwrite) as table,
            Rejects(self.rejects_path, overwrite=True, until=until) as rejects,
        ):
            with contextlib.ExitStack() as stack:
                task_table = None
                if task_output is not None:
                    task_table = stack.enter_context(
                        TableWriter(task_output, overwrite=self.files.overwrite, until=until)
                    )
                outputs = Outputs(self.stage, table, rejects, task_table)
                totals = outputs.write(self.lines(), self.query, key_of, outcome_of)
                if totals.is_empty:  # nothing is to be in the way of the same command
                    table.withdraw()
                if task_table is not None and (totals.is_empty or totals.unfinished):
                    task_table.withdraw()  # it would look complete
            flops = self.flops_of(totals, self.stage.strategy, self.stage.options)
            sessions = journal.sessions()
            more = {
                "seconds": round(sum(session["seconds"] for session in sessions), 3),
                "sessions": sessions,
                "run": fingerprint,
                "session": self.session,
                "settings": without_secrets(asdict(self.settings)) | dict(self.stage.used),
                "input": self.files.source,
                **self.stage.tally.summary(),
            }
            write_report(summary_path(self.output), summary(totals, flops, more))
        place = "" if totals.is_empty else f" to {self.output}"
        counts = f"{totals.written} written{place}, {totals.rejected} rejected"
        if totals.rejected:
            counts += f" ({self.rejects_path})"
        if totals.unfinished:
            counts += f", {totals.unfinished} not done yet"
        told = [f"read {totals.read} rows: {counts}"]
        told += [
            f"  {count} x {name}: {first}{TO_MEND.get(name, '')}"
            for name, (count, first) in totals.rejects.items()
        ]
        if task_output is not None:
            told += _told_of_task(totals, task_output)
        told += self._stale()
        told += [*describe(totals, flops), *self.stage.tally.describe()]
        if totals.total.requests:
            asked = self.session.get("requests_asked", 0)
            kept = max(totals.total.requests - asked, 0)
            tried = self.session.get("requests_tried", 0)
            before = f"; before, {tried} of one token, for what the server takes" if tried else ""
            told.append(f"requests: {asked:,} asked, {kept:,} from the journal{before}")
        if totals.written and not totals.unfinished:
            told += self.following()
        show("\n".join(told))
        return totals

    def following(self) -> list[str]:
        """Return the line that tells what comes next: of a shard, that the parts are joined."""
        shard = self.settings.shard
        if shard is None:
            words = self.stage.following(self.output)
            return following(*words) if words else []
        return merging(self.output, shard)

    def _stale(self) -> list[str]:
        """Tell of a benchmark's file that is of the run before, whose output was replaced."""
        name = self.before.get("settings", {}).get("task_output")
        if name is None or not Path(name).exists() or Path(name) == self.files.task_output:
            return []
        return [f"warning: {name} is of the run before; --task-output writes it anew"]

    def flops_of(
        self, totals: Totals, strategy: Strategy, options: Mapping[str, Any]
    ) -> dict[str, float | None] | None:
        """Return the FLOPs of what a job asked; None where the model's size is unknown."""
        own = _shape(self.shapes[0])
        if own is None:
            return None
        # Of another model at a server its name is all there is to go by.
        others = {name: _shape(name, here=True) for name in totals.by_model if name}
        reward = None if totals.scored is None else _shape(self.shapes[1], classifier=True)
        return totals.flops({"": own, **others}, reward, strategy, options)


def _told_of_task(totals: Totals, path: Path) -> list[str]:
    """Return what there is to know of a benchmark's file."""
    if totals.unfinished:
        return [f"{path} is not written: {totals.unfinished} rows are not done yet"]
    if totals.is_empty:
        return [f"{path} is not written: no row has an answer"]
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


def _shape(
    source: str | Pretrained | None, *, classifier: bool = False, here: bool = False
) -> ModelShape | None:
    """Return a shape, where it is known; a server's name for a model is not looked up (`here`)."""
    if source is None:
        return None
    try:
        return ModelShape.load(source, classifier=classifier, here=here)
    except AftError:  # a served name that is no folder and no hub name here
        return None
