"""Which column of a row holds which field of a record, where the names are not the usual ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aft_factory.errors import UsageError, suggest


@dataclass(frozen=True, slots=True)
class Columns:
    """The column that holds each field of a record; None takes the usual names.

    Attributes:
        messages: The query, or the conversation that ends with it.
        input: Joined to the query, as in Alpaca's layout.
        ignore: Columns, parted by commas, that do not belong to the query whatever their names.
    """

    id: str | None = None
    messages: str | None = None
    input: str | None = None
    system: str | None = None
    history: str | None = None
    proposals: str | None = None
    aggregation: str | None = None
    reference: str | None = None
    source: str | None = None
    aggregation_thought: str | None = None
    ignore: str | None = None

    @classmethod
    def from_mapping(cls, names: Mapping[str, Any]) -> Columns:
        """Build from `{"proposals": "drafts"}`; `query` is another word for `messages`.

        Raises:
            UsageError: If a key is no field of a record, or a name is no text.
        """
        for key, name in names.items():
            if key not in FIELDS:
                raise UsageError(f"columns: unknown field {key!r}; {suggest(key, FIELDS)}")
            if not isinstance(name, str) or not name:
                raise UsageError(f"columns.{key}: expected a column name, got {name!r}")
        if {"query", "messages"} <= names.keys():
            raise UsageError("columns: query and messages are one field; give one of them")
        return cls(**{"messages" if key == "query" else key: name for key, name in names.items()})

    @property
    def ignored(self) -> list[str]:
        """The columns that were said not to belong to the query."""
        return [] if self.ignore is None else self.ignore.split(",")

    @property
    def elsewhere(self) -> list[str]:
        """The columns that are no part of the query: those, and what other fields are read from."""
        answers = (self.proposals, self.aggregation, self.aggregation_thought, self.reference)
        return [*filter(None, (*answers, self.source, self.id)), *self.ignored]


USUAL_COLUMNS = Columns()
FIELDS = ("query", *Columns.__dataclass_fields__)  # what a user may name a column for
