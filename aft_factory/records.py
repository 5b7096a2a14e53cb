"""The shapes that cross stages: one query with its proposals and, once made, its aggregation.

Reads and writes nothing; knows no file format, template or model. On disk a record is one object:

    {"id": "gsm8k-17", "messages": [{"role": "user", "content": "6 pails of 5 litres?"}],
     "proposals": ["6 x 5 = 30", "It is 11."], "aggregation": "6 x 5 = 30 litres.",
     "reference": null, "source": "gsm8k", "scores": [0.9, 0.1], "proposal_models": null,
     "meta": "{}"}

Every key is always written and `meta` is JSON text, so that Arrow finds equal columns in every row.
(It takes a column's type from the first 10 MB of a JSON file: where a key is null in all of these
and not later, `datasets` refuses the file. Parquet has no such trap.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import orjson

from aft_factory.errors import RecordError, UsageError, suggest
from aft_factory.fields import (
    LIST,
    OBJECT,
    kind,
    names_of,
    optional_text,
    parse_id,
    parse_list,
    short,
)

Row = dict[str, Any]

MESSAGE_KEYS = ("messages", "query", "instruction", "prompt")
PROPOSAL_KEYS = ("proposals", "responses")
TEXT_KEYS = ("response", "text")


class Message(TypedDict):
    """One chat message, as OpenAI-compatible servers and `apply_chat_template` take it."""

    role: str
    content: str


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
            # As JSON text: objects of varying shape would give Arrow no stable type.
            "meta": orjson.dumps(self.meta, default=str).decode(),
        }


@dataclass(frozen=True, slots=True)
class Columns:
    """The column that holds each field of a record; None takes the usual names."""

    id: str | None = None
    messages: str | None = None
    system: str | None = None
    proposals: str | None = None
    aggregation: str | None = None
    reference: str | None = None
    source: str | None = None

    @classmethod
    def from_mapping(cls, names: Mapping[str, Any]) -> Columns:
        """Build from `{"proposals": "drafts"}`.

        Raises:
            UsageError: If a key is no field of a record, or a name is no text.
        """
        for key, name in names.items():
            if key not in cls.__dataclass_fields__:
                raise UsageError(
                    f"columns: unknown field {key!r}; {suggest(key, cls.__dataclass_fields__)}"
                )
            if not isinstance(name, str) or not name:
                raise UsageError(f"columns.{key}: expected a column name, got {name!r}")
        return cls(**names)


USUAL_COLUMNS = Columns()


def record_from_row(row: Any, columns: Columns = USUAL_COLUMNS) -> Record:
    """Read a record from a row of any of the accepted layouts.

    Args:
        row: `messages` (or `query`, `instruction`, `prompt`) is a text or a list of
            `{role, content}`; `proposals` (or `responses`) a list of texts or of objects
            `{"response" or "text", "model", "score"}`. Other columns go to `meta`.
        columns: Names of the columns, where they are not the usual ones.

    Raises:
        RecordError: If the row is no record; names the field.
    """
    if not isinstance(row, OBJECT):
        raise RecordError("row", f"expected an object, got {kind(row)}")
    used: set[str] = set()

    def take(*names: str, given: str | None) -> tuple[str, Any]:
        if given is not None:
            if given not in row:
                raise RecordError(given, f"no such column; the row has: {names_of(row)}")
            names = (given,)
        present = [name for name in names if name in row]
        name = next((n for n in present if row[n] is not None), present[0] if present else "")
        used.add(name)
        return name or names[0], row.get(name)

    name, value = take(*MESSAGE_KEYS, given=columns.messages)
    messages = parse_messages(value, name)
    if columns.system is not None:
        name, value = take(given=columns.system)
        system = optional_text(value, name)
        if system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": system})

    name, value = take(*PROPOSAL_KEYS, given=columns.proposals)
    proposals, models, scores = _parse_proposals(value, name)
    if "scores" in row:
        used.add("scores")
        scores = parse_list(row["scores"], "scores", (int, float), len(proposals)) or scores
    if "proposal_models" in row:
        used.add("proposal_models")
        models = (
            parse_list(row["proposal_models"], "proposal_models", (str,), len(proposals)) or models
        )

    name, value = take("id", given=columns.id)
    identity = parse_id(value, name)
    texts = {}
    for key, given in (
        ("aggregation", columns.aggregation),
        ("reference", columns.reference),
        ("source", columns.source),
    ):
        name, value = take(key, given=given)
        texts[key] = optional_text(value, name)

    meta = _parse_meta(row["meta"]) if "meta" in row else {}
    used.add("meta")
    meta |= {str(key): value for key, value in row.items() if key not in used}
    return Record(
        id=identity,
        messages=messages,
        proposals=proposals,
        aggregation=texts["aggregation"],
        reference=texts["reference"],
        source=texts["source"] or "",
        scores=None if scores is None else [None if s is None else float(s) for s in scores],
        proposal_models=models,
        meta=meta,
    )


def parse_messages(value: Any, field: str) -> list[Message]:
    """Read a conversation that ends with the user's query: a text, or a list of `{role, content}`.

    Raises:
        RecordError: If a role or content is wrong, roles do not alternate, or the query is blank.
    """
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if value is None:
        raise RecordError(field, f"missing; expected one of {', '.join(MESSAGE_KEYS)}")
    if not isinstance(value, LIST) or not value:
        raise RecordError(field, f"expected a text or a list of messages, got {kind(value)}")
    messages: list[Message] = []
    for index, message in enumerate(value):
        place = f"{field}[{index}]"
        if not isinstance(message, OBJECT):
            raise RecordError(
                place, f"expected an object with role and content, got {kind(message)}"
            )
        role, content = message.get("role"), message.get("content")
        if not isinstance(content, str):
            raise RecordError(f"{place}.content", f"expected a text, got {kind(content)}")
        if index == 0 and role == "system":
            pass
        elif role != (wanted := _expected_role(messages)):
            raise RecordError(f"{place}.role", f"expected {wanted!r}, got {short(role)}")
        messages.append({"role": str(role), "content": content})
    if messages[-1]["role"] != "user":
        raise RecordError(
            field, f"the last message must be the user's, got {messages[-1]['role']!r}"
        )
    if not messages[-1]["content"].strip():
        raise RecordError(field, "the query is empty")
    return messages


def content_id(messages: Sequence[Message], proposals: Sequence[str]) -> str:
    """Name a row by its content: 16 hexadecimal digits, the same on every machine."""
    data = orjson.dumps([messages, proposals])
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def required_aggregation(record: Record) -> str:
    """The text that AFT trains on; RecordError if the record has none."""
    if record.aggregation is None or not record.aggregation.strip():
        raise RecordError(
            "aggregation", "missing or empty; write --target aggregation and aggregate first"
        )
    return record.aggregation


def _expected_role(before: Sequence[Message]) -> str:
    return "assistant" if before and before[-1]["role"] == "user" else "user"


def _parse_proposals(
    value: Any, field: str
) -> tuple[list[str], list[str | None] | None, list[float | None] | None]:
    if value is None:
        return [], None, None
    if not isinstance(value, LIST) or isinstance(value, str):
        raise RecordError(field, f"expected a list, got {kind(value)}")
    texts: list[str] = []
    models: list[str | None] = []
    scores: list[float | None] = []
    for index, item in enumerate(value):
        model = score = None
        text = item
        if isinstance(item, OBJECT):
            text = next((item[key] for key in TEXT_KEYS if key in item), None)
            model, score = item.get("model"), item.get("score")
        if not isinstance(text, str):
            expected = f"a text, or an object with {' or '.join(TEXT_KEYS)}"
            raise RecordError(f"{field}[{index}]", f"expected {expected}, got {kind(item)}")
        if score is not None and (isinstance(score, bool) or not isinstance(score, (int, float))):
            raise RecordError(f"{field}[{index}].score", f"expected a number, got {kind(score)}")
        if model is not None and not isinstance(model, str):
            raise RecordError(f"{field}[{index}].model", f"expected a text, got {kind(model)}")
        texts.append(text)
        models.append(model)
        scores.append(score)
    return (
        texts,
        models if any(models) else None,
        scores if any(s is not None for s in scores) else None,
    )


def _parse_meta(value: Any) -> Row:
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            raise RecordError("meta", "expected an object or JSON text of one") from None
    if value is None:
        return {}
    if not isinstance(value, OBJECT):
        raise RecordError("meta", f"expected an object, got {kind(value)}")
    return dict(value)
