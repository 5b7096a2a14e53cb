"""Conversations: what a row asks, whatever its layout. Nothing of a query is dropped.

Pure; knows no proposals and no targets. The layouts of the field, and what becomes of them:

| row | conversation |
| --- | --- |
| `query`, `prompt` or `question`: a text | the user's message |
| `instruction`, `input` (Alpaca) | both in one message, joined by a newline as LLaMA-Factory does |
| `system`, `history`: [[user, assistant], ...] | before the message |
| `messages`: {role, content} (OpenAI) | as it is; an answer at its end is handed out apart |
| `conversations`: {from, value} (ShareGPT) | the same |
| `turns`: one text, or one {content} (Arena-Hard) | the user's message |
| content as a list of parts | the texts of the parts, joined by newlines as vLLM does |
| a conversation as JSON text | as the list it is; a `query` of that form is a text that is asked |

A column that may belong to the query by its name, holds text that the conversation does not, and
is none of these, is refused by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from aft_factory.errors import RecordError
from aft_factory.records.fields import (
    LIST,
    OBJECT,
    from_json,
    is_blank,
    items_of,
    kind,
    known,
    names_of,
    short,
)
from aft_factory.records.leftovers import may_belong, refuse_leftovers

TEXT_KEYS = ("query", "instruction", "prompt", "question")
MESSAGE_KEYS = ("messages", "conversations", "conversation", *TEXT_KEYS, "turns")
SYSTEM_KEYS = ("system", "system_prompt")
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


class Message(TypedDict):
    """One chat message, as OpenAI-compatible servers and `apply_chat_template` take it."""

    role: str
    content: str


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
    row: Mapping[str, Any],
    *,
    main: str | None = None,
    more: str | None = None,
    system: str | None = None,
    history: str | None = None,
    ignored: Sequence[str] = (),
) -> Asked:
    """Read the conversation of a row.

    Args:
        row: In one of the layouts above.
        main: The column with the query; None takes the usual names.
        more: The column that is joined to it (Alpaca's `input`).
        system: The column with the system message.
        history: The column with earlier turns.
        ignored: Columns that are known not to belong to the query, unless they are named above.

    Raises:
        RecordError: If there is no query, a part of it is wrong, or a column may belong to it.
    """
    named = list(filter(None, (main, more, system, history)))
    for given in named:
        if given not in row:
            raise RecordError(given, f"no such column; {_has(row)}")
    if ignored:
        row = {key: row[key] for key in row if key in named or key not in ignored}
    name = main or _main_column(row)
    value = row[name]
    if name not in TEXT_KEYS:
        value = from_json(value)
        if isinstance(value, str) and value.startswith("[{"):
            raise RecordError(name, f"begins as a list of messages, but is no JSON: {short(value)}")
    used = {name}
    if more is None and name == "instruction":
        more = "input"
    if isinstance(value, str) and more is not None and (extra := known(row.get(more))):
        used.add(more)
        extra = _text(extra, more)
        value = f"{value}\n{extra}" if value else extra
    messages, answer = parse_conversation(value, name, single=name == "turns")

    history = history or "history"
    if isinstance(value, str) and not is_blank(row.get(history)):
        used.add(history)
        messages = [*_history(from_json(row[history]), history), *messages]
    rules = system or next((key for key in SYSTEM_KEYS if not is_blank(row.get(key))), None)
    if rules is not None:
        used.add(rules)
        if not is_blank(row[rules]):
            messages = _with_system(messages, _text(row[rules], rules), rules)
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
    raise RecordError("messages", f"missing; expected one of {', '.join(names)}; {_has(row)}")


def parse_messages(value: Any, field: str) -> list[Message]:
    """Read a conversation that ends with the user's query; see `parse_conversation`.

    Raises:
        RecordError: If it does not, or is wrong otherwise.
    """
    messages, answer = parse_conversation(value, field)
    if answer is not None:
        raise RecordError(field, "the last message must be the user's, got 'assistant'")
    return messages


def parse_conversation(
    value: Any, field: str, *, single: bool = False
) -> tuple[list[Message], str | None]:
    """Read a conversation: a text, or a list of `{role, content}` or `{from, value}`.

    An empty system message is none.

    Args:
        value: What a row has.
        field: Where, for messages.
        single: It is a list of the user's turns, of which only one can be asked here.

    Returns:
        The messages up to the user's last one, and the answer behind it, if there is one.

    Raises:
        RecordError: If a role or content is wrong, roles do not alternate, or the query is blank.
    """
    if single and isinstance(value, LIST) and not isinstance(value, str):
        if len(value) != 1:
            problem = f"{len(value)} turns, of which only one can be asked; use the task mt_bench"
            raise RecordError(field, problem)
        [turn] = value
        value = turn.get("content") if isinstance(turn, OBJECT) else turn
    if known(value) is None:
        raise RecordError(field, "missing; expected a text or a list of messages")
    if isinstance(value, str) and not is_blank(value):  # the usual case
        return [{"role": "user", "content": value}], None
    if isinstance(value, str) or _is_parts(value):
        value = [{"role": "user", "content": value}]
    given = items_of(value)
    if not given:
        raise RecordError(field, f"expected a text or a list of messages, got {kind(value)}")
    messages: list[Message] = []
    for index, message in enumerate(given):
        place = f"{field}[{index}]"
        if not isinstance(message, OBJECT):
            expected = "an object with role and content"
            raise RecordError(place, f"expected {expected}, got {kind(message)}")
        sharegpt = message.get("from") is not None  # Parquet may have both, and null in one
        tag, text = ("from", "value") if sharegpt else ("role", "content")
        role = message.get(tag)
        meant = ROLES.get(role) if isinstance(role, str) else None
        wanted = "assistant" if messages and messages[-1]["role"] == "user" else "user"
        if not (meant == "system" and not index) and meant != wanted:
            raise RecordError(f"{place}.{tag}", f"expected {wanted!r}, got {short(role)}")
        content = _text(message.get(text), f"{place}.{text}")
        if len(message) > 2:
            _refuse_more(message, (tag, text), place)
        if meant != "system" or not is_blank(content):
            messages.append({"role": meant or wanted, "content": content})
    answer = None
    if messages and messages[-1]["role"] == "assistant":
        answer = messages.pop()["content"]
    if not messages or messages[-1]["role"] != "user":
        raise RecordError(field, "the last message must be the user's, got 'system'")
    if not messages[-1]["content"].strip():
        raise RecordError(field, "the query is empty")
    return messages, answer


def text_of_parts(parts: Sequence[Any], field: str) -> str:
    """Return the text of a content that is a list of parts.

    Raises:
        RecordError: If one of them is no text.
    """
    texts = []
    for index, part in enumerate(parts):
        text = part
        if isinstance(part, OBJECT):
            text = next((part[key] for key in ("text", "value") if part.get(key) is not None), None)
            if (known(part.get("type")) or "text") not in ("text", "input_text", "output_text"):
                text = None
        if not isinstance(text, str):
            raise RecordError(f"{field}[{index}]", f"only text can be asked, got {kind(part)}")
        if isinstance(part, OBJECT):
            _refuse_more(part, ("type", "text", "value"), f"{field}[{index}]")
        texts.append(text)
    return "\n".join(texts)


def _refuse_more(value: Mapping[str, Any], read: Collection[str], place: str) -> None:
    """Refuse what a message, or a part of one, has beside its text and may belong to it."""
    for key, other in value.items():
        if key not in read and may_belong(str(key)) and not is_blank(other):
            raise RecordError(f"{place}.{key}", f"only text can be asked, got {kind(other)}")


def _text(value: Any, field: str) -> str:
    """Read a text, or the parts of one."""
    if isinstance(value, LIST) and not isinstance(value, str) and value:
        return text_of_parts(value, field)
    if not isinstance(value, str):
        raise RecordError(field, f"expected a text, got {kind(value)}")
    return value


def _is_parts(value: Any) -> bool:
    return (
        isinstance(value, LIST)
        and not isinstance(value, str)
        and bool(value)
        and all(
            isinstance(part, OBJECT) and "type" in part and "role" not in part for part in value
        )
    )


def _with_system(messages: list[Message], rules: str, field: str) -> list[Message]:
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": rules}, *messages]
    if messages[0]["content"] != rules:
        raise RecordError(field, "the conversation has another system message already")
    return messages


def _history(value: Any, field: str) -> list[Message]:
    """Read earlier turns: pairs of texts, as in LLaMA-Factory's Alpaca layout, or messages."""
    given = items_of(value)
    if given is None:
        raise RecordError(field, f"expected a list of earlier turns, got {kind(value)}")
    if all(isinstance(turn, OBJECT) for turn in given):
        # A blank query stands in for the one that follows, so that the turns are checked alike.
        messages, _ = parse_conversation([*given, {"role": "user", "content": "."}], field)
        return messages[:-1]
    messages = []
    for index, pair in enumerate(given):
        if not isinstance(pair, LIST) or isinstance(pair, str) or len(pair) != 2:
            raise RecordError(f"{field}[{index}]", f"expected [user, assistant], got {kind(pair)}")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            messages.append({"role": role, "content": _text(text, f"{field}[{index}]")})
    return messages


def _has(row: Mapping[str, Any]) -> str:
    return f"the row has: {names_of(row) or 'nothing'}"
