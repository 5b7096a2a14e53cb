"""Sources: how a row becomes a record, by the layout of the input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from aft_factory.convert.proposals import read_proposals
from aft_factory.convert.ultrafeedback import is_truthful_qa, read_ultrafeedback
from aft_factory.errors import RecordError
from aft_factory.prompts.thoughts import FIELDS
from aft_factory.records.columns import Columns
from aft_factory.records.fields import OBJECT, from_json, is_blank, items_of
from aft_factory.records.messages import ROLES, TAGS
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


def left_thoughts(row: Any) -> set[str]:
    """Return what the thoughts of a row's answers are called: no answer is read with its thought.

    Example:
        >>> left_thoughts({"chosen": [{"role": "assistant", "content": "4", "reasoning": "2 + 2"}]})
        {'reasoning'}
    """
    conversations = map(items_of, map(from_json, row.values() if isinstance(row, OBJECT) else ()))
    answers = [items[-1] for items in conversations if items and isinstance(items[-1], OBJECT)]
    return {
        name
        for answer in answers
        for name in FIELDS
        if not is_blank(answer.get(name))
        and any(ROLES.get(str(answer.get(tag))) == "assistant" for tag, _ in TAGS)
    }
