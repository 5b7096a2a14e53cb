"""A step of a pipeline: a stage with its settings, what it is made from and what it makes."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Container, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from aft_factory.aggregate.__main__ import COMMAND as AGGREGATE
from aft_factory.convert.__main__ import COMMAND as CONVERT
from aft_factory.errors import UsageError
from aft_factory.rank.__main__ import COMMAND as RANK
from aft_factory.run.__main__ import COMMAND as RUN
from aft_factory.sample.__main__ import COMMAND as SAMPLE
from aft_factory.stage.command import Command
from aft_factory.stage.declaring import checked, declared
from aft_factory.stage.flags import to_arguments
from aft_factory.stage.leaves import Leaves
from aft_factory.stats.__main__ import COMMAND as STATS

COMMANDS: dict[str, Command[Any]] = {
    command.name: command for command in (CONVERT, SAMPLE, RANK, AGGREGATE, RUN, STATS)
}
# These a pipeline sees to itself, or they would end a stage without its output.
NOT_SETTINGS = ("dry_run", "export", "overwrite", "allow_failed")


@dataclass(frozen=True, slots=True)
class Step:
    """One stage of a pipeline; this one is a command of ours.

    Attributes:
        number: From 1.
        stage: Its name.
        settings: As in the file, but with paths resolved and `input` filled in.
        allow_failed: The pipeline's: which share of the rows may be without an answer as the engine
            failed, and the next stage still begins.
        given: The same settings, each of its declared type.
        read: What the command reads from them: its settings, defaults included.
        leaves: What it leaves.
    """

    number: int
    stage: str
    settings: Mapping[str, Any]
    allow_failed: float = 0.0
    given: Mapping[str, Any] = field(default_factory=dict, compare=False)
    read: Any = field(default=None, compare=False)
    leaves: Leaves = field(default_factory=Leaves, compare=False)

    trains = False  # whether it is LLaMA-Factory's

    @property
    def place(self) -> str:
        """Where it stands in the file."""
        return f"stages[{self.number}].{self.stage}"

    @property
    def input(self) -> str:
        """What it reads."""
        return str(self.settings["input"])

    @property
    def outputs(self) -> list[Path]:
        """What it is for, the main one first; nothing where it only prints."""
        return list(self.leaves.outputs)

    @property
    def kinds(self) -> tuple[type[Any], ...]:
        """The classes that declare its settings."""
        return COMMANDS[self.stage].kinds

    def checked(self) -> tuple[Step, list[str]]:
        """Return the step with all that its command reads, and all that is wrong with it."""
        command, settings, problems = COMMANDS[self.stage], dict(self.settings), []
        source = settings["input"]
        if not isinstance(source, str):
            problems.append("input is missing" if source is None else f"input: got {source!r}")
            settings["input"] = "missing"
        known = declared(*self.kinds)
        if "output" not in settings and "output" in known:
            problems.append("output is missing")
            settings["output"] = "missing.jsonl"
        given, wrong = checked(settings, *self.kinds, but=NOT_SETTINGS)
        nothing = "expected a value, got nothing; leave the line out for the default"
        wrong += [f"{key}: {nothing}" for key, value in given.items() if value is None]
        problems += wrong
        if self.allow_failed and "allow_failed" in known:
            given["allow_failed"] = self.allow_failed
        empty = [key for key, value in given.items() if value in ([], {})]  # which no flag says
        given = {key: value for key, value in given.items() if key not in empty}
        try:
            read = command.read(given)
        except UsageError as error:
            # Or it may miss what is left out.
            return self, problems if wrong else [*problems, *error.args]
        problems += [
            f"{key}: cannot be emptied here; take it out of {settings.get('config')}"
            for key in empty
            if getattr(read, key)
        ]
        leaves = command.leaves(given, read)
        return replace(self, given=given, read=read, leaves=leaves), problems

    def reading(self, source: Path) -> Step:
        """Return the same step with another input."""
        given, _ = checked({"input": str(source)}, *self.kinds)
        settings = {**self.settings, "input": str(source)}
        return replace(self, settings=settings, given={**self.given, **given})

    def command(self, *more: str) -> list[str]:
        """Return the command that does it."""
        arguments = to_arguments(self.given, *self.kinds)
        return [sys.executable, "-m", f"aft_factory.{self.stage}", *arguments, *more]

    def __str__(self) -> str:
        """Its command, for a person to read or to run."""
        return shlex.join(["python", *self.command()[1:]])

    def missing(self, made: Container[Path]) -> str | None:
        """Tell what is to be there before the pipeline starts, and is not.

        Args:
            made: What the steps before will make.
        """
        if Path(self.input).resolve() in made:
            return None
        try:
            self.read.lines(self.input)
        except UsageError as error:
            name = Path(self.input).name
            bare = (
                f"; a bare name is one in `folder`: ./{name} is there"
                if Path(name).exists()
                else ""
            )
            return f"input {error}{bare}"
        return None

    def written(self) -> list[Path]:
        """Return the files that it writes."""
        return self.leaves.files()

    def is_there(self) -> bool:
        """Tell whether all that it is for is there."""
        return self.leaves.are_there()

    def made_from(self) -> tuple[Any, list[tuple[str, str]]]:
        """Return its settings, and by their names all texts in them that may be those of files."""
        writes = {name for name, one in declared(*self.kinds).items() if one.writes}
        named = [*texts(self.settings), *texts(asdict(self.read))]
        return dict(self.settings), [(key, text) for key, text in named if key not in writes]

    def begin(self, state: str) -> list[str]:
        """See to what is there before it is done anew; return what to add to the command.

        The journal keeps what was paid for; only the files written from it are replaced.
        """
        return ["--overwrite"]


def texts(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Go through the texts in settings, each by the name of its setting."""
    for key, value in settings.items():
        for text in _texts(value):
            yield key, text


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, (str, Path)):
        yield str(value)
    elif isinstance(value, (list, Mapping)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)
