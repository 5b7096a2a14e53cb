"""What `aft merge` does: write from the journals of all shards what one run would have written.

Nothing is added up from what the shards wrote: rows are read once more and written by the job's own
code, so that rows, rejects, a benchmark's file and the account are those of one run. What keeps no
journal is merged in `shards`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from aft_factory.aggregate.__main__ import COMMAND as AGGREGATE
from aft_factory.asking.journal import Journal
from aft_factory.errors import UsageError
from aft_factory.merge.parts import Parts, open_parts
from aft_factory.merge.shards import merge_shards
from aft_factory.rank.__main__ import COMMAND as RANK
from aft_factory.records.files import allow_open_files
from aft_factory.records.rejects import rejects_path
from aft_factory.records.tables import Line
from aft_factory.run.__main__ import COMMAND as RUN
from aft_factory.sample.__main__ import COMMAND as SAMPLE
from aft_factory.stage.declaring import argument, setting, switch, written
from aft_factory.stage.following import following
from aft_factory.stage.job import survey
from aft_factory.stage.job_command import JobCommand
from aft_factory.stage.kept import command_of, kept_settings
from aft_factory.stage.leaves import Leaves
from aft_factory.stage.output import summary_path
from aft_factory.stage.reading import FORMATS, INPUTS, Settings, check_paths
from aft_factory.stage.shard import shard_path
from aft_factory.stage.stage import Files
from aft_factory.stage.writing import JobFiles

COMMANDS: dict[str, JobCommand[Any]] = {
    command.settings.__name__: cast(Any, command) for command in (SAMPLE, RANK, AGGREGATE, RUN)
}


@dataclass(frozen=True, slots=True)
class MergeSettings(Settings):
    """What is merged; see the help texts."""

    parts: list[str] = argument([], "outputs of all shards, in any order", "PART")
    output: Path | None = written(f"file to write ({FORMATS})")
    input: str | None = setting(
        None, f"what the shards read, where it has another name now ({INPUTS})", "ROWS"
    )
    task_output: Path | None = written("of run: also write the benchmark's own format here")
    rejects: Path | None = written("rows without answer (default: OUTPUT.rejects.jsonl)")
    overwrite: bool = switch("replace an existing output")
    strict: bool = switch("exit with 1 if any row was rejected")

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        return [] if self.output else ["--output is missing"]

    def leaves(self) -> Leaves:
        """Tell what the command leaves."""
        outputs = [path for path in (self.output, self.task_output) if path is not None]
        return Leaves(outputs, [summary_path(outputs[0])])


class Merging(JobFiles):
    """A job's files, with the rows dealt to the parts that had them."""

    parts: Parts

    def lines(self) -> Iterator[Line]:
        """Go through the rows of the input."""
        return self.parts.dealt(super().lines())

    def following(self) -> list[str]:
        """Return what comes next: where that looks into a journal, it is that of a part."""
        words = self.stage.following(self.output)
        paths = [part.path for part in self.parts.all]
        looked = next((path for path in paths if path.exists()), paths[0])
        shown = [looked if "--inspect" in words and word == self.output else word for word in words]
        return following(*shown) if shown else []


def merge(settings: MergeSettings) -> int:
    """Write the job's files; return the exit code that the job would have had."""
    output, named = settings.output, list(map(Path, settings.parts))
    assert output is not None
    allow_open_files()  # each part has two or three
    beside = {*map(rejects_path, named), *map(shard_path, named)}  # which part-* takes, too
    paths = [path for path in named if path not in beside]
    if any(shard_path(path).exists() for path in paths):
        return merge_shards(paths, asdict(settings))
    check_paths(settings.parts, [("--output", output), ("--task-output", settings.task_output)])
    with open_parts(paths) as parts:
        first = parts.all[0]
        source = settings.input or first.input
        if source is None:
            raise UsageError(f"{first.path}: has no summary that tells what it read; name --input")
        for part in parts.all:
            if settings.input is None and part.input not in (None, source):
                told = f"{first.path} read {source}, {part.path} {part.input}"
                raise UsageError(f"{told}: if that is one file by two names, say --input")
        command = COMMANDS.get(first.kept["command"])
        if command is None:
            told = command_of(first.kept["command"])
            raise UsageError(f"{first.path}: no job's part, but of {told}")
        kept = kept_settings(first.journal.path, command.settings(), ())
        places = {"task_output": settings.task_output} if hasattr(kept, "task_output") else {}
        flags = tuple(name for name in kept.by_flag if name != "shard")
        job = replace(kept, shard=None, by_flag=flags, rejects=settings.rejects, **places)
        if problems := job.problems():
            raise UsageError(*problems)
        try:
            total, rows = survey(source, job)
        except UsageError as error:
            raise UsageError(f"{error}; the shards read it: name it with --input") from None
        stage = command.build_stage(job, rows[0] if rows else None)
        task_output = command.task_output(job)
        files = Files(source, output, task_output, settings.overwrite)
        merging = Merging(files, job, stage)
        merging.parts = parts
        merging.session = {"parts": list(map(str, paths))}
        merging.check_outputs(export=True)
        totals = merging.write_outputs(cast(Journal, parts))
        assert totals.read == total
        return command.code(command.arguments(strict=settings.strict), totals, task_output)
