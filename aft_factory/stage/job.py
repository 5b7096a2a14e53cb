"""One job of a stage, from its settings to its files: survey, ask, write; or a dry run.

Everything answered is in the journal at once; the outputs are written from it in the end, whole and
in the input's order. A job can be killed at any moment, and the same command goes on where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from aft_factory.accounting import ModelShape
from aft_factory.asking import Asker, Retries
from aft_factory.convert.pipeline import default_rejects
from aft_factory.engines import EngineError
from aft_factory.errors import AftError, RecordError, UsageError
from aft_factory.fields import OBJECT
from aft_factory.files import check_writable
from aft_factory.journal import Journal
from aft_factory.progress import Progress
from aft_factory.records import Row
from aft_factory.runner import Outcome, Runner, window
from aft_factory.stage import Files, Stage
from aft_factory.stage.engines import Opened
from aft_factory.stage.output import Outputs, Totals, describe, summary, write_summary
from aft_factory.stage.settings import JobSettings, check_paths
from aft_factory.stage.signals import graceful
from aft_factory.tables import Line, Rejects, TableWriter, read_rows
from aft_factory.tasks import Query


class Job:
    """A stage at work on its files."""

    def __init__(self, files: Files, settings: JobSettings, stage: Stage, total: int) -> None:
        self.files = files
        self.settings = settings
        self.stage = stage
        self.total = total
        self.session: Row = {}
        self.shape_name = stage.dry.shape_name

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
        return self.settings.journal or Path(f"{self.output}.journal")

    @property
    def rejects_path(self) -> Path:
        """Where rows without answer go."""
        return self.settings.rejects or default_rejects(self.output)

    def run(self, *, export: bool = False) -> Totals | None:
        """Answer what is not answered yet and write the outputs; None if it was stopped before.

        Args:
            export: Ask nothing; write what the last run of this journal has done.
        """
        self._check_outputs()
        with Journal(self.journal_path, read_only=export) as journal:
            try:
                ended = export or asyncio.run(self._answer(journal))
            except EngineError as error:
                kept = f"{self.journal_path}; the same command goes on from there"
                raise EngineError(
                    f"{error}\nnothing answered is lost: it is in {kept}", error.kind
                ) from error
            if ended:
                return self._write(journal)
        print(
            f"stopped; everything answered is in {self.journal_path}. The same command goes on "
            "from there; with --export it writes what is done so far.",
            file=sys.stderr,
        )
        return None

    def dry_run(self) -> None:
        """Go through the motions without a model, and print what it would take."""
        asyncio.run(self._dry_run())

    def _check_outputs(self) -> None:
        """Refuse outputs that cannot be meant, before anything is paid for."""
        writes = {
            "--output": self.output,
            "--rejects": self.rejects_path,
            "--task-output": self.files.task_output,
            "the summary": summary_path(self.output),
            "--journal": self.journal_path,
        }
        check_paths({"the input": self.files.source}, writes)
        overwrite = self.files.overwrite
        for path in (self.output, self.files.task_output):
            if path is not None:
                TableWriter(path, overwrite=overwrite)  # checks
        if self.settings.rejects is not None:
            check_writable(self.settings.rejects, overwrite=overwrite)

    def _lines(self) -> Iterator[Line]:
        return islice(read_rows(self.files.source, split=self.settings.split), self.settings.limit)

    def _query(self, line: Line) -> Query:
        if line.problem is not None:
            raise RecordError("row", line.problem)
        return self.stage.read_row(line.value)

    def _runner(self, asker: Asker, opened: Opened) -> Runner:
        return Runner(
            strategy=self.stage.strategy,
            options=self.stage.options,
            settings=self.stage.drafting,
            asker=asker,
            model=opened.engines[""].model,
            fitters=opened.fitters,
            markers=opened.markers,
            score=opened.score,
            scorer=opened.scorer,
            keep_drafts=self.stage.keep_drafts,
        )

    async def _answer(self, journal: Journal) -> bool:
        """Answer what is not answered yet; return whether all of it ended."""
        started = time.monotonic()
        async with contextlib.AsyncExitStack() as stack:
            engines = await stack.enter_async_context(self.stage.open())
            self.shape_name = engines.shape_name
            retries = Retries(self.settings.retries)
            asker = Asker(engines.engines, journal, engines.in_flight, retries)
            stack.enter_context(graceful(asker.stop, engines.stop))  # outlasts what was sent
            await stack.enter_async_context(asker)
            runner = self._runner(asker, engines)
            fingerprint = runner.fingerprint
            journal.forget_problems()
            journal.begin_run(fingerprint, time.time() - (time.monotonic() - started))
            progress = stack.enter_context(Progress(self.total, asker, quiet=self.files.quiet))

            def pending() -> Iterator[Query | None]:
                for line in self._lines():
                    try:
                        query = self._query(line)
                    except RecordError:
                        query = None  # it is counted when the outputs are written
                    if query is None or journal.has_outcome(runner.outcome_key(query, fingerprint)):
                        progress.advance()
                        yield None
                    else:
                        journal.keep_query(query.id, query.turns)
                        yield query

            def keep(query: Query, outcome: Outcome) -> None:
                key = runner.outcome_key(query, fingerprint)
                done = outcome.problem is None
                content = asdict(replace(outcome, model=engines.name))
                journal.keep_outcome(key, content, query=query.id, done=done)
                progress.advance()

            admitted = self.settings.admit or window(engines.in_flight)
            ended = await runner.answer_all(pending(), admitted, keep)
        journal.note_time()
        self.session = {
            "seconds": round(time.monotonic() - started, 3),
            "requests_asked": asker.counts.asked,
            "requests_replayed": asker.counts.replayed,
            "attempts_failed": asker.counts.retried,
            "most_in_flight": asker.limiter.most,
            "tokens": asdict(asker.counts.usage),
        }
        return ended

    def _write(self, journal: Journal) -> Totals:
        """Write the outputs from the journal, and print the account."""
        fingerprint = journal.last_run()
        if fingerprint is None:
            raise UsageError(f"{self.journal_path}: no run has begun in it")

        def outcome_of(key: bytes) -> Outcome | None:
            content = journal.outcome(key)
            return None if content is None else Outcome(**content)

        with contextlib.ExitStack() as stack:
            overwrite = self.files.overwrite
            table = stack.enter_context(TableWriter(self.output, overwrite=overwrite))
            rejects = stack.enter_context(Rejects(self.rejects_path, overwrite=True))
            task_table = None
            if self.files.task_output is not None:
                task_table = TableWriter(self.files.task_output, overwrite=overwrite)
                stack.enter_context(task_table)
            outputs = Outputs(
                table,
                rejects,
                self.stage.write_row,
                task_table,
                self.stage.task_row,
                on_problem=self.stage.tally.on_problem,
                of_drafts=self.stage.of_drafts,
            )
            key_of = partial(Runner.outcome_key, fingerprint=fingerprint)
            totals = outputs.write(self._lines(), self._query, key_of, outcome_of)
        flops = self._flops(totals)
        sessions = journal.sessions()
        more = {
            "seconds": round(sum(session["seconds"] for session in sessions), 3),
            "sessions": sessions,
            "session": self.session,
            "settings": asdict(self.settings),
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
        print("\n".join([*describe(totals, flops), *self.stage.tally.describe()]))
        return totals

    async def _dry_run(self) -> None:
        dry = self.stage.dry
        asker = Asker(dry.engines, None, dry.in_flight)
        totals = Totals()
        unusable = 0

        def queries() -> Iterator[Query]:
            nonlocal unusable
            for line in self._lines():
                totals.read += 1
                try:
                    yield self._query(line)
                except RecordError:
                    unusable += 1

        async with asker:
            progress = Progress(self.total, asker, quiet=self.files.quiet)

            def count(query: Query, outcome: Outcome) -> None:
                totals.count(outcome, Runner.outcome_key(query, ""))
                progress.advance()

            with progress:
                await self._runner(asker, dry).answer_all(queries(), dry.in_flight, count)
        totals.finish_reasons.clear()
        print(f"{totals.read} rows, {unusable} of them unusable. To expect, {self.stage.dry_note}:")
        print("\n".join(describe(totals, self._flops(totals), measured=False)))

    def _flops(self, totals: Totals) -> dict[str, float | None] | None:
        if self.shape_name is None:
            return None
        try:
            shape = ModelShape.load(self.shape_name)
        except AftError:  # a served name that is no folder and no hub name here
            return None
        return totals.flops(shape, self.stage.strategy.__name__, self.stage.options)


def survey(source: str, settings: JobSettings) -> tuple[int, Any]:
    """Count the rows of the input, and return the count and the first that is an object."""
    count, first = 0, None
    for line in islice(read_rows(source, split=settings.split), settings.limit):
        if first is None and isinstance(line.value, OBJECT):
            first = line.value
        count += 1
    return count, first


def summary_path(output: Path) -> Path:
    """`data/out.v1.jsonl.gz` -> `data/out.v1.summary.json`."""
    rejects = default_rejects(output)
    return rejects.with_name(rejects.name.replace(".rejects.jsonl", ".summary.json"))
