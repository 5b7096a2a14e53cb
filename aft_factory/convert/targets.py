"""Targets: what a record is written as.

| target | row | trains with |
| --- | --- | --- |
| `aggregation` | the record itself | the plugin, `"formatting": "aggregation"` |
| `sharegpt` | aggregator prompt as system turn, query, aggregation | any LLaMA-Factory, no plugin |
| `sft` | query and reference, no proposals (the paper's SFT baseline) | any LLaMA-Factory |

Records stay as they are, for the plugin reads their texts; in the other two the markers of control
tokens are broken, in queries and answers too, as stock LLaMA-Factory would take them for real ones.
A thought that was kept stands before the aggregation, between the words of most templates that
think; the plugin puts those of the training's own template around it.

    {"id": "1", "conversations": [{"from": "system", "value": "You have been provided ..."},
     {"from": "human", "value": "6 pails of 5 litres?"}, {"from": "gpt", "value": "30 litres."}]}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aft_factory.errors import RecordError
from aft_factory.prompts.markers import Markers
from aft_factory.prompts.selection import Aggregation, selected_conversation, whole_target
from aft_factory.records.messages import Message
from aft_factory.records.record import Record, Row, required_aggregation

SHAREGPT_ROLES = {"system": "system", "user": "human", "assistant": "gpt"}


def aggregation_target(record: Record) -> str | None:
    """The text that AFT trains on; None in records that wait for the aggregation stage."""
    return record.aggregation


def required_reference(record: Record) -> str:
    """The text that the SFT baseline trains on.

    Raises:
        RecordError: If the record has none.
    """
    if record.reference is None or not record.reference.strip():
        raise RecordError("reference", "missing or empty; no response to train the baseline on")
    return record.reference


def to_aggregation(record: Record, options: Aggregation, markers: Markers) -> Row:
    """Return the record as it is exchanged between stages and read by the plugin."""
    return record.to_row()


def to_sharegpt(record: Record, options: Aggregation, markers: Markers) -> Row:
    """Return the rendered conversation of a selected record, for stock LLaMA-Factory."""
    messages = selected_conversation(record, options, markers)
    required_aggregation(record)
    return _sharegpt(record.id, messages, whole_target(record, markers.sanitise) or "")


def to_sft(record: Record, options: Aggregation, markers: Markers) -> Row:
    """Return query and reference, without proposals."""
    messages = markers.sanitise_all(record.messages)
    return _sharegpt(record.id, messages, markers.sanitise(required_reference(record)))


def _sharegpt(name: str, messages: Sequence[Message], answer: str) -> Row:
    turns = [{"from": SHAREGPT_ROLES[m["role"]], "value": m["content"]} for m in messages]
    return {"id": name, "conversations": [*turns, {"from": "gpt", "value": answer}]}


Target = tuple[Callable[[Record], str | None], Callable[[Record, Aggregation, Markers], Row]]

# name: (the text to train on, the row to write)
TARGETS: dict[str, Target] = {
    "aggregation": (aggregation_target, to_aggregation),
    "sharegpt": (required_aggregation, to_sharegpt),
    "sft": (required_reference, to_sft),
}
