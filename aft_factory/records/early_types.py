"""Rows that must stand early in a file of JSON Lines, so that Arrow finds a type for every column.

`datasets` takes the types from the first 10 MB: where a column is null or an empty list in all of
these and not later, it refuses the file. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

MOST_KINDS = 10_000  # of rows that are kept in mind
EARLY = 5 << 20  # bytes; the rest of the 10 MB has room for the rows that come before these
_TOLD_APART: set[type] = {list, dict, float}  # types of which not all values are alike


class EarlyTypes:
    """Looks at each row as it is written.

    Attributes:
        late: Numbers of the rows, from 0, that are the first with a value somewhere, and come late.
    """

    def __init__(self) -> None:
        self.late: list[int] = []
        self._seen: set[tuple[Any, ...]] = set()
        self._kinds: set[Any] = set()
        self._rows = self._bytes = 0

    def note(self, row: dict[str, Any], size: int) -> None:
        """Look at the next row, which takes so many bytes."""
        kind = _kind(row)
        if kind not in self._kinds:  # most rows are of a kind that was seen, which is cheap to tell
            if len(self._kinds) == MOST_KINDS:
                self._kinds.clear()
            self._kinds.add(kind)
            found = set(_places(row, ()))
            if not found <= self._seen:
                self._seen |= found
                if self._bytes >= EARLY:
                    self.late.append(self._rows)
        self._rows += 1
        self._bytes += size


def _kind(value: Any) -> Any:
    """Return what is alike for rows with values at the same places."""
    kind = type(value)
    if kind is list:
        inner = set(map(type, value))
        return frozenset(inner if inner.isdisjoint(_TOLD_APART) else map(_kind, value))
    if kind is dict:
        return tuple(value), *map(_kind, value.values())
    return (kind, math.isfinite(value)) if kind is float else kind


def _places(value: Any, place: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Yield where there are values; a number with a fraction is another than one without."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _places(item, (*place, key))
    elif isinstance(value, list):
        for item in value:
            yield from _places(item, (*place, None))
    elif isinstance(value, float):
        if math.isfinite(value):
            yield (*place, float)
    elif value is not None:
        yield place
