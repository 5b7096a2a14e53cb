"""Values that came up before, counted by their hashes: eight bytes for each that is added."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterable

from aft_factory.records.messages import Message

BUCKETS = 16  # of hashes, to look for equal ones in each


class Repeats:
    """Counts values that repeat an earlier one."""

    def __init__(self) -> None:
        self._seen = array("q")

    def add(self, value: Hashable) -> None:
        """Take note of a value."""
        self._seen.append(hash(value))

    @property
    def count(self) -> int:
        """How many repeat one; part by part, as a set of all takes ten times their room."""
        different = (len({n for n in self._seen if n % BUCKETS == part}) for part in range(BUCKETS))
        return len(self._seen) - sum(different)


def said(messages: Iterable[Message]) -> tuple[str, ...]:
    """Return a conversation as a value: who said what."""
    return tuple(text for one in messages for text in (one["role"], one["content"]))
