"""What a data set entry can say about aggregation data, for both of LLaMA-Factory's engines.

"my_aft": {"file_name": "my_aft.jsonl", "formatting": "aggregation",
           "columns": {"proposals": "drafts", "aggregation": "answer"},
           "aggregation": {"template": "paper", "max_proposals": 5, "shuffle_proposals": true}}

`"ablation"` makes the paper's other training sets of the same file: `without_proposals`, and `sft`,
whose target is the reference or the best-scored proposal. Pseudo aggregations are a file of their
own, by `aft aggregate --pseudo`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from aft_factory.errors import RecordError, UsageError, suggest
from aft_factory.prompts.selection import (
    PAPER,
    Aggregation,
    best_response,
    is_plain,
    plain,
    refuse_copy,
)
from aft_factory.records.columns import USUAL_COLUMNS, Columns
from aft_factory.records.record import Record, record_from_row, required_aggregation

NAME = "aggregation"


@dataclass(frozen=True, slots=True)
class DatasetOptions:
    """One data set's options.

    Attributes:
        dataset: How LLaMA-Factory calls it, for messages.
        columns: Column names that differ from the usual ones.
        aggregation: Which proposals, and under which aggregator prompt.
        fit: Shorten proposals to `cutoff_len` instead of letting LLaMA-Factory cut the query off.
    """

    dataset: str
    columns: Columns = USUAL_COLUMNS
    aggregation: Aggregation = PAPER
    fit: bool = True

    def record(self, row: Mapping[str, Any]) -> Record:
        """Read one row for training.

        Raises:
            RecordError: If it cannot be trained on.
        """
        record = record_from_row(row, self.columns)
        if self.aggregation.ablation != "none":
            refuse_copy(record)
        if self.aggregation.ablation == "sft":
            record = _with_best_response(record)
        required_aggregation(record)
        return plain(record) if is_plain(record, self.aggregation) else record


def _with_best_response(record: Record) -> Record:
    best = best_response(record)
    if best is None:
        raise RecordError("reference", "missing or empty, and there is no proposal with a score")
    return replace(record, aggregation=best, aggregation_thought=None)


def parse_entry(dataset: str, entry: Mapping[str, Any]) -> DatasetOptions:
    """Read the `columns` and `aggregation` blocks of a data set entry.

    Raises:
        UsageError: If a key or value is wrong; names the data set and the key.
    """
    known = {f.name for f in fields(Aggregation) if f.init} | {"fit"}
    try:
        for block in ("aggregation", "columns"):
            if not isinstance(entry.get(block) or {}, Mapping):
                raise UsageError(f"{block}: expected an object, got {entry[block]!r}")
        options = dict(entry.get("aggregation") or {})
        for key in options:
            if key not in known:
                raise UsageError(f"aggregation.{key}: unknown option; {suggest(key, known)}")
        fit = options.pop("fit", True)
        if not isinstance(fit, bool):
            raise UsageError(f"aggregation.fit: expected true or false, got {fit!r}")
        columns = Columns.from_mapping(dict(entry.get("columns") or {}))
        return DatasetOptions(dataset, columns, Aggregation(**options), fit)
    except UsageError as error:
        raise UsageError(f"data set {dataset!r}: {error}") from None
