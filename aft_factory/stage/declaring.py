"""Settings: one frozen dataclass per command, set from a preset, a YAML file and flags, in turn.

A field's type and its `help` make the flag; the YAML key is the field's name, the flag the same
with dashes. Unknown keys and wrong values are refused with a suggestion, all of them at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from aft_factory.errors import UsageError, suggest

T = TypeVar("T")
REQUIRED = dataclasses.MISSING
PAIR = "KEY=VALUE"
COMMON = "those that most need"  # the first heading of `--help`


def setting(
    default: Any,
    text: str,
    metavar: str | None = None,
    *,
    form: str = "flag",
    choices: Iterable[str] = (),
    writes: bool = False,
    group: str = "",
    short: str = "",
    bare: str | None = None,
) -> Any:
    """Declare a field of a settings class: its default and its line in `--help`.

    Args:
        default: Value where nothing is said; `REQUIRED` if something has to be.
        text: What the field is.
        metavar: Stands for the value in `--help`.
        form: `flag`; `switch`, a flag without the `--no-` that overrides a file of settings;
            `repeated`, a list whose flag takes one item; or `argument`, which has no flag, and has
            to be given unless the default is None.
        choices: What it may be, if that is not everything; a `Literal` has them in its type.
        writes: Whether it names a file that is written.
        group: Under which heading `--help` has it.
        short: Its other flag, such as -K.
        bare: What the flag means without a value, if it may stand so.
    """
    metadata: dict[str, Any] = {"help": text, "metavar": metavar, "form": form, "writes": writes}
    metadata |= {"only": tuple(choices), "group": group, "short": short, "bare": bare}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def argument(
    default: Any, text: str, metavar: str | None = None, *, choices: Iterable[str] = ()
) -> Any:
    """Declare a field that the command line takes without a flag."""
    return setting(default, text, metavar, form="argument", choices=choices)


def switch(text: str, *, group: str = "") -> Any:
    """Declare a field that is off unless its flag is given."""
    return setting(False, text, form="switch", group=group)


def written(text: str, metavar: str | None = None, *, group: str = "") -> Any:
    """Declare a field that names a file to write."""
    return setting(None, text, metavar, writes=True, group=group)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """A field of a settings class, with what `setting` was told of it.

    Attributes:
        hint: Its type.
        required: Whether it has to be given.
    """

    name: str
    hint: Any
    default: Any
    required: bool
    help: str
    metavar: str | None
    form: str
    only: tuple[str, ...]
    writes: bool
    group: str
    short: str
    bare: str | None

    @property
    def base(self) -> Any:
        """`int` for `int | None`."""
        if isinstance(self.hint, types.UnionType):
            return next(part for part in self.hint.__args__ if part is not types.NoneType)
        return self.hint

    @property
    def kind(self) -> Any:
        """`dict` for `dict[str, Any]`."""
        return typing.get_origin(self.base) or self.base

    @property
    def choices(self) -> tuple[Any, ...]:
        """What it may be, if that is not everything."""
        return typing.get_args(self.base) if self.kind is Literal else self.only

    @property
    def flag(self) -> str:
        """Its flag."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def flags(self) -> list[str]:
        """All of its flags, the short one first."""
        return [*filter(None, [self.short]), self.flag]

    @property
    def typed(self) -> bool:
        """Whether the values of a dict are of any type, and so read as YAML."""
        return typing.get_args(self.base)[1] is not str


def declared(*kinds: type[Any]) -> dict[str, Declared]:
    """Return the declared fields of classes of settings, by name.

    Those that a class inherits and has no use for, it names in `without`.
    """
    return {
        field.name: Declared(
            name=field.name,
            hint=hints[field.name],
            default=field.default,
            required=field.default is REQUIRED and field.default_factory is REQUIRED,
            **field.metadata,
        )
        for kind in kinds
        for hints in [typing.get_type_hints(kind)]
        for field in dataclasses.fields(kind)
        if field.metadata and field.name not in getattr(kind, "without", ())
    }


def checked(
    mapping: Mapping[str, Any], *kinds: type[Any], but: Iterable[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """Return the values of settings that are right, by name, and what is wrong with the others.

    Args:
        mapping: From names to values.
        kinds: Classes of settings that know them.
        but: Names that are not to be set.
    """
    known = {name: one for name, one in declared(*kinds).items() if name not in but}
    values: dict[str, Any] = {}
    problems = []
    for key, value in mapping.items():
        if key not in known:
            problems.append(f"unknown key {key!r}; {suggest(str(key), known)}")
            continue
        try:
            values[key] = _value(value, known[key])
        except ValueError as error:
            problems.append(f"{key}: {error}")
    return values, problems


def build(kind: type[T], layers: Iterable[tuple[str, Mapping[str, Any]]]) -> T:
    """Build settings from layers of (where it stands, mapping); a later one overrides.

    Of a setting that is itself a mapping, a later one overrides key by key.

    Raises:
        UsageError: With every unknown key and wrong value of all layers.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    for where, mapping in layers:
        right, wrong = checked(mapping, kind)
        for name, value in right.items():
            before = values.get(name)
            both = isinstance(before, dict) and isinstance(value, dict)
            values[name] = before | value if both else value
        problems += [f"{where}: {problem}" if where else problem for problem in wrong]
    if problems:
        raise UsageError(*problems)
    return kind(**values)


def _value(value: Any, one: Declared) -> Any:
    base = one.base
    if value is None and base is not one.hint:
        return None
    if one.choices:
        if value not in one.choices:
            raise ValueError(f"expected one of {', '.join(one.choices)}, got {value!r}")
        return value
    if one.kind is list:
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) for item in items):
            raise ValueError(f"expected texts, got {value!r}")
        return items
    if one.kind is dict:
        pairs = [value] if isinstance(value, str) else value
        if isinstance(pairs, list):
            values = [_pair(text, one) for text in pairs]
            if len(dict(values)) < len(values):
                given = ", ".join(name for name, _ in values)
                raise ValueError(f"expected each name once, got {given}")
            return dict(values)
        if not isinstance(value, dict):
            raise ValueError(f"expected `key: value` lines, got {value!r}")
        if not one.typed:
            value = {key: _text(text) for key, text in value.items()}
        return value
    if base is Path and isinstance(value, (str, Path)):
        return Path(value)
    if base is str:
        return _text(value)
    if base is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise ValueError("expected a number, got one that is too large") from None
    if base in (int, float) and isinstance(value, str):
        with contextlib.suppress(ValueError):  # YAML takes 1e-5 for a text
            value = base(value)
    if isinstance(value, float) and math.isnan(value):
        raise ValueError("expected a number, got nan")
    if base is int and isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("expected a whole number of at most 64 bits")
    if type(value) is not base:
        names = {int: "a whole number", float: "a number", bool: "true or false"}
        raise ValueError(f"expected {names.get(base, 'a path')}, got {value!r}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        quote = "; put it in quotes" if isinstance(value, (bool, int, float)) else ""
        raise ValueError(f"expected a text, got {value!r}{quote}")
    return value


def _pair(text: Any, one: Declared) -> tuple[str, Any]:
    """`tensor_parallel_size=2` -> ("tensor_parallel_size", 2): the value is read as YAML."""
    import yaml

    key, equals, value = _text(text).partition("=")
    if not equals or not key:
        raise ValueError(f"expected {one.metavar or PAIR}, got {text!r}")
    if not one.typed:
        return key, value
    try:
        return key, yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        return key, value
