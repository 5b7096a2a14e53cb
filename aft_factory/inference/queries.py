"""Queries: what is asked, in one or more turns, and records as such. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from aft_factory.errors import RecordError
from aft_factory.prompts.selection import usable
from aft_factory.records.columns import USUAL_COLUMNS, Columns
from aft_factory.records.fields import names_of
from aft_factory.records.messages import Message
from aft_factory.records.record import Row, content_id, record_from_row

NOT_USED = "the row's own proposals not used"


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked, in one or more turns.

    Attributes:
        id: Stable name: given by the row, or a hash of its content.
        turns: `turns[0]` is the conversation up to the first query (a system message and earlier
            turns allowed); `turns[i]` is what is said after answer i.
        row: The input row as read; never changed.
        proposals: Drafts of an answer to the first query that the row brings along.
        final: Settings of the final sampling that this query overrides.
        events: What reading the row left out: {turn, layer, slot, event}, as outcomes have them.
        options: Options of the strategy that this query overrides.
        seed: In the place of the run's.
    """

    id: str
    turns: list[list[Message]]
    row: Row
    proposals: list[str] = field(default_factory=list)
    final: Mapping[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None

    @property
    def identity(self) -> str:
        """What its seeds follow from: rows of equal id and text with other proposals are two."""
        return f"{self.id}+{content_id([], self.proposals)}" if self.proposals else self.id


def read_record(row: Any, columns: Columns = USUAL_COLUMNS) -> Query:
    """Read a record. Earlier turns of its conversation are given, so it has one turn to answer."""
    record = record_from_row(row, columns)
    return Query(record.id, [record.messages], row, record.proposals)


def read_with_proposals(row: Any, columns: Columns = USUAL_COLUMNS) -> Query:
    """Read a record that has proposals; blank ones are left out, as from training, and counted.

    Raises:
        RecordError: If it has none.
    """
    record = record_from_row(row, columns)
    kept = usable(record)
    if not kept:
        problem = "missing or blank; sample some first"
        if not record.proposals:
            problem += f", or name their column (--column proposals=NAME) of: {names_of(row)}"
        raise RecordError("proposals", problem)
    texts = [record.proposals[i] for i in kept]
    blank = [
        _event("blank proposal left out", i) for i in range(len(record.proposals)) if i not in kept
    ]
    return Query(record.id, [record.messages], row, texts, events=blank)


def starting(query: Query, most: int) -> Query:
    """Return a query whose proposals are to be the drafts of its first layer: the first so many."""
    count, events = len(query.proposals), list(query.events)
    beyond = f"proposal beyond the first {most} left out"
    events += [_event(beyond, slot) for slot in range(most, count)]
    if count < most:
        events.append(_event(f"first layer of {count} proposals, not {most}", 0))
    return replace(query, proposals=query.proposals[:most], events=events)


def drawing(query: Query) -> Query:
    """Return a query whose drafts are drawn, and which says so if its row brings some."""
    brought = query.proposals or query.row.get("proposals")
    return replace(query, events=[*query.events, _event(NOT_USED, 0)]) if brought else query


def _event(event: str, slot: int) -> dict[str, Any]:
    return {"turn": 0, "layer": 0, "slot": slot, "event": event}
