"""Leftovers: columns of a row that may belong to its query and were not read. Pure.

A name tells: its last word, as in `retrieved_documents` or `userPrompt`. `prompt_id`, `num_tokens`
and `question_type` tell of a query without being part of it, and so does a number that counts:
`num_turns`, `turns`, `turn`. What says only what the conversation says as well is no loss.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from aft_factory.errors import RecordError
from aft_factory.records.fields import LIST, OBJECT, is_blank, kind, leaves

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_a-zA-Z]+")
_FORM = re.compile(r"content|json|list|raw|str|string|text")  # a last word that says nothing
_MEDIUM = re.compile(r"(?:audio|image|img|media|photo|picture|video)s?")
_PLACE = re.compile(r"base64|bytes|data|file|path|uri|url")  # `document_url` is no document
_PART = re.compile(
    r"(?:article|attachment|background|call|chat|choice|claim|constraint|context|conversation|ctx"
    r"|dialog|dialogue|document|ending|evidence|excerpt|function|history|hypothesis|input"
    r"|instruction|message|option|paragraph|passage|persona|premise|prompt|query|question"
    r"|requirement|scenario|schema|sentence|situation|system|table|tool|turn|user|utterance)s?"
    r"|queries|histories|hypotheses|story|stories"
)
# Names of which a number is how many there are, which one it is, or whether there is any.
_COUNT = re.compile(
    r"(?:avg|count|has|is|max|mean|min|n|nb|no|num|number|total|with)", re.IGNORECASE
)
_COUNTED = re.compile(r"(?i:turn|.*s)")
_TAGS = ("role", "from", "type")  # of messages and parts: what says how a text is meant


@cache
def may_belong(name: str) -> bool:
    """Tell whether a column's name is that of a part of a query.

    Example:
        >>> [may_belong(name) for name in ("chatHistory", "context_text", "prompt_id", "note")]
        [True, True, False, False]
    """
    words = [word.lower() for word in _WORD.findall(name)]
    while len(words) > 1 and _FORM.fullmatch(words[-1]):
        words.pop()
    if len(words) > 1 and _PLACE.fullmatch(words[-1]):
        return bool(_MEDIUM.fullmatch(words[-2]))
    return bool(words and (_PART.fullmatch(words[-1]) or _MEDIUM.fullmatch(words[-1])))


def may_be_part(name: str, value: Any) -> bool:
    """Tell whether a value that says something may be part of a query, by its name."""
    if not may_belong(name):
        return False
    if isinstance(value, int | float):
        words = _WORD.findall(name)
        return not (_COUNTED.fullmatch(words[-1]) or (words[1:] and _COUNT.fullmatch(words[0])))
    return True


def refuse_leftovers(row: Mapping[str, Any], said: Iterable[str], read: Collection[str]) -> None:
    """Refuse a column that may belong to the query and says what the conversation does not.

    Args:
        row: The row.
        said: The texts of the conversation.
        read: The columns that it was read from, or that are known to be something else.

    Raises:
        RecordError: With the first such column.
    """
    texts: set[str] | None = None
    for name, value in row.items():
        if name in read or not may_belong(str(name)):  # the usual cases
            continue
        if is_blank(value) or not may_be_part(str(name), value):
            continue
        texts = {text.strip() for text in said} if texts is None else texts
        told = (leaf for leaf in _told(value) if leaf is not None)  # as Parquet fills objects
        if all(isinstance(leaf, str) and leaf.strip() in texts for leaf in told):
            continue
        raise RecordError(
            str(name),
            f"may belong to the query, which was read from other columns, got {kind(value)}; "
            "name the columns of the query (--column query=NAME, --column system=NAME ...), or "
            f"leave this one out of it (--column ignore={name})",
        )


def _told(value: Any) -> Iterator[Any]:
    """Go through what a value tells: of messages and parts, the texts."""
    if isinstance(value, LIST) and not isinstance(value, str):
        value = [
            {key: item[key] for key in item if key not in _TAGS}
            if isinstance(item, OBJECT)
            else item
            for item in value
        ]
    return leaves(value)
