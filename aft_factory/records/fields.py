"""Fields: one value of a row, read or refused in words that name the field and what was got.

Pure; knows nothing of what the fields mean.
"""

from __future__ import annotations

import contextlib
import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, TypeGuard

from aft_factory.errors import RecordError
from aft_factory.records import exact_json

# For `isinstance`: the built-in type comes first, since asking the abstract one takes far longer.
OBJECT = (dict, Mapping)
LIST = (list, Sequence)

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 40
_SHORT.maxlevel = _SHORT.maxdict = _SHORT.maxlist = 2

short = _SHORT.repr  # at most a line, whatever the size or depth of the value


def known(value: Any) -> Any:
    """Return a value, or None for NaN and infinity, which pandas and Parquet have for it."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_number(value: Any) -> Any:
    """Return a number of a text, as data frames have it, or of a decimal; else the same value."""
    if isinstance(value, str | Decimal):
        with contextlib.suppress(ValueError):
            value = float(value)
    return known(value)


def is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    """Tell whether a value is a list, and no text."""
    return isinstance(value, list) or (not isinstance(value, str) and isinstance(value, Sequence))


def leaves(value: Any) -> Iterator[Any]:
    """Go through the values in lists and objects, however deep, in no order; keys aside."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, str | bytes):
            yield value
        elif isinstance(value, OBJECT):
            left += value.values()
        elif isinstance(value, LIST):
            left += value
        else:
            yield value


def is_blank(value: Any) -> bool:
    """Tell whether a value says nothing."""
    if value is None or isinstance(value, str):  # the usual cases
        return not value or value.isspace()
    return all(
        not leaf.strip() if isinstance(leaf, str) else known(leaf) is None for leaf in leaves(value)
    )


def items_of(value: Any) -> list[Any] | None:
    """Return the items of a list, or of an object of equally long lists; None for all else.

    `datasets` makes such an object of a list of objects: {"role": [...], "content": [...]}.
    """
    if isinstance(value, OBJECT):
        columns = list(value.values())
        if not columns or not all(map(is_list, columns)):
            return None
        if len({len(column) for column in columns}) > 1:
            return None
        return [dict(zip(value, items, strict=True)) for items in zip(*columns, strict=True)]
    return list(value) if is_list(value) else None


def from_json(value: Any) -> Any:
    """Return the list or object that a text is the JSON of, as data frames have it; else itself."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            value = exact_json.load_given(value)
        except ValueError:
            return value
    return value


def parse_id(value: Any, field: str) -> str:
    """Read the name of a row; "" where it has none. 81.0 is what pandas makes of 81.

    Raises:
        RecordError: If it is neither a text nor a whole number.
    """
    value = known(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise RecordError(field, f"expected a text or a whole number, got {kind(value)}")
    return "" if value is None else str(value)


def parse_list(value: Any, field: str, types: tuple[type, ...], length: int) -> list[Any] | None:
    """Read a list of so many values of the given types, each of which may be None or NaN.

    Raises:
        RecordError: If it is no such list.
    """
    if value is None:
        return None
    if not is_list(value):
        raise RecordError(field, f"expected a list, got {kind(value)}")
    if len(value) != length:
        raise RecordError(field, f"expected {length} entries, one per proposal, got {len(value)}")
    items = list(map(as_number if float in types else known, value))
    for index, item in enumerate(items):
        if item is not None and (isinstance(item, bool) or not isinstance(item, types)):
            wanted = " or ".join(t.__name__ for t in types)
            raise RecordError(f"{field}[{index}]", f"expected {wanted}, got {kind(item)}")
    return items


def optional_text(value: Any, field: str) -> str | None:
    """Read a text or None.

    Raises:
        RecordError: If it is neither.
    """
    value = known(value)
    if value is None or isinstance(value, str):
        return value
    raise RecordError(field, f"expected a text, got {kind(value)}")


def names_of(row: Mapping[Any, Any]) -> str:
    """List the columns of a row for a message, at no more length than helps."""
    names = [short(str(name))[1:-1] for name in list(row)[:12]]  # escaped, but without the quotes
    return ", ".join(names) + (", ..." if len(row) > 12 else "")


def kind(value: Any) -> str:
    """Describe a wrong value shortly: its type, and itself as far as it is small."""
    return "nothing" if value is None else f"{type(value).__name__} {short(value)}"
