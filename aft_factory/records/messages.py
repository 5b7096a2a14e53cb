"""Conversations: messages in alternation, the user's last, from whatever a row calls them.

Pure; knows no columns, no proposals and no targets. What is read:

| value | conversation |
| --- | --- |
| a text | the user's message |
| {role, content} (OpenAI) | as it is; an answer at its end is handed out apart |
| {from, value} (ShareGPT) | the same |
| content as a list of parts | the texts of the parts, joined by newlines as vLLM does |
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, TypedDict

from aft_factory.errors import RecordError
from aft_factory.records.fields import (
    OBJECT,
    from_json,
    is_blank,
    is_list,
    items_of,
    kind,
    known,
    short,
)
from aft_factory.records.texts import is_parts, refuse_more, text_of

TAGS = (("role", "content"), ("from", "value"))
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking")  # what a thought is called
# As Python and numpy print messages, or JSON that is cut off.
_PRINTED = re.compile(r"\s*(?:array\()?[\[(]?\s*\{\s*(['\"])\w+\1\s*:")
_KEYS = [[re.compile(rf"(['\"]){key}\1\s*:") for key in pair] for pair in TAGS]


class Message(TypedDict):
    """One chat message, as OpenAI-compatible servers and `apply_chat_template` take it."""

    role: str
    content: str


def from_text(value: Any, field: str) -> Any:
    """Return the conversation that a text is the JSON of, as data frames have it.

    Any other JSON is a text like all texts, and so is JSON within a text.

    Raises:
        RecordError: If it is a conversation in a form that is no JSON.
    """
    if not isinstance(value, str):
        return value
    found = from_json(value)
    if found is not value:
        return found if _are_messages(items_of(found) or [found]) else value
    if _PRINTED.match(value) and any(all(key.search(value) for key in pair) for pair in _KEYS):
        raise RecordError(field, f"looks like messages, but is no JSON: {short(value)}")
    return value


def _are_messages(items: list[Any]) -> bool:
    if not all(isinstance(item, OBJECT) for item in items):
        return False
    pairs = [pair for item in items for pair in TAGS if item.keys() >= {*pair}]
    return bool(pairs) or (is_parts(items) and all("text" in item for item in items))


def parse_messages(value: Any, field: str, *, join: bool = False) -> list[Message]:
    """Read a conversation that ends with the user's query; see `parse_conversation`.

    Raises:
        RecordError: If it does not, or is wrong otherwise.
    """
    messages, answer = parse_conversation(value, field, join=join)
    if answer is not None:
        raise RecordError(field, "the last message must be the user's, got 'assistant'")
    return messages


def parse_conversation(
    value: Any, field: str, *, join: bool = False, notes: Counter[str] | None = None
) -> tuple[list[Message], str | None]:
    """Read a conversation: a text, or a list of `{role, content}` or `{from, value}`.

    An empty system message is none.

    Args:
        value: The conversation.
        field: What it is called.
        join: Whether neighbours of one role are one message, a blank line between them.
        notes: Counts what was left out.

    Returns:
        The messages up to the user's last one, and the answer behind it, if there is one.

    Raises:
        RecordError: If a role or content is wrong, roles do not alternate, or the query is blank.
    """
    if known(value) is None:
        raise RecordError(field, "missing; expected a text or a list of messages")
    if isinstance(value, str) and not is_blank(value):  # the usual case
        return [{"role": "user", "content": value}], None
    if isinstance(value, str) or is_parts(value):
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
        # Parquet may have the keys of both, and null in one.
        tag, text = TAGS[known(message.get("from")) is not None]
        role = message.get(tag)
        meant = ROLES.get(role) if isinstance(role, str) else None
        wanted = "assistant" if messages and messages[-1]["role"] == "user" else "user"
        again = join and bool(messages) and messages[-1]["role"] == meant
        if not (meant == "system" and not index) and meant != wanted and not again:
            raise RecordError(f"{place}.{tag}", f"expected {wanted!r}, got {short(role)}")
        content = text_of(message.get(text), f"{place}.{text}")
        if len(message) > 2:
            refuse_more(message, ("role", tag, text), content, place)
        if again:
            joined = filter(str.strip, (messages[-1]["content"], content))
            messages[-1]["content"] = "\n\n".join(joined)
        elif meant != "system" or not is_blank(content):
            messages.append({"role": meant or wanted, "content": content})
    answer = None
    if messages and messages[-1]["role"] == "assistant":
        answer = messages.pop()["content"]
        note_thought(given[-1], notes)
    if not messages or messages[-1]["role"] != "user":
        raise RecordError(field, "the last message must be the user's, got 'system'")
    if not messages[-1]["content"].strip():
        raise RecordError(field, "the query is empty")
    return messages, answer


def note_thought(answer: Mapping[str, Any], notes: Counter[str] | None) -> None:
    """Count an answer that has its thought beside it: it is read without."""
    if notes is not None:
        left = (name for name in THOUGHT_FIELDS if not is_blank(answer.get(name)))
        notes.update(f"answers taken without their {name}" for name in left)


def single_turn(value: Any, field: str) -> Any:
    """Return the one text of a list of the user's turns, such as Arena-Hard's `[{content}]`.

    Raises:
        RecordError: If there are several, or a turn holds more than its text.
    """
    turns = from_json(value)
    if not is_list(turns):
        return value
    if len(turns) != 1:
        problem = f"{len(turns)} turns, of which only one can be asked; use the task mt_bench"
        raise RecordError(field, problem)
    [turn] = turns
    if not isinstance(turn, OBJECT):
        return turn
    text = text_of(turn.get("content"), f"{field}[0].content")
    refuse_more(turn, ("role", "content"), text, f"{field}[0]")
    return text


def with_system(messages: list[Message], rules: str, field: str) -> list[Message]:
    """Return a conversation under a system message.

    Raises:
        RecordError: If it has another one.
    """
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": rules}, *messages]
    if messages[0]["content"] != rules:
        raise RecordError(field, "the conversation has another system message already")
    return messages


def with_history(messages: list[Message], value: Any, field: str) -> list[Message]:
    """Return a conversation behind earlier turns: [user, assistant] pairs, or messages.

    Raises:
        RecordError: If they are neither, or both have a system message.
    """
    earlier = _history(from_json(value), field)
    if messages[0]["role"] == "system" and earlier:
        return [*with_system(earlier, messages[0]["content"], field), *messages[1:]]
    return [*earlier, *messages]


def _history(value: Any, field: str) -> list[Message]:
    given = items_of(value)
    if given is None:
        raise RecordError(field, f"expected a list of earlier turns, got {kind(value)}")
    if all(isinstance(turn, OBJECT) for turn in given):
        # A query stands in for the one that follows, so that the turns are checked alike.
        messages, _ = parse_conversation([*given, {"role": "user", "content": "."}], field)
        return messages[:-1]
    messages = []
    for index, pair in enumerate(given):
        if not is_list(pair) or len(pair) != 2:
            raise RecordError(f"{field}[{index}]", f"expected [user, assistant], got {kind(pair)}")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            messages.append({"role": role, "content": text_of(text, f"{field}[{index}]")})
    return messages
