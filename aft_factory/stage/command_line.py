"""The frame of the commands that run a job: their arguments, errors and exit codes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from aft_factory.errors import UsageError
from aft_factory.stage.console import guarded
from aft_factory.stage.declaring import add_flags, build, read_yaml
from aft_factory.stage.job import Job, survey
from aft_factory.stage.job_settings import JobSettings
from aft_factory.stage.kept import kept_settings
from aft_factory.stage.stage import Files, Stage

S = TypeVar("S", bound=JobSettings)
INPUTS = ".jsonl, .json, .gz, .zst, .parquet, `datasets` folder or hub name"


def add_job_arguments(
    parser: argparse.ArgumentParser, settings: type[JobSettings], reads: str = "queries"
) -> None:
    """Add what every job takes, and a flag for each of its settings."""
    add = parser.add_argument
    add("input", nargs="?", help=f"{reads} ({INPUTS})")
    add("--output", type=Path, help="file to write (.jsonl, .json, .gz, .zst, .parquet)")
    add("--config", type=Path, metavar="YAML", help="file of settings; flags override it")
    add("--dry-run", action="store_true", help="only tell requests, tokens and FLOPs to expect")
    export = "ask nothing; write what the journal's last run has done, by that run's own settings"
    add("--export", action="store_true", help=f"{export}: needs only INPUT and --output")
    add("--overwrite", action="store_true", help="replace an existing output")
    strict = "exit with 1 if any row was rejected (a benchmark's file that lacks answers always is)"
    add("--strict", action="store_true", help=strict)
    add("--quiet", action="store_true", help="no progress bar")
    add_flags(parser.add_argument_group("settings (also keys of --config)"), settings)


def flags_of(args: argparse.Namespace, kind: type[JobSettings]) -> dict[str, Any]:
    """Return the settings that were given as flags."""
    return {f.name: getattr(args, f.name) for f in fields(kind) if hasattr(args, f.name)}


def read_settings(
    args: argparse.Namespace,
    kind: type[S],
    below: Iterable[tuple[str, Mapping[str, Any]]] = (),
) -> S:
    """Put the layers below, the file and the flags together.

    Raises:
        UsageError: With everything that is wrong with them.
    """
    config = {} if args.config is None else read_yaml(args.config)
    flags = flags_of(args, kind)
    layers = [*below, (str(args.config), config), ("flags", flags)]
    settings = replace(build(kind, layers), by_flag=tuple(sorted(flags)))
    settings.check()
    return settings


def settings_to_export(args: argparse.Namespace, kind: type[S]) -> S:
    """Return the settings of the run whose journal is to be written out.

    Raises:
        UsageError: If there are none.
    """
    today = ({} if args.config is None else read_yaml(args.config)) | flags_of(args, kind)
    if args.output is None:
        raise UsageError("--output is missing")
    return kept_settings(Path(today.get("journal") or f"{args.output}.journal"), kind, today)


def run_command(
    args: argparse.Namespace,
    kind: type[S],
    settings: Callable[[], S],
    stage: Callable[[S], Stage],
    *,
    task_output: Callable[[S], Path | None] = lambda _: None,
    first_row: Callable[[Any], object] = lambda _: None,
) -> int:
    """Run a job as the arguments say.

    Args:
        args: Of `add_job_arguments`.
        kind: Class of the settings.
        settings: Reads the settings.
        stage: Builds the stage; called after `first_row`.
        task_output: A benchmark's own file.
        first_row: Told of the first row of the input.

    Returns:
        The exit code: 0, 1 (nothing written, a benchmark's file without some answers, or rejected
        rows and --strict), 2 (usage), 130.
    """

    def run() -> int:
        export = args.export and not args.dry_run
        chosen = settings_to_export(args, kind) if export else settings()
        if args.input is None:
            raise UsageError("name the INPUT (see --help)")
        total, first = survey(args.input, chosen)
        first_row(first)
        files = Files(args.input, args.output, task_output(chosen), args.overwrite, args.quiet)
        job = Job(files, chosen, stage(chosen), total)
        if args.dry_run:
            job.dry_run()
            return 0
        totals = job.run(export=export)
        if totals is None:
            return 130
        nothing = totals.read > 0 and not totals.written
        lacking = files.task_output is not None and (totals.rejected or totals.unfinished)
        return 1 if nothing or lacking or (args.strict and totals.rejected) else 0

    return guarded(run, lines=True)
