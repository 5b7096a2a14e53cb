"""Leftovers: columns of a row that may belong to its query and were not read. Pure.

A name tells: its last word, as in `retrieved_documents` or `userPrompt`; so do the letters of
options, `A` beside `B`, `option_c`. `prompt_id`, `num_tokens` and `question_type` tell of a query
without being part of it, and so does a number that counts: `num_turns`, `turns`, `turn`. What often
is a label, as a `language_code` is, belongs to a query only as a text. What says only what the
conversation says as well is no loss.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from aft_factory.errors import RecordError
from aft_factory.records.fields import OBJECT, from_json, is_blank, is_list, kind, leaves

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_a-zA-Z]+")
# A last word that says nothing, or which of several it is.
_FORM = re.compile(r"content|json|list|raw|str|string|text|[a-h]")
_MEDIUM = re.compile(r"(?:audio|image|img|media|photo|picture|video)s?")
_PLACE = re.compile(r"base64|bytes|data|file|path|uri|url")  # `document_url` is no document
_PART = re.compile(
    r"(?:article|attachment|background|call|chat|choice|claim|constraint|context|conversation|ctx"
    r"|dialog|dialogue|distractor|document|ending|evidence|excerpt|function|hint|history|hypothesis"
    r"|input|instruction|message|option|paragraph|passage|persona|premise|problem|prompt|query"
    r"|question|requirement|scenario|schema|sentence|situation|system|table|tool|turn|user|utterance)s?"
    r"|queries|histories|hypotheses|story|stories|op[a-h]"
)
_TEXT = re.compile(  # parts of a query where they are texts; else labels
    r"(?:abstract|code|definition|demonstration|description|example|fact|guideline|lecture|rule"
    r"|signature|skeleton|snippet|statement|stub|transcript)s?|body|prefix|suffix|support"
)
_LABEL = re.compile(r"[\w.+#/=-]*", re.ASCII)
_ANSWER = re.compile(  # a first word of what is none of a query, but the answer to it
    r"answer|canonical|correct|expected|final|generated|gold|output|reference|response|solution"
    r"|target|test"
)
_LETTERS = frozenset("ABCDEFGH")  # of options, each in a column of its own
# Names of which a number is how many there are, which one it is, or whether there is any.
_COUNT = re.compile(
    r"(?:avg|count|custom|has|is|max|mean|min|n|nb|no|num|number|total|with)", re.IGNORECASE
)
_COUNTED = re.compile(r"(?i:turn|.*s)")
_TAGS = ("role", "from", "type")  # of messages and parts: what says how a text is meant


@cache
def _words(name: str) -> list[str]:
    """Return the words of a name up to the last that says something, in small letters."""
    words = [word.lower() for word in _WORD.findall(name)]
    while len(words) > 1 and _FORM.fullmatch(words[-1]):
        words.pop()
    return words or [""]


@cache
def may_belong(name: str) -> bool:
    """Tell whether a column's name is that of a part of a query.

    Example:
        >>> [may_belong(name) for name in ("chatHistory", "context_text", "prompt_id", "note")]
        [True, True, False, False]
    """
    *others, last = _words(name)
    if others and _PLACE.fullmatch(last):
        return bool(_MEDIUM.fullmatch(others[-1]))
    if _TEXT.fullmatch(last):
        return not any(map(_ANSWER.fullmatch, others))
    return bool(_PART.fullmatch(last) or _MEDIUM.fullmatch(last))


def may_be_part(name: str, value: Any) -> bool:
    """Tell whether a value that says something may be part of a query, by its name."""
    if not may_belong(name):
        return False
    if _TEXT.fullmatch(_words(name)[-1]):
        return any(isinstance(leaf, str) and not _LABEL.fullmatch(leaf) for leaf in leaves(value))
    if isinstance(value, int | float):
        words = _WORD.findall(name)
        return not (_COUNTED.fullmatch(words[-1]) or (words[1:] and _COUNT.fullmatch(words[0])))
    return True


def refuse_leftovers(row: Mapping[str, Any], said: Iterable[str], read: Collection[str]) -> None:
    """Refuse columns that may belong to the query and say what the conversation does not.

    Args:
        row: The row.
        said: The texts of the conversation.
        read: The columns that it was read from, or that are known to be something else.

    Raises:
        RecordError: With the first such column; all of them are in its words.
    """
    options = _LETTERS if {"A", "B"} <= row.keys() else ()
    texts: list[str] | None = None
    left: list[str] = []
    for name, value in row.items():
        if name in read or not (may_belong(str(name)) or name in options):  # the usual cases
            continue
        if (
            is_blank(value)
            or from_json(value) in ([], {})
            or not (name in options or may_be_part(str(name), value))
        ):
            continue
        texts = [text.strip() for text in said] if texts is None else texts
        told = (leaf for leaf in _told(value) if leaf is not None)  # as Parquet fills objects
        if not all(isinstance(leaf, str) and _is_said(leaf.strip(), texts) for leaf in told):
            left.append(str(name))
    if left:
        raise RecordError(
            left[0],
            "may belong to the query, which was read from other columns, got "
            f"{kind(row.get(left[0]))}; name the columns of the query (--column query=NAME, "
            f"--column system=NAME ...), or leave it out (--column ignore={','.join(left)})",
        )


def _is_said(text: str, texts: list[str]) -> bool:
    """Tell whether texts say what one says; a single word may be in them for another reason."""
    return text in texts or (len(text.split()) > 1 and any(text in one for one in texts))


def _told(value: Any) -> Iterator[Any]:
    """Go through what a value tells: of messages and parts, the texts."""
    if is_list(value):
        value = [
            {key: item[key] for key in item if key not in _TAGS}
            if isinstance(item, OBJECT)
            else item
            for item in value
        ]
    return leaves(value)
