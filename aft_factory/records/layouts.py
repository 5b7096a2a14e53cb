"""Layouts: what a row asks, whatever its columns are called. Nothing of a query is dropped.

Pure; knows no proposals and no targets. The layouts of the field, and what becomes of them:

| row | conversation |
| --- | --- |
| `query`, `prompt` or `question`: a text | the user's message |
| `instruction`, `input` (Alpaca) | both in one message, joined by a newline as LLaMA-Factory does |
| `system`, `history`: [[user, assistant], ...] | before the message |
| `messages`, `conversations`, `conversation` | as `messages.parse_conversation` reads them |
| `turns`: one text, or one {content} (Arena-Hard) | the user's message |
| a conversation as JSON text | as the list it is; a `query` of that form is a text that is asked |

A column that may belong to the query by its name, holds text that the conversation does not, and
is none of these, is refused by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aft_factory.errors import RecordError
from aft_factory.records.columns import USUAL_COLUMNS, Columns
from aft_factory.records.fields import is_blank, names_of
from aft_factory.records.leftovers import refuse_leftovers
from aft_factory.records.messages import (
    Message,
    from_text,
    parse_conversation,
    single_turn,
    with_history,
    with_system,
)
from aft_factory.records.texts import text_of

TEXT_KEYS = ("query", "instruction", "prompt", "question")
MESSAGE_KEYS = ("messages", "conversations", "conversation", *TEXT_KEYS, "turns")
SYSTEM_KEYS = ("system", "system_prompt")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a row asks.

    Attributes:
        messages: An optional system message, then turns in alternation, the user's last.
        answer: The answer that the row's conversation ends with.
        used: The columns that this was read from.
    """

    messages: list[Message]
    answer: str | None
    used: frozenset[str]


def read_query(
    row: Mapping[str, Any], columns: Columns = USUAL_COLUMNS, notes: Counter[str] | None = None
) -> Asked:
    """Read the conversation of a row in one of the layouts above; `notes` count what is left out.

    Raises:
        RecordError: If there is no query, a part of it is wrong, or a column may belong to it.
    """
    main, more, system, history = columns.messages, columns.input, columns.system, columns.history
    named = list(filter(None, (main, more, system, history)))
    for given in named:
        if given not in row:
            raise RecordError(given, f"no such column; {_has(row)}")
    if ignored := columns.elsewhere:
        row = {key: row[key] for key in row if key in named or key not in ignored}
    name = main or _main_column(row)
    value = row[name]
    if name == "turns":
        value = single_turn(value, name)
    if name not in TEXT_KEYS:
        value = from_text(value, name)
    used = {name}
    is_text = isinstance(value, str)
    if more is None and name == "instruction":
        more = "input"
    extra = None
    if more is not None and not is_blank(row.get(more)):
        used.add(more)
        extra = text_of(row[more], more)
        if is_text:
            value = f"{value}\n{extra}" if value else extra
    messages, answer = parse_conversation(value, name, notes=notes)
    if extra is not None and not is_text:
        last = messages[-1]
        messages[-1] = {"role": last["role"], "content": f"{last['content']}\n{extra}"}

    # Beside a conversation, earlier turns are taken only where they were asked for.
    earlier = history or ("history" if is_text else None)
    if earlier is not None and not is_blank(row.get(earlier)):
        used.add(earlier)
        messages = with_history(messages, row[earlier], earlier)
    rules = system or next((key for key in SYSTEM_KEYS if not is_blank(row.get(key))), None)
    if rules is not None:
        used.add(rules)
        if not is_blank(row[rules]):
            messages = with_system(messages, text_of(row[rules], rules), rules)
    chosen = () if main is None else MESSAGE_KEYS  # the user decided which of them it is
    said = [*(message["content"] for message in messages), answer or ""]
    refuse_leftovers(row, said, {*used, *chosen})
    return Asked(messages, answer, frozenset(used))


def _main_column(row: Mapping[str, Any]) -> str:
    """Return the column that holds the query, or the conversation that ends with it."""
    names = (*MESSAGE_KEYS, "input")
    present = [name for name in names if row.get(name) is not None]
    for name in present:
        if not is_blank(row[name]):
            return name
    if present:
        return present[0]
    raise RecordError(
        "messages",
        f"missing; expected one of {', '.join(names)}; {_has(row)}; "
        "name another: --column query=NAME",
    )


def _has(row: Mapping[str, Any]) -> str:
    return f"the row has: {names_of(row) or 'nothing'}"
