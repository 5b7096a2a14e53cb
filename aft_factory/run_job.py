"""One run, from its settings to its files: survey, ask, write; or a dry run.

Everything answered is in the journal at once; the outputs are written from it in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

from aft_factory.accounting import ModelShape
from aft_factory.asking import Asker, Retries
from aft_factory.convert.pipeline import default_rejects
from aft_factory.engines import Engine
from aft_factory.errors import AftError, RecordError, UsageError
from aft_factory.files import check_writable
from aft_factory.journal import Journal
from aft_factory.progress import Progress
from aft_factory.run_engines import Opened, dry_engine, opened
from aft_factory.run_output import Outputs, Totals, describe, summary, write_summary
from aft_factory.run_settings import RunSettings, check_paths
from aft_factory.runner import Outcome, Runner
from aft_factory.strategies import STRATEGIES
from aft_factory.tables import Line, Rejects, TableWriter, read_rows
from aft_factory.tasks import Query, Task


def survey(name: str, settings: RunSettings) -> tuple[int, Any]:
    """Count the rows of the input, and return the count and the first row."""
    count, first = 0, None
    for line in islice(read_rows(name, split=settings.split), settings.limit):
        first = line.value if count == 0 else first
        count += 1
    return count, first


class Job:
    """One run: its input, its settings and its files."""

    def __init__(
        self, args: argparse.Namespace, settings: RunSettings, task: Task, total: int
    ) -> None:
        self.args = args
        self.settings = settings
        self.task = replace(task, read_row=self._read_row(task.read_row))
        self.total = total
        self.seconds = 0.0
        self.session: dict[str, Any] = {}
        self.shape_name: str | None = settings.tokenizer or settings.model

    @property
    def journal_path(self) -> Path:
        """Where the journal is."""
        return self.settings.journal or Path(f"{self.args.output}.journal")

    def check_outputs(self) -> None:
        """Refuse outputs that cannot be meant, before anything is paid for.

        Raises:
            UsageError: With the first problem.
        """
        output: Path | None = self.args.output
        if output is None:
            raise UsageError("--output is missing (it is optional only with --dry-run)")
        writes = {
            "--output": output,
            "--rejects": self.settings.rejects or default_rejects(output),
            "--task-output": self.settings.task_output,
            "the summary": summary_path(output),
            "--journal": self.journal_path,
        }
        check_paths({"the input": self.args.input}, writes)
        TableWriter(output, overwrite=self.args.overwrite)
        if self.settings.rejects is not None:
            check_writable(self.settings.rejects, overwrite=self.args.overwrite)
        if self.settings.task_output is not None:
            TableWriter(self.settings.task_output, overwrite=self.args.overwrite)

    def lines(self) -> Iterator[Line]:
        """Read the input."""
        return islice(read_rows(self.args.input, split=self.settings.split), self.settings.limit)

    def _read_row(self, read_row: Callable[[Any], Query]) -> Callable[[Any], Query]:
        if self.settings.final_temperature is None:
            return read_row

        def read(row: Any) -> Query:
            """A temperature that was asked for goes before the one that the task would set."""
            query = read_row(row)
            final = {key: v for key, v in query.final.items() if key != "temperature"}
            return replace(query, final=final)

        return read

    def runner(self, asker: Asker, engines: Opened, model: str) -> Runner:
        """Return what answers the queries of this run."""
        return Runner(
            strategy=STRATEGIES[self.settings.strategy],
            options=self.settings.options(),
            settings=self.settings.drafting(),
            asker=asker,
            model=model,
            fitters=engines.fitters,
            score=engines.score,
            keep_drafts=self.settings.keep_drafts,
        )

    async def answer(self, journal: Journal) -> bool:
        """Answer what is not answered yet; return whether all of it ended."""
        started = time.monotonic()
        async with contextlib.AsyncExitStack() as stack:
            engines = await stack.enter_async_context(opened(self.settings))
            self.shape_name = engines.shape_name
            asker = Asker(
                engines.engines, journal, engines.in_flight, Retries(self.settings.retries)
            )
            runner = self.runner(asker, engines, engines.engines[""].model)
            fingerprint = runner.fingerprint
            journal.forget_problems()
            journal.begin_run(fingerprint)
            progress = stack.enter_context(Progress(self.total, asker, quiet=self.args.quiet))
            stack.enter_context(graceful(asker.stop))

            def pending() -> Iterator[Query]:
                for line in self.lines():
                    try:
                        query = self._query(line)
                    except RecordError:
                        progress.advance()  # it is counted when the outputs are written
                        continue
                    if journal.has_outcome(runner.outcome_key(query, fingerprint)):
                        progress.advance()
                        continue
                    journal.keep_query(query.id, query.turns)
                    yield query

            def keep(query: Query, outcome: Outcome) -> None:
                key = runner.outcome_key(query, fingerprint)
                journal.keep_outcome(key, asdict(outcome), done=outcome.problem is None)
                progress.advance()

            window = self.settings.admit or 4 * engines.in_flight
            await runner.answer_all(pending(), window, keep)
            finished = not asker.stopped
            self.seconds = time.monotonic() - started
            counts = asker.counts
            self.session = {
                "seconds": round(self.seconds, 3),
                "requests_asked": counts.asked,
                "requests_replayed": counts.replayed,
                "attempts_failed": counts.retried,
                "most_in_flight": asker.limiter.most,
                "tokens": asdict(counts.usage),
            }
        return finished

    def _query(self, line: Line) -> Query:
        if line.problem is not None:
            raise RecordError("row", line.problem)
        return self.task.read_row(line.value)

    def write(self, journal: Journal) -> Totals:
        """Write the outputs from the journal, and print the account."""
        args, settings, output = self.args, self.settings, self.args.output
        fingerprint = journal.last_run()
        if fingerprint is None:
            raise UsageError(f"{self.journal_path}: no run has begun in it")
        rejects_path = settings.rejects or default_rejects(output)

        def key(query: Query) -> bytes:
            return Runner.outcome_key(query, fingerprint)

        with contextlib.ExitStack() as stack:
            table = stack.enter_context(TableWriter(output, overwrite=args.overwrite))
            rejects = stack.enter_context(Rejects(rejects_path, overwrite=True))
            task_table = None
            if settings.task_output is not None:
                task_table = TableWriter(settings.task_output, overwrite=args.overwrite)
                stack.enter_context(task_table)
            generator = settings.generator or settings.model or "aft"
            outputs = Outputs(table, rejects, self.task, task_table, generator)
            totals = outputs.write(self.lines(), journal, key, settings.seed, settings.keep_drafts)
        flops = self._flops(totals, self.shape_name)
        more = {"session": self.session, "settings": asdict(settings), "input": args.input}
        write_summary(summary_path(output), summary(totals, flops, more))
        counts = f"{totals.written} written to {output}, {totals.rejected} rejected"
        if totals.rejected:
            counts += f" ({rejects_path})"
        if totals.unfinished:
            counts += f", {totals.unfinished} not done yet"
        print(f"read {totals.read} rows: {counts}")
        for name, (count, first) in totals.rejects.items():
            print(f"  {count} x {name}: {first}")
        print("\n".join(describe(totals, flops)))
        return totals

    async def dry_run(self) -> None:
        """Go through the motions without a model, and print what it would take."""
        engine = dry_engine(self.settings)
        by_name: dict[str, Engine] = dict.fromkeys(("", *self.settings.proposers), engine)
        engines = Opened(by_name, {}, None, 256, self.shape_name)
        if self.settings.strategy == "best_of_n":
            engines = replace(engines, score=_no_preference)
        asker = Asker(engines.engines, None, engines.in_flight)
        totals = Totals()
        bad = 0

        def queries() -> Iterator[Query]:
            nonlocal bad
            for line in self.lines():
                totals.read += 1
                try:
                    yield self._query(line)
                except RecordError:
                    bad += 1

        with Progress(self.total, asker, quiet=self.args.quiet) as progress:

            def count(query: Query, outcome: Outcome) -> None:
                totals.count(outcome)
                engine.requests.clear()
                progress.advance()

            await self.runner(asker, engines, "dry-run").answer_all(queries(), 256, count)
        totals.finish_reasons.clear()
        print(
            f"{totals.read} rows, {bad} of them unusable. To expect, with drafts of "
            f"{min(self.settings.draft_tokens, self.settings.max_tokens)} tokens "
            "(--draft-tokens) and four characters a token:"
        )
        print("\n".join(describe(totals, self._flops(totals, self.shape_name))))

    def _flops(self, totals: Totals, name: str | None) -> dict[str, float | None] | None:
        if name is None or self.settings.scripted:
            return None
        try:
            shape = ModelShape.load(name)
        except AftError:  # a served name that is no folder and no hub name here
            return None
        return totals.flops(shape, self.settings.strategy, self.settings.options())


async def _no_preference(query: object, drafts: Sequence[object]) -> list[float]:
    return [0.0] * len(drafts)


def summary_path(output: Path) -> Path:
    """`data/out.v1.jsonl.gz` -> `data/out.v1.summary.json`."""
    rejects = default_rejects(output)
    return rejects.with_name(rejects.name.replace(".rejects.jsonl", ".summary.json"))


@contextlib.contextmanager
def graceful(stop: Callable[[], None]) -> Iterator[None]:
    """At the first Ctrl-C or SIGTERM call `stop`; at the second, interrupt."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    asked = False

    def handle() -> None:
        nonlocal asked
        if asked:
            if task is not None:
                task.cancel()
            return
        asked = True
        print(
            "\nstopping: waiting for the requests in flight (once more: leave them)",
            file=sys.stderr,
        )
        stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, handle)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
