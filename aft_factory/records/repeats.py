"""Values that came up before, counted by their hashes: eight bytes for each that is added."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from xxhash import xxh3_64

from aft_factory.records.messages import Message

BUCKETS = 16  # of hashes, to look for equal ones in each


class Repeats:
    """Counts values that repeat an earlier one.

    Args:
        seen: The hashes of those that were added to another, as it gives them.
    """

    def __init__(self, seen: bytes = b"") -> None:
        self._seen = array("Q", seen)

    def add(self, *texts: str) -> None:
        """Take note of a value, by a hash that is the same in every process."""
        found = xxh3_64()
        for text in texts:
            data = text.encode("utf-8", "surrogatepass")
            found.update(b"%d:" % len(data))
            found.update(data)
        self._seen.frombytes(found.digest())

    def __bytes__(self) -> bytes:
        """Return the hashes."""
        return self._seen.tobytes()

    @property
    def count(self) -> int:
        """How many repeat one; part by part, as a set of all takes ten times their room."""
        different = (len({n for n in self._seen if n % BUCKETS == part}) for part in range(BUCKETS))
        return len(self._seen) - sum(different)


def said(messages: Iterable[Message]) -> tuple[str, ...]:
    """Return a conversation as a value: who said what."""
    return tuple(text for one in messages for text in (one["role"], one["content"]))
