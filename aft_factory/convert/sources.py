"""Sources: how a row becomes a record, by the layout of the input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from aft_factory.convert.proposals import read_proposals
from aft_factory.convert.ultrafeedback import is_truthful_qa, read_ultrafeedback
from aft_factory.errors import RecordError
from aft_factory.records.columns import Columns
from aft_factory.records.record import Record

ReadRow = Callable[[Any, Columns, "Counter[str]"], Record]

SOURCES: dict[str, ReadRow] = {"ultrafeedback": read_ultrafeedback, "proposals": read_proposals}


def without_truthful_qa(read_row: ReadRow) -> ReadRow:
    """Return a source that refuses rows taken from TruthfulQA."""

    def checked(row: object, columns: Columns, notes: Counter[str]) -> Record:
        if is_truthful_qa(row):
            raise RecordError("source", "from TruthfulQA (--truthfulqa drop)")
        return read_row(row, columns, notes)

    return checked
