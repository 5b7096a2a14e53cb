"""From the settings of a step, as YAML gives them, to the flags of its command.

Every setting is tried on the command's own parser, so that all that is wrong shows at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from aft_factory.errors import suggest

# These a pipeline sees to itself, or they would end a stage without its output.
NOT_SETTINGS = ("help", "dry_run", "export", "inspect", "overwrite")


def to_flags(
    parser: argparse.ArgumentParser, positionals: Sequence[str], settings: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """Return the flags that say the settings, and what is wrong with these.

    Args:
        parser: Of the command.
        positionals: What the parser wants besides flags.
        settings: By the name of the flag, with `_` for `-`.
    """
    known = {
        action.dest: action
        for action in parser._actions  # argparse has no other way to tell what it knows
        if action.option_strings and action.dest not in NOT_SETTINGS
    }
    parser.exit_on_error = parser.allow_abbrev = False
    flags: list[str] = []
    problems: list[str] = []
    for key, value in settings.items():
        if key not in known:
            problems.append(f"unknown key {key!r}; {suggest(str(key), known)}")
            continue
        try:
            flag = _flag(known[key], value)
            parser.parse_known_args([*positionals, *flag])
        except argparse.ArgumentError as error:
            problems.append(f"{key}: {error.message}")
        except ValueError as error:
            problems.append(f"{key}: {error}")
        else:
            flags += flag
    return flags, problems


def _flag(action: argparse.Action, value: Any) -> list[str]:
    """Return the arguments that say a value.

    Raises:
        ValueError: If none do.
    """
    name = action.option_strings[0]
    if value is None:
        raise ValueError("expected a value, got nothing; leave the line out for the default")
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(f"expected true or false, got {value!r}")
        return [name] if value else list(action.option_strings[1:2])  # --no-NAME, if there is
    if isinstance(action, argparse._AppendAction):
        return [f"{name}={pair}" for pair in _pairs(value, typed=action.metavar == "KEY=VALUE")]
    if action.nargs == "+":
        items = [_text(item) for item in (value if isinstance(value, list) else [value])]
        return [name, *items] if items else []
    if action.type in (int, float):
        if type(value) not in (int, float, str):
            raise ValueError(f"expected a number, got {value!r}")
        return [f"{name}={value}"]
    return [f"{name}={_text(value)}"]  # in one word, as a value may begin with a dash


def _pairs(value: Any, *, typed: bool) -> list[str]:
    """`{dtype: float32}`, `[dtype=float32]` or `dtype=float32` -> ["dtype=float32"]."""
    if isinstance(value, dict):
        return [f"{key}={_as_yaml(v) if typed else _text(v)}" for key, v in value.items()]
    return [_text(item) for item in (value if isinstance(value, list) else [value])]


def _as_yaml(value: Any) -> str:
    """Write a value such that it is read as what it is: "no" with quotes, no without."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize, allow_unicode=True)
    return str(text).removesuffix("...\n").removesuffix("\n")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        quote = "; put it in quotes" if isinstance(value, (bool, int, float)) else ""
        raise ValueError(f"expected a text, got {value!r}{quote}")
    return value
