"""One job of a stage, from its settings to its files: survey, ask, write; or a dry run.

Everything answered is in the journal at once; the outputs are written from it in the end, whole and
in the input's order. A job can be killed at any moment, and the same command goes on where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from aft_factory.asking.asker import Asker
from aft_factory.asking.availability import Retries
from aft_factory.asking.journal import Journal
from aft_factory.engines.engine import EngineError
from aft_factory.engines.sampling import Usage
from aft_factory.errors import RecordError
from aft_factory.inference.outcome import Outcome
from aft_factory.inference.queries import Query
from aft_factory.inference.runner import Runner, window
from aft_factory.records.columns import Columns
from aft_factory.records.fields import OBJECT, is_blank
from aft_factory.records.leftovers import may_be_part
from aft_factory.records.record import Row, note_beside, record_from_row, told_beside
from aft_factory.records.rejects import Rejects
from aft_factory.stage.console import show
from aft_factory.stage.engines import OpenEngines
from aft_factory.stage.following import in_pipeline
from aft_factory.stage.job_settings import JobSettings
from aft_factory.stage.kept import keepable
from aft_factory.stage.left import open_left
from aft_factory.stage.progress import Progress
from aft_factory.stage.reading import check_again
from aft_factory.stage.signals import graceful
from aft_factory.stage.stage import Files, Stage
from aft_factory.stage.totals import Totals, describe
from aft_factory.stage.writing import JobFiles

MOST_SHOWING = 100  # rows, of which each has a column that is new: more are no columns


class Job(JobFiles):
    """A stage at work on its files."""

    def __init__(self, files: Files, settings: JobSettings, stage: Stage, total: int) -> None:
        super().__init__(files, settings, stage)
        self.total = total

    def run(self, *, export: bool = False) -> Totals | None:
        """Answer what is not answered yet and write the outputs; None if it was stopped before.

        Args:
            export: Ask nothing; write what the last run of this journal has done.
        """
        self.check_outputs(export=export)
        with Journal(self.journal_path, read_only=export) as journal:
            try:
                ended = export or asyncio.run(self._answer(journal))
            except EngineError as error:
                kept = f"{self.journal_path}; the same command goes on from there"
                raise EngineError(
                    f"{error}\nnothing answered is lost: it is in {kept}", error.kind
                ) from error
            if ended:
                return self.write_outputs(journal)
        exports = self.stage.exports and not in_pipeline()
        writes = "; with --export it writes what is done so far" if exports else ""
        print(
            f"stopped; everything answered is in {self.journal_path}. The same command goes on "
            f"from there{writes}.",
            file=sys.stderr,
        )
        return None

    def dry_run(self) -> int:
        """Go through the motions without a model, and print what it would take.

        Returns:
            The exit code: 1 where no row can be used, as of the job itself.
        """
        return asyncio.run(self._dry_run())

    def _runner(self, asker: Asker, opened: OpenEngines) -> Runner:
        return Runner(
            strategy=self.stage.strategy,
            options=self.stage.options,
            settings=self.stage.drafting(),
            asker=asker,
            model=opened.engines[""].model,
            fitters=opened.fitters,
            markers=opened.markers,
            no_system=opened.no_system,
            score=opened.score,
            count=opened.count,
            scorer=opened.scorer,
            keep_drafts=self.stage.keep_drafts,
            use_proposals=self.stage.use_proposals,
        )

    async def _answer(self, journal: Journal) -> bool:
        """Answer what is not answered yet; return whether all of it ended."""
        started = time.monotonic()
        async with contextlib.AsyncExitStack() as stack:
            engines = await stack.enter_async_context(self.stage.open())
            gc.freeze()  # what is loaded stays: no need to look for garbage in it time and again
            self.shapes = (engines.shape, engines.reward_shape)
            retries = Retries(self.settings.retries)
            asker = Asker(engines.engines, journal, engines.in_flight, retries)
            stack.enter_context(graceful(asker.stop, engines.stop))  # outlasts what was sent
            await stack.enter_async_context(asker)
            runner = self._runner(asker, engines)
            fingerprint = runner.fingerprint
            journal.forget_problems()
            began = time.time() - (time.monotonic() - started)
            journal.begin_run(fingerprint, began, keepable(self.settings))
            progress = stack.enter_context(Progress(self.total, asker, quiet=self.files.quiet))

            def pending() -> Iterator[Query | None]:
                for line in self.lines():
                    try:
                        query = self.query(line)
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
                told = replace(outcome, model=engines.name)
                journal.keep_outcome(key, told, query=query.id, done=done)
                progress.advance()

            admitted = self.settings.admit or window(engines.in_flight)
            ended = await runner.answer_all(pending(), admitted, keep)
        journal.note_time()
        self.session = {
            "seconds": round(time.monotonic() - started, 3),
            "requests_asked": asker.counts.asked.requests,
            "requests_tried": engines.tried,
            "attempts_failed": asker.counts.retried,
            "most_in_flight": asker.limiter.most,
            "tokens": asdict(asker.counts.asked),
        }
        return ended

    async def _dry_run(self) -> int:
        dry = self.stage.dry_run
        asker = Asker(dry.engines, None, dry.in_flight)
        totals = Totals()
        rejects = Rejects(None)

        def queries() -> Iterator[Query]:
            for line in self.lines():
                totals.read += 1
                try:
                    yield self.query(line)
                except RecordError as error:
                    rejects.add(line, error.problem, error.field)

        output, journal = self.files.output, self.settings.journal
        kept = journal if output is None else self.journal_path
        async with contextlib.AsyncExitStack() as stack:
            left = stack.enter_context(open_left(kept, self.settings))
            await stack.enter_async_context(asker)
            progress = Progress(self.total, asker, quiet=self.files.quiet)

            def count(query: Query, outcome: Outcome) -> None:
                if totals.count(outcome, Runner.outcome_key(query, "")) and left is not None:
                    left.count(query, outcome)
                progress.advance()

            with progress:
                await self._runner(asker, dry).answer_all(queries(), dry.in_flight, count)
        totals.finish_reasons.clear()
        expected = f"To expect, {self.stage.dry_run_note}:"
        flops = self.flops_of(totals, self.stage.strategy, self.stage.options)
        told = [f"{rejects.unusable(totals.read)}. {expected}"]
        told += describe(totals, flops, measured=False)
        told += self._priced("price", totals.total)
        if left is not None:
            told += left.describe(totals.read - rejects.count - totals.repeated)
            told += [] if left.other else self._priced("price of that", left.usage)
        show("\n".join(told))
        return 1 if 0 < totals.read == rejects.count else 0

    def _priced(self, what: str, usage: Usage) -> list[str]:
        """Return what tokens cost, where the settings know prices."""
        prices = getattr(self.settings, "price_in", None), getattr(self.settings, "price_out", None)
        if prices == (None, None):
            return []
        cost = sum(
            (price or 0) * (count or 0) / 1e6
            for price, count in zip(prices, (usage.prompt, usage.completion), strict=True)
        )
        digits = max(2, 1 - math.floor(math.log10(cost))) if cost else 2  # two that tell something
        return [f"{what}: {cost:,.{digits}f}, by --price-in and --price-out"]


def survey(source: str, settings: JobSettings) -> tuple[int, list[Row]]:
    """Count the rows to read, and return the count and those that show what rows hold.

    These are the first that is an object, and each that is the first with something in a column; of
    the whole input, so that all shards take it for the same.

    Raises:
        UsageError: If the input cannot be read again, as it will be.
    """
    check_again(source)
    count, rows = 0, list[Row]()
    seen: set[Any] = set()
    for line in replace(settings, shard=None).lines(source):
        count += 1
        if not isinstance(line.value, OBJECT) or len(rows) == MOST_SHOWING:
            continue
        new = {name for name in line.value.keys() - seen if not is_blank(line.value[name])}
        if new or not rows:
            seen |= new
            rows.append(dict(line.value))
    return len(range(count)[settings.taken()]), rows


def note_of_columns(rows: Sequence[Row], stage: Stage, columns: Columns) -> str | None:
    """Say which columns of rows are in no prompt; None where all are, or are a benchmark's."""
    beside: set[str] = set()
    for row in rows:
        if stage.columns:
            beside |= {
                name
                for name in row
                if name not in (*stage.columns, *columns.ignored)
                and not (is_blank(row[name]) or may_be_part(str(name), row[name]))
            }
            continue
        with contextlib.suppress(RecordError):  # which is told of its row
            note_beside(record_from_row(row, columns), row, beside, columns)
    return told_beside(beside) if beside else None
