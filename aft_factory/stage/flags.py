"""Settings on the command line: flags from the declared types, and from values back to flags."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from aft_factory.stage.declaring import PAIR, REQUIRED, Declared, declared


def add_flags(parser: argparse._ActionsContainer, kind: type[Any], **texts: str) -> None:
    """Add a flag for every field; one that is not given leaves no trace in the namespace.

    Args:
        parser: To add to.
        kind: Class of settings.
        texts: By name, help texts to put in the place of the declared ones.
    """
    for name, one in declared(kind).items():
        default = one.field.default
        text = texts.get(name, one.field.metadata["help"])
        if one.kind is dict:
            text += "; adds to those of a file"
        if one.form != "argument" and default not in (None, False, REQUIRED):
            text += f" (default: {default})"
        options: dict[str, Any] = {"help": text.replace("%", "%%"), "default": argparse.SUPPRESS}
        if one.kind is bool:
            plain = one.form == "switch"
            options["action"] = "store_true" if plain else argparse.BooleanOptionalAction
        else:
            options |= {"metavar": one.field.metadata["metavar"]} | _taken(one)
        if one.form == "argument":
            parser.add_argument(name, **options)
        else:
            lacks = default is REQUIRED and one.field.default_factory is REQUIRED
            parser.add_argument(one.flag, required=lacks, **options)


def _taken(one: Declared) -> dict[str, Any]:
    """Return how argparse is to take the value of a field."""
    if one.choices:
        return {"choices": one.choices, "metavar": None}
    if one.kind is dict:
        return {"action": "append", "metavar": one.field.metadata["metavar"] or PAIR}
    if one.form == "argument":
        several = "+" if one.kind is list else None
        return {"nargs": "?" if one.field.default is None else several}
    if one.kind is list:
        return (
            {"action": "append"} if one.form == "repeated" else {"action": "extend", "nargs": "+"}
        )
    return {"type": one.kind}


def to_arguments(values: Mapping[str, Any], *kinds: type[Any]) -> list[str]:
    """Return the command line that says values that were checked, as `add_flags` takes them."""
    known = declared(*kinds)
    words: list[str] = []
    for name, one in known.items():
        if one.form == "argument":
            value = values.get(name, one.field.default)
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
