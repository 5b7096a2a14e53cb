"""Texts of messages: a text, or the parts of one; what else stands beside them is refused by name.

Pure; knows no roles and no rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from aft_factory.errors import RecordError
from aft_factory.records.fields import OBJECT, is_blank, is_list, kind, known
from aft_factory.records.leftovers import may_be_part

PART_TEXTS = ("text", "value")
SAID = {*PART_TEXTS, "content", "file", "data", "url"}  # what is said, whatever else it is called


def text_of(value: Any, field: str) -> str:
    """Read a text, or the parts of one.

    Raises:
        RecordError: If it is neither.
    """
    if is_list(value) and value:
        return text_of_parts(value, field)
    if not isinstance(value, str):
        raise RecordError(field, f"expected a text, got {kind(value)}")
    return value


def text_of_parts(parts: Sequence[Any], field: str) -> str:
    """Return the text of a content that is a list of parts.

    Raises:
        RecordError: If one of them is no text, or all are bare texts: these may be several.
    """
    if all(isinstance(part, str) for part in parts):
        raise RecordError(field, f"expected a text or a list of parts, got {kind(parts)}")
    texts = []
    for index, part in enumerate(parts):
        text, key = part, None
        if isinstance(part, OBJECT):
            filled = (key for key in PART_TEXTS if not is_blank(part.get(key)))
            key = next(filled, next((key for key in PART_TEXTS if part.get(key) is not None), None))
            text = key and part[key]
            if (known(part.get("type")) or "text") not in ("text", "input_text", "output_text"):
                text = None
        if not isinstance(text, str):
            raise RecordError(f"{field}[{index}]", f"only text can be asked, got {kind(part)}")
        if key is not None:
            refuse_more(part, ("type", key), text, f"{field}[{index}]")
        texts.append(text)
    return "\n".join(texts)


def is_parts(value: Any) -> bool:
    """Tell whether a value is a list of parts, and not of messages."""
    return (
        is_list(value)
        and bool(value)
        and all(
            isinstance(part, OBJECT) and "type" in part and "role" not in part for part in value
        )
    )


def refuse_more(value: Mapping[str, Any], read: Collection[str], text: str, place: str) -> None:
    """Refuse what a message, or a part of one, has beside its text and may belong to it.

    Raises:
        RecordError: With the first such key.
    """
    for key, other in value.items():
        if key in read or other == text or is_blank(other):
            continue
        if key in SAID or may_be_part(str(key), other):
            raise RecordError(f"{place}.{key}", f"only one text can be asked, got {kind(other)}")
