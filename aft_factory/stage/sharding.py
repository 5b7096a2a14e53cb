"""Shards: the parts of a job that go to machines of their own, by the places of rows.

Every N-th row, and not a block of them: rows that stand together are often alike, and a shard of
long ones would end last.
"""

from __future__ import annotations

import re

from aft_factory.errors import UsageError


def read_shard(text: str) -> slice:
    """Read I/N, such as 0/4: which of the rows it has.

    Raises:
        UsageError: If it is none.
    """
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    index, of = map(int, found.groups()) if found else (0, 0)
    if index >= of:
        raise UsageError(f"shard: expected I/N, from 0/4 to 3/4 for four shards, got {text!r}")
    return slice(index, None, of)
