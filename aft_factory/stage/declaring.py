"""Settings: one frozen dataclass per command, set from a preset, a YAML file and flags, in turn.

A field's type and its `help` make the flag; the YAML key is the field's name, the flag the same
with dashes. Unknown keys and wrong values are refused with a suggestion, all of them at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from aft_factory.errors import UsageError, suggest
from aft_factory.records.files import read_text

T = TypeVar("T")


def setting(default: Any, text: str, metavar: str | None = None) -> Any:
    """Declare a field of a settings class: its default and its line in `--help`."""
    metadata = {"help": text, "metavar": metavar}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def add_flags(parser: argparse._ActionsContainer, kind: type[Any]) -> None:
    """Add a flag for every field; one that is not given leaves no trace in the namespace."""
    types_of = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if not field.metadata:
            continue
        text = field.metadata["help"]
        if field.default not in (None, False, dataclasses.MISSING):
            text += f" (default: {field.default})"
        options: dict[str, Any] = {"help": text.replace("%", "%%"), "default": argparse.SUPPRESS}
        base = _base(types_of[field.name])
        if base is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = field.metadata["metavar"]
            if typing.get_origin(base) is Literal:
                options["choices"] = typing.get_args(base)
                options.pop("metavar")
            elif typing.get_origin(base) is list:
                options["nargs"] = "+"
            elif typing.get_origin(base) is dict:
                options |= {"action": "append", "metavar": "KEY=VALUE"}
            else:
                options["type"] = base
        parser.add_argument(f"--{field.name.replace('_', '-')}", **options)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file of settings.

    Raises:
        UsageError: If it is not a mapping in YAML; names the line.
    """
    import yaml

    try:
        content = yaml.safe_load(read_text(path))
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: cannot be read as YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{path}: expected lines of `key: value`")
    return content


def build(kind: type[T], layers: Iterable[tuple[str, Mapping[str, Any]]]) -> T:
    """Build settings from layers of (where it stands, mapping); a later one overrides.

    Raises:
        UsageError: With every unknown key and wrong value of all layers.
    """
    types_of = typing.get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind) if field.metadata]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    problems = []
    for where, mapping in layers:
        for key, value in mapping.items():
            if key not in known:
                problems.append(f"{where}: unknown key {key!r}; {suggest(key, known)}")
                continue
            try:
                values[key] = _checked(value, types_of[key])
            except ValueError as error:
                problems.append(f"{where}: {key}: {error}")
    if problems:
        raise UsageError("\n".join(problems))
    return kind(**values)


def _base(hint: Any) -> Any:
    """`int | None` -> `int`."""
    if isinstance(hint, types.UnionType):
        return next(part for part in hint.__args__ if part is not types.NoneType)
    return hint


def _checked(value: Any, hint: Any) -> Any:
    base = _base(hint)
    if value is None and isinstance(hint, types.UnionType):
        return None
    if typing.get_origin(base) is Literal:
        choices = typing.get_args(base)
        if value not in choices:
            expected = ", ".join(map(str, choices))
            raise ValueError(f"expected one of {expected}, got {value!r}")
        return value
    if typing.get_origin(base) is list:
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) for item in items):
            raise ValueError(f"expected texts, got {value!r}")
        return items
    if typing.get_origin(base) is dict:
        if isinstance(value, list):
            return dict(_pair(text) for text in value)
        if not isinstance(value, dict):
            raise ValueError(f"expected `key: value` lines, got {value!r}")
        return value
    if base is Path and isinstance(value, (str, Path)):
        return Path(value)
    if base is float and type(value) is int:
        return float(value)
    if type(value) is not base:
        names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
        raise ValueError(f"expected {names.get(base, 'a path')}, got {value!r}")
    return value


def _pair(text: str) -> tuple[str, Any]:
    """`tensor_parallel_size=2` -> ("tensor_parallel_size", 2): the value is read as YAML."""
    import yaml

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"expected KEY=VALUE, got {text!r}")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        return key, value
