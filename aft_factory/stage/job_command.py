"""The frame of the commands that run a job: a file of settings, a dry run, an export."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from aft_factory.errors import UsageError
from aft_factory.records.tables import is_table
from aft_factory.stage.command import ConfigArguments, ConfiguredCommand
from aft_factory.stage.console import guarded
from aft_factory.stage.declaring import COMMON, argument, build, switch, written
from aft_factory.stage.flags import with_argument
from aft_factory.stage.job import Job, note_of_columns, survey
from aft_factory.stage.job_settings import FILES, JobSettings
from aft_factory.stage.kept import kept_settings
from aft_factory.stage.leaves import Leaves
from aft_factory.stage.output import summary_path
from aft_factory.stage.reading import FORMATS, INPUTS
from aft_factory.stage.stage import Files, Stage
from aft_factory.stage.totals import Totals

J = TypeVar("J", bound=JobSettings)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JobArguments(ConfigArguments):
    """What every job takes beside its settings: what a file of settings cannot say."""

    input: str | None = argument(None, "rows")
    output: Path | None = written(f"file to write ({FORMATS})", group=COMMON)
    dry_run: bool = switch("only tell requests, tokens and FLOPs to expect", group=COMMON)
    export: bool = switch(
        "ask nothing; write what the journal's last run has done, by that run's own settings: "
        "needs only INPUT and --output",
        group=FILES,
    )
    overwrite: bool = switch("replace an existing output", group=FILES)
    strict: bool = switch(
        "exit with 1 if any row was rejected; a benchmark's file that lacks answers does so anyway",
        group=FILES,
    )
    quiet: bool = switch("no progress bar", group=FILES)


@dataclass(frozen=True, kw_only=True)
class JobCommand(ConfiguredCommand[J]):
    """A command that runs a job: it asks a model, keeps a journal and writes rows.

    Attributes:
        build_stage: From the settings and the first row of the input to what happens to a row.
        reads: What its rows are.
        task_output: A benchmark's own file.
        allowed: From the arguments to the share of its rows that may have no answer.
    """

    build_stage: Callable[[J, Any], Stage]
    reads: str = "queries"
    arguments: type[JobArguments] = JobArguments
    task_output: Callable[[J], Path | None] = lambda _: None
    allowed: Callable[[Any], float] = lambda _: 0.0
    asks: bool = True

    @property
    def texts(self) -> dict[str, str]:
        """What its rows are."""
        return {"input": f"{self.reads} ({INPUTS})"}

    def run(self, given: Mapping[str, Any]) -> int:
        """Run a job, and show errors as messages.

        Returns:
            The exit code: 0, 1 (nothing written, a benchmark's file without more answers than
            allowed, or rejected rows and --strict), 2 (usage), 130.
        """
        return guarded(lambda: self._run(given), lines=True)

    def _run(self, given: Mapping[str, Any]) -> int:
        given = with_argument(given, "input", is_table, *self.kinds)
        args = self._arguments(given)
        export = args.export and not args.dry_run
        settings = self._exported(given) if export else self.read(given)
        if args.input is None:
            raise UsageError(f"name the INPUT: aft {self.name} INPUT --output OUTPUT ...")
        total, rows = survey(args.input, settings)
        task_output = self.task_output(settings)
        files = Files(args.input, args.output, task_output, args.overwrite, args.quiet)
        stage = self.build_stage(settings, rows[0] if rows else None)
        if note := note_of_columns(rows, stage, settings.columns()):
            _log.warning("%s", note)
        job = Job(files, settings, stage, total)
        if args.dry_run:
            return job.dry_run()
        totals = job.run(export=export)
        if totals is None:
            return 130
        return self.code(args, totals, task_output)

    def code(self, args: JobArguments, totals: Totals, task_output: Path | None) -> int:
        """Return the exit code of a job that has written its files; say why, if it is about one."""
        lacking = task_output is not None and (
            totals.unfinished > 0 or totals.rejected > self.allowed(args) * totals.read
        )
        if lacking and not totals.unfinished:
            print(
                f"{task_output}: {totals.rejected} of {totals.read} rows have no answer; where "
                "that will do, allow the share with allow_failed",
                file=sys.stderr,
            )
        return 1 if totals.is_empty or lacking or (args.strict and totals.rejected) else 0

    def _exported(self, given: Mapping[str, Any]) -> J:
        """Return the settings of the run whose journal is to be written out."""
        path, config, flags = self._layers(given)
        output = self._arguments(given).output
        if output is None:
            raise UsageError("--output is missing")
        today = build(self.settings, [(path, config), ("flags", flags)])
        return kept_settings(today.journal_of(output), today, config | flags)

    def leaves(self, given: Mapping[str, Any], settings: J) -> Leaves:
        """Tell what a job leaves: its rows, a benchmark's file, rejects, summary and journal."""
        output = Path(given["output"])
        task_output, summary = self.task_output(settings), summary_path(output)
        rejects, journal = settings.rejects_of(output), settings.journal_of(output)
        outputs = [output] if task_output is None else [output, task_output]
        return Leaves(outputs, [rejects, journal, summary], summary=summary)
