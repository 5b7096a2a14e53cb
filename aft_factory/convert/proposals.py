"""Source `proposals`: our own records, or plain `{query, proposals[, aggregation]}` rows.

Where a record has scores (from `aft_factory.rank`) and no reference, its best proposal becomes the
reference, the target of the SFT baseline. A row of the plainest kind, and what is accepted beyond
it (`records.record_from_row`):

    {"query": "How many pails?", "proposals": ["5", "6"], "aggregation": "Six pails."}
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from aft_factory.prompts.selection import best_response
from aft_factory.records.columns import Columns
from aft_factory.records.record import Record, record_from_row


def read_proposals(row: Any, columns: Columns, notes: Counter[str]) -> Record:
    """Return the record of a row; see `records.record_from_row` for the layouts.

    Args:
        row: A row in one of those layouts.
        columns: Names of the columns, where they are not the usual ones.
        notes: Counts what was left out, and rows without proposals: a misspelt column shows there.

    Raises:
        RecordError: If the row is no record.
    """
    record = record_from_row(row, columns, notes)
    if not record.proposals:
        notes["rows without proposals"] += 1
    if (best := best_response(record)) is not None and best != record.reference:
        record = replace(record, reference=best)
    return record
