"""What a conversion did, in numbers that reconcile; those of all shards add up to those of one run.

Every row read is written or rejected: `Summary.read == Summary.written + Summary.rejected`. With
`mix_plain`, `Summary.plain` of the written ones are written once more.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aft_factory.records.repeats import Repeats

REPEATED = "queries that an earlier row has"
COUNTS = (
    *("bare", "untrainable", "with_history", "over"),
    *("cut_rows", "cut_proposals", "tokens_before", "tokens_removed"),
)


@dataclass(slots=True)
class Summary:
    """What a conversion did.

    Attributes:
        rows: For each row read, how many were written of it: 0 rejects it, 2 has a plain one.
        bare: Those of `written` that have no proposals.
        untrainable: Those of `written` that have no aggregation yet.
        columns: Number and columns of the first row that is an object.
        unread: Whether a row has a column that no field of a record was read from.
        with_history: Those of `written` that hold earlier answers.
        over: Those of `written` that are longer than the cutoff (estimated without a tokenizer).
        cut_rows: Rows with proposals shortened; `tokens_removed` of `tokens_before` in these rows.
        notes: What sources repaired or left out.
        beside: Columns of rows that were read as no part of a record.
        queries: Of `written`.
    """

    rows: bytearray = field(default_factory=bytearray)
    bare: int = 0
    untrainable: int = 0
    columns: tuple[int, str] = (0, "")
    unread: bool = False
    with_history: int = 0
    over: int = 0
    cut_rows: int = 0
    cut_proposals: int = 0
    tokens_before: int = 0
    tokens_removed: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    beside: set[str] = field(default_factory=set)
    queries: Repeats = field(default_factory=Repeats)

    @property
    def read(self) -> int:
        """Rows read; `written + rejected`."""
        return len(self.rows)

    @property
    def written(self) -> int:
        """Rows that were written."""
        return self.read - self.rejected

    @property
    def rejected(self) -> int:
        """Rows that were not."""
        return self.rows.count(0)

    @property
    def plain(self) -> int:
        """Rows written once more without proposals (`mix_plain`)."""
        return self.rows.count(2)

    @property
    def is_empty(self) -> bool:
        """Whether there were rows, and none is written."""
        return bool(self.read and not self.written)

    @property
    def told_untrainable(self) -> str:
        """Say what is missing for a training."""
        return f"{self.untrainable} rows without aggregation, not trainable yet"

    def noted(self) -> list[tuple[str, int]]:
        """Return notes and how often each was made, in an order that is not that of the rows."""
        notes = self.notes + Counter({REPEATED: self.queries.count})
        return sorted(notes.items(), key=lambda item: (-item[1], item[0]))

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            **{name: getattr(self, name) for name in COUNTS},
            "columns": self.columns,
            "unread": self.unread,
            "notes": self.notes,
            "beside": sorted(map(str, self.beside)),
            "rows": b64encode(self.rows).decode(),
            "queries": b64encode(bytes(self.queries)).decode(),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Summary:
        """Return what `to_json` was of."""
        number, names = content["columns"]
        return cls(
            **{name: content[name] for name in COUNTS},
            rows=bytearray(b64decode(content["rows"])),
            columns=(number, names),
            unread=content["unread"],
            notes=Counter(content["notes"]),
            beside=set(content["beside"]),
            queries=Repeats(b64decode(content["queries"])),
        )


def added(shards: Sequence[Summary]) -> Summary:
    """Return what one run would have told, from what its shards tell, in their order.

    Raises:
        ValueError: If they have not read the shards of one input.
    """
    count, whole = len(shards), Summary(rows=bytearray(sum(shard.read for shard in shards)))
    columns = [(i + count * shard.columns[0], shard.columns[1]) for i, shard in enumerate(shards)]
    whole.columns = min([found for found in columns if found[1]], default=whole.columns)
    whole.queries = Repeats(b"".join(bytes(shard.queries) for shard in shards))
    for index, shard in enumerate(shards):
        whole.rows[index::count] = shard.rows
        for name in COUNTS:
            setattr(whole, name, getattr(whole, name) + getattr(shard, name))
        whole.unread |= shard.unread
        whole.notes += shard.notes
        whole.beside |= shard.beside
    return whole
