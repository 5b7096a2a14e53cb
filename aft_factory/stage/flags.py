"""Settings on the command line: flags from the declared types, and from values back to flags."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aft_factory.errors import suggest
from aft_factory.stage.declaring import COMMON, PAIR, REQUIRED, Declared, declared

METAVARS = {int: "N", float: "X", Path: "FILE"}  # where a setting names none


class Once(argparse.Action):
    """Takes one value; of two that differ, nobody knows which is meant."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        """Take it."""
        before = getattr(namespace, self.dest, values)
        if before is not values and before != values:  # nan is not even itself
            raise argparse.ArgumentError(self, f"given twice, as {before} and as {values}")
        setattr(namespace, self.dest, values)


class OnceOnOrOff(argparse.BooleanOptionalAction):
    """The same of `--x` and `--no-x`."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        """Take it."""
        Once.__call__(self, parser, namespace, not str(option).startswith("--no-"), option)  # type: ignore[arg-type]


class Parser(argparse.ArgumentParser):
    """The parser of a command: what it does not take is told in one line, with what was meant."""

    def __init__(self, name: str, description: str, examples: str, usage: str) -> None:
        super().__init__(
            prog=f"aft {name}",
            usage=f"aft {name} {usage}",
            description=description,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # what is meant is asked, not guessed
        )
        self._groups: dict[str, argparse._ArgumentGroup] = {}
        self.pairs: list[str] = []  # flags that take one KEY=VALUE each
        self.usual: dict[str, Any] = {}  # by argument, what most give
        self.group(COMMON)  # comes first

    def group(self, title: str) -> argparse._ActionsContainer:
        """Return what has the flags under a heading; without one, the parser itself."""
        if title and title not in self._groups:
            self._groups[title] = self.add_argument_group(title)
        return self._groups.get(title, self)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return what the words say."""
        words = list(sys.argv[1:] if args is None else args)
        for flag, first, more in zip(words, words[1:], words[2:], strict=False):
            if flag in self.pairs and re.match(r"\w+=", more) and not Path(more).exists():
                self.error(f"repeat {flag} for each: {flag} {first} {flag} {more}")
        found, rest = self.parse_known_args(words, namespace)
        if wrong := [word.partition("=")[0] for word in rest if word.startswith("-")]:
            self.error(f"unknown flag {wrong[0]}; {self._meant(wrong[0])}")
        if rest:
            self.error(f"one word too many: {rest[0]!r}; usage: {self.usage}")
        return found

    def _meant(self, wrong: str) -> str:
        """Say what a flag that is none may be: by its letters, its beginning or what one is for."""
        name = wrong.lstrip("-").casefold()
        flags = [flag for action in self._actions for flag in action.option_strings]
        if name in (action.dest for action in self._actions if not action.option_strings):
            return f"{name.upper()} stands without a flag: {self.usage}"
        spoken = name.replace("-", " ")
        found = [flag for flag in flags if flag.lstrip("-").casefold() == name]
        found = found or [flag for flag in flags if flag.startswith(f"--{name}-")]
        found = found or [
            action.option_strings[-1]
            for action in self._actions
            if " " in spoken and (action.help or "").startswith(spoken)
        ]
        if len(found) == 1:
            return f"did you mean {found[0]!r}?"
        from aft_factory.stage.job_settings import AskSettings
        from aft_factory.stage.reading import ReadSettings

        of_asking = declared(AskSettings).keys() - declared(ReadSettings).keys()
        asks = any(action.dest == "model" for action in self._actions)
        if name.replace("-", "_") in of_asking and not asks:
            return "it is for commands that ask a model"
        return suggest(wrong, flags)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Tell a file that stands where one of a few words does."""
        usual = self.usual.get(action.dest)
        if usual and action.choices and value not in action.choices and Path(value).exists():
            known = ", ".join(map(str, action.choices))
            line = f"{self.prog} {usual} {shlex.quote(value)}"
            self.error(f"{value} is no {action.dest} ({known}) but a file; did you mean: {line}")
        super()._check_value(action, value)

    def error(self, message: str) -> Any:
        """Say what is wrong, in one line."""
        self.exit(2, f"error: {message} ({self.prog} --help tells more)\n")


def usage_of(*kinds: type[Any]) -> str:
    """Return what a command line is made of: `INPUT [FLAGS]`."""
    known = declared(*kinds).values()
    words = [one.metavar or one.name.upper() for one in known if one.form == "argument"]
    needed = [one for one in known if one.form != "argument" and one.required]
    words += [f"{one.flag} {one.metavar}" for one in needed]
    return " ".join([*words, "[FLAGS]"])


def add_flags(parser: Parser, *kinds: type[Any], **texts: str) -> None:
    """Add a flag for every field; one that is not given leaves no trace in the namespace.

    Args:
        parser: To add to.
        kinds: Classes of settings.
        texts: By name, help texts to put in the place of the declared ones.
    """
    for name, one in declared(*kinds).items():
        group, default = parser.group(one.group), one.default
        text = texts.get(name, one.help)
        if one.kind is dict:
            text += "; adds to those of a file"
        if one.form != "argument" and default not in (None, False, REQUIRED):
            text += f" (default: {default})"
        options: dict[str, Any] = {"help": text.replace("%", "%%"), "default": argparse.SUPPRESS}
        if one.kind is bool:
            plain = one.form == "switch"
            options["action"] = "store_true" if plain else OnceOnOrOff
        else:
            metavar = one.metavar or METAVARS.get(one.kind)
            options |= {"metavar": metavar} | _taken(one)
        if one.kind is dict:
            parser.pairs += one.flags
        if one.form == "argument":
            parser.usual[name] = None if one.required else default
            parser.add_argument(name, **options)
        else:
            group.add_argument(*one.flags, required=one.required, **options)


def _taken(one: Declared) -> dict[str, Any]:
    """Return how argparse is to take the value of a field."""
    once = {} if one.form == "argument" else {"action": Once}
    if one.choices:
        return once | {"choices": one.choices, "metavar": None}
    if one.kind is dict:
        return {"action": "append", "metavar": one.metavar or PAIR}
    if one.form == "argument":
        optional = one.default is None
        if one.kind is list:
            return {"nargs": "*" if optional else "+"}
        return {"nargs": "?" if optional else None}
    if one.kind is list:
        return (
            {"action": "append"} if one.form == "repeated" else {"action": "extend", "nargs": "+"}
        )
    return (
        once | {"type": one.kind} | ({} if one.bare is None else {"nargs": "?", "const": one.bare})
    )


def with_argument(
    given: Mapping[str, Any], name: str, is_one: Callable[[str], bool], *kinds: type[Any]
) -> Mapping[str, Any]:
    """Give back an argument that a flag of any number of values took: `--base-url URL rows.jsonl`.

    Args:
        given: What the command line gives.
        name: Of the argument.
        is_one: Whether a word is surely one.
        kinds: Classes of settings.
    """
    known = declared(*kinds)
    several = known[name].kind is list
    if given.get(name) and not several:
        return given
    for flag, one in known.items():
        values = given.get(flag) if one.kind is list and one.form == "flag" else None
        taken: list[str] = []
        rest: Any = list(values or ())
        while len(rest) > 1 and is_one(rest[-1]) and (several or not taken):
            taken.insert(0, rest.pop())
        if one.bare is not None and flag in given and is_one(given[flag]):
            taken, rest = [given[flag]], one.bare
        if taken:
            found = [*(given.get(name) or ()), *taken] if several else taken[0]
            return {**given, flag: rest, name: found}
    return given


def to_arguments(values: Mapping[str, Any], *kinds: type[Any]) -> list[str]:
    """Return the command line that says values that were checked, as `add_flags` takes them."""
    known = declared(*kinds)
    words: list[str] = []
    for name, one in known.items():
        if one.form == "argument":
            value = values.get(name, one.default)
            words += value if isinstance(value, list) else [str(value)]
    for name, value in values.items():
        one = known[name]
        if one.form == "argument":
            continue
        if one.kind is bool:
            off = [] if one.form == "switch" else [one.flag.replace("--", "--no-", 1)]
            words += [one.flag] if value else off
        elif one.kind is dict:
            said = (f"{key}={_as_yaml(v) if one.typed else v}" for key, v in value.items())
            words += [f"{one.flag}={pair}" for pair in said]
        elif one.kind is list and one.form != "repeated":
            words += [one.flag, *value] if value else []
        else:  # in one word, as a value may begin with a dash
            items = value if isinstance(value, list) else [value]
            words += [f"{one.flag}={item}" for item in items]
    return words


def _as_yaml(value: Any) -> str:
    """Write a value such that it is read as what it is: "no" with quotes, no without."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize, allow_unicode=True)
    return str(text).removesuffix("...\n").removesuffix("\n")
