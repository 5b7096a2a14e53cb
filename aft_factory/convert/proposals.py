"""Source `proposals`: our own records, or plain `{query, proposals[, aggregation]}` rows from anywhere.

A row of the plainest kind, and what is accepted beyond it (`records.record_from_row`):

    {"query": "How many pails?", "proposals": ["5", "6"], "aggregation": "Six pails."}
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from aft_factory.records import Columns, Record, record_from_row


def read_proposals(row: Any, columns: Columns, notes: Counter[str]) -> Record:
    """Return the record of a row; see `records.record_from_row` for the layouts.

    Raises:
        RecordError: If the row is no record.
    """
    return record_from_row(row, columns)
