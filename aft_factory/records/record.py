"""The shapes that cross stages: one query with its proposals and, once made, its aggregation.

Reads and writes nothing; knows no file format, template or model. On disk a record is one object:

    {"id": "gsm8k-17", "messages": [{"role": "user", "content": "6 pails of 5 litres?"}],
     "proposals": ["6 x 5 = 30", "It is 11."], "aggregation": "6 x 5 = 30 litres.",
     "reference": null, "source": "gsm8k", "scores": [0.9, 0.1], "proposal_models": null,
     "aggregation_thought": null, "meta": "{}"}

Every key is always written and `meta` is JSON text, so that Arrow finds equal columns in every row.
(Of a long file of JSON Lines it takes the types from the beginning: `early_types` sees to that.)
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from aft_factory.errors import RecordError
from aft_factory.records import exact_json
from aft_factory.records.columns import USUAL_COLUMNS, Columns
from aft_factory.records.drafts import parse_drafts, put_together
from aft_factory.records.fields import (
    LIST,
    OBJECT,
    from_json,
    is_blank,
    is_list,
    kind,
    known,
    names_of,
    optional_text,
    parse_id,
    parse_list,
)
from aft_factory.records.layouts import read_query
from aft_factory.records.messages import Message, note_thought

Row = dict[str, Any]

PROPOSAL_KEYS = ("proposals", "responses")


@dataclass(frozen=True, slots=True)
class Record:
    """One query with its drafts (PAPER vocabulary: proposals) and the targets to train on.

    Attributes:
        id: Stable name of the row: as given, or a hash of its content.
        messages: The conversation: an optional system message, then user and assistant turns in
            alternation; the last message is the user's query.
        proposals: Drafts of an answer to the query, in order. May hold empty texts and duplicates.
        aggregation: The refined answer, the target of AFT.
        reference: The answer to train the SFT baseline on.
        source: Which data set the row came from.
        scores: One number per proposal (None where unknown), or None.
        proposal_models: The model that wrote each proposal, or None.
        aggregation_thought: What was thought before the aggregation, to be trained on with it.
        meta: Everything else the input row held; carried along, never interpreted.
    """

    id: str
    messages: list[Message]
    proposals: list[str]
    aggregation: str | None = None
    reference: str | None = None
    source: str = ""
    scores: list[float | None] | None = None
    proposal_models: list[str | None] | None = None
    aggregation_thought: str | None = None
    meta: Row = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", content_id(self.messages, self.proposals))

    def to_row(self) -> Row:
        """Return the JSON object of this record, keys in the documented order."""
        return {
            "id": self.id,
            "messages": self.messages,
            "proposals": self.proposals,
            "aggregation": self.aggregation,
            "reference": self.reference,
            "source": self.source,
            "scores": self.scores,
            "proposal_models": self.proposal_models,
            "aggregation_thought": self.aggregation_thought,
            # As JSON text: objects of varying shape would give Arrow no stable type.
            "meta": exact_json.dump(self.meta, default=str).decode(),
        }


def record_from_row(
    row: Any, columns: Columns = USUAL_COLUMNS, notes: Counter[str] | None = None
) -> Record:
    """Read a record from a row of any of the accepted layouts.

    Args:
        row: The query as `layouts` has it; `proposals` (or `responses`) is a list of texts or of
            objects `{"response" or "text", "model", "score"}`, in which what is missing is blank.
            The reference is `reference`, else Alpaca's `output`, else the answer that the
            conversation ends with (otherwise that is "answer" in `meta`). Other columns go to
            `meta`, and so do `reference`, `source`, `scores`, `proposal_models`,
            `aggregation_thought` and `meta` of other types than ours; what else the drafts' objects
            hold is there as "of_proposals".
        columns: Names of the columns, where they are not the usual ones.
        notes: Counts what was left out.

    Raises:
        RecordError: If the row is no record; names the field.
    """
    if not isinstance(row, OBJECT):
        raise RecordError("row", f"expected an object, got {kind(row)}")
    asked = read_query(row, columns, notes)
    used = set(asked.used)

    def take(
        *names: str, given: str | None, nothing: Callable[[Any], bool] = _is_nothing
    ) -> tuple[str, Any]:
        if given is not None:
            if given not in row:
                raise RecordError(given, f"no such column; the row has: {names_of(row)}")
            names = (given,)
        present = [name for name in names if name in row]
        name = present[0] if present else names[0]
        if len(present) > 1:
            name = next((other for other in present if not nothing(row[other])), name)
        used.add(name)
        return name, known(row.get(name))

    name, value = take(
        *PROPOSAL_KEYS, given=columns.proposals, nothing=lambda value: _is_nothing(from_json(value))
    )
    proposals, models, scores, rest = parse_drafts(from_json(value), name)
    beside: dict[str, list[Any] | None] = {}
    for name, types in (("scores", (int, float)), ("proposal_models", (str,))):
        value = from_json(known(row.get(name)))
        if value is None or is_list(value):
            used.add(name)
            beside[name] = parse_list(value, name, types, len(proposals))
    scores = put_together(beside.get("scores"), scores)
    models = put_together(beside.get("proposal_models"), models)

    name, value = take("id", given=columns.id)
    identity = parse_id(value, name)
    name, value = take("aggregation", given=columns.aggregation)
    aggregation = optional_text(value, name)
    texts: dict[str, str | None] = {}
    for key in ("reference", "source", "aggregation_thought"):
        given = getattr(columns, key)
        name, value = take(key, given=given)
        if given is None and not isinstance(value, str | None):
            used.discard(name)  # the user's own column of that name
            value = None
        texts[key] = optional_text(value, name)
    reference = texts["reference"]
    if _is_nothing(reference) and columns.reference is None and "output" not in used:
        output = row.get("output")
        if isinstance(output, str):
            used.add("output")
            reference = output

    meta = _parse_meta(row["meta"]) if "meta" in row else {}
    if meta is not None:
        used.add("meta")
    meta = meta or {}
    more = {str(key): value for key, value in row.items() if key not in used}
    if _is_nothing(reference):
        reference = asked.answer or reference
    elif asked.answer not in (None, reference):
        name = "answer"
        while name in more:
            name = f"conversation_{name}"
        more[name] = asked.answer
    if rest is not None:
        more["of_proposals"] = rest
        for draft in rest:
            note_thought(draft, notes)
    return Record(
        id=identity,
        messages=asked.messages,
        proposals=proposals,
        aggregation=aggregation,
        reference=reference,
        source=texts["source"] or "",
        scores=None if scores is None else [None if s is None else float(s) for s in scores],
        proposal_models=models,
        aggregation_thought=texts["aggregation_thought"],
        meta=_beside(meta, more) if meta else more,
    )


def note_beside(
    record: Record, row: Mapping[str, Any], found: set[str], columns: Columns = USUAL_COLUMNS
) -> None:
    """Add the columns of a row that hold something and are no part of its record.

    Those that the user has left out by name are none to be told of.
    """
    if not record.meta:  # the usual case
        return
    for name in record.meta.keys() & row.keys() - found - set(columns.ignored):
        if not is_blank(from_json(row[name])):
            found.add(name)


def told_beside(columns: Iterable[str]) -> str:
    """Say which columns are in no prompt, so that one that belongs there is missed in time."""
    names = names_of(dict.fromkeys(sorted(map(str, columns))))
    return f"in no prompt, as they are no part of a query by their names: {names}"


def content_id(messages: Sequence[Message], proposals: Sequence[str]) -> str:
    """Name a row by its content: 16 hexadecimal digits, the same on every machine."""
    data = orjson.dumps([messages, proposals])
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def required_aggregation(record: Record) -> str:
    """The text that AFT trains on; RecordError if the record has none."""
    if record.aggregation is None or not record.aggregation.strip():
        raise RecordError("aggregation", "missing or empty, nothing to train on; aggregate first")
    return record.aggregation


def _is_nothing(value: Any) -> bool:
    """Tell whether another column should be looked at instead."""
    if isinstance(value, str):
        return not value or value.isspace()
    return known(value) is None or (isinstance(value, LIST) and not value)


def _beside(meta: Row, more: Row) -> Row:
    """Put columns beside what `meta` held before; nothing of either is lost."""
    made = dict(meta)
    for name, value in more.items():
        while name in made and made[name] != value:
            name = f"input_{name}"
        made[name] = value
    return made


def _parse_meta(value: Any) -> Row | None:
    """Read our own column; None for one of the user's, which goes by that name into ours."""
    if isinstance(value, str):
        try:
            value = exact_json.load(value)
        except ValueError:
            return None
    if value is None:
        return {}
    return dict(value) if isinstance(value, OBJECT) else None
