"""The frame of every command: its arguments, its settings, its exit code, and what it leaves.

A command is declared once, as a `Command` in its `__main__.py`: the command line parses by it, and
a pipeline checks its steps by it and asks it what a step would leave.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from aft_factory.errors import UsageError
from aft_factory.records.table_writer import TableWriter
from aft_factory.records.tables import Line
from aft_factory.stage.console import guarded
from aft_factory.stage.declaring import build, declared, setting
from aft_factory.stage.flags import Parser, add_flags, usage_of
from aft_factory.stage.job_settings import FILES
from aft_factory.stage.leaves import Leaves
from aft_factory.stage.reading import Settings
from aft_factory.stage.yaml_file import read_yaml

# Files that are no settings of ours, by a key that none of them has.
LOOKS_LIKE = {
    "stages": "a pipeline; expected settings of `aft {name}`: give it to `aft pipeline`",
    "model_name_or_path": "a file for llamafactory-cli; expected settings of `aft {name}`",
}

S = TypeVar("S", bound=Settings)


# Writes the rows that a command would leave, with filler for what only a model can write, and
# returns what else a rehearsal tells: from its settings and the rows that it would read.
Rehearse = Callable[[S, Iterator[Line], TableWriter], str]


@dataclass(frozen=True, kw_only=True)
class Command(abc.ABC, Generic[S]):
    """A command.

    Attributes:
        name: `aft NAME`.
        description: Of `--help`.
        examples: The same.
        settings: Class of its settings.
        rehearse: Stands in for it in a pipeline's dry run; None where nothing reads what it writes.
        asks: Whether it has a dry run of its own.
    """

    name: str
    description: str
    examples: str
    settings: type[S]
    rehearse: Rehearse[S] | None = None
    asks: bool = False

    @property
    def kinds(self) -> tuple[type[Any], ...]:
        """The classes that declare what it takes."""
        return (self.settings,)

    @property
    def texts(self) -> dict[str, str]:
        """By name, help texts to put in the place of the declared ones."""
        return {}

    def parser(self) -> Parser:
        """Return the parser of its command line."""
        parser = Parser(self.name, self.description, self.examples, usage_of(*self.kinds))
        add_flags(parser, *self.kinds, **self.texts)
        return parser

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run it by a command line; return the exit code."""
        return self.run(vars(self.parser().parse_args(argv)))

    @abc.abstractmethod
    def run(self, given: Mapping[str, Any]) -> int:
        """Run it by what the command line gives; return the exit code."""

    @abc.abstractmethod
    def read(self, given: Mapping[str, Any]) -> S:
        """Return its settings from what the command line, or a pipeline's step, gives.

        Raises:
            UsageError: With everything that is wrong with them.
        """

    def leaves(self, given: Mapping[str, Any], settings: S) -> Leaves:
        """Tell what it leaves, from what it is given and the settings that were read from it."""
        return settings.leaves()


@dataclass(frozen=True, kw_only=True)
class PlainCommand(Command[S]):
    """A command that asks no model, and has no file of settings.

    Attributes:
        do: Does the work, and returns the exit code.
        interrupted: What to say after Ctrl-C.
    """

    do: Callable[[S], int]
    interrupted: str = "interrupted; nothing was written"

    def run(self, given: Mapping[str, Any]) -> int:
        """Run it, and show errors as messages."""
        return guarded(lambda: self.do(self.read(given)), self.interrupted)

    def read(self, given: Mapping[str, Any]) -> S:
        """Return its settings."""
        settings = replace(build(self.settings, [("", given)]), by_flag=tuple(sorted(given)))
        settings.refuse_wrong()
        return settings


@dataclass(frozen=True, slots=True)
class ConfigArguments:
    """What a command with a file of settings takes beside them."""

    config: Path | None = setting(
        None,
        "file of settings, `base_url: ...` for --base-url; flags override it",
        "YAML",
        group=FILES,
    )


@dataclass(frozen=True, kw_only=True)
class ConfiguredCommand(Command[S]):
    """A command with a file of settings, which flags override.

    Attributes:
        arguments: What it takes beside its settings.
        below: From these, and from the settings of file and flags, to those that both override, and
            where they come from.
    """

    arguments: type[Any] = ConfigArguments
    below: Callable[[Any, Mapping[str, Any]], tuple[str, Mapping[str, Any]]] = lambda *_: ("", {})

    @property
    def kinds(self) -> tuple[type[Any], ...]:
        """Arguments and settings."""
        return (self.arguments, self.settings)

    def _arguments(self, given: Mapping[str, Any]) -> Any:
        own = {name: given[name] for name in declared(self.arguments) if name in given}
        return build(self.arguments, [("", own)])

    def _layers(self, given: Mapping[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Return the file of settings, what is in it, and the settings given as flags."""
        config = self._arguments(given).config
        flags = {name: given[name] for name in declared(self.settings) if name in given}
        content = {} if config is None else read_yaml(config)
        for key, what in LOOKS_LIKE.items():
            if key in content:
                raise UsageError(f"{config}: looks like {what.format(name=self.name)}")
        if own := [one for name, one in declared(self.arguments).items() if name in content]:
            words = ("INPUT" if one.form == "argument" else one.flag for one in own)
            told = f"not for a file of settings; give it on the command line: {', '.join(words)}"
            raise UsageError(f"{config}: {', '.join(one.name for one in own)}: {told}")
        return str(config), content, flags

    def read(self, given: Mapping[str, Any]) -> S:
        """Put what is below, the file and the flags together."""
        path, config, flags = self._layers(given)
        below = self.below(self._arguments(given), config | flags)
        layers = [below, (path, config), ("flags", flags)]
        settings = replace(build(self.settings, layers), by_flag=tuple(sorted(flags)))
        settings.refuse_wrong()
        return settings
