"""The parts of an OpenAI-compatible server's message: its text, and the thought beside it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aft_factory.records.messages import THOUGHT_FIELDS


def text_of(content: Any) -> Any:
    """Return the text of an answer: of one in parts, all that is no thought."""
    if not isinstance(content, list):
        return content
    parts = [part if isinstance(part, dict) else {"text": part} for part in content]
    return "".join(
        part["text"]
        for part in parts
        if isinstance(part.get("text"), str) and "text" in part.get("type", "text")
    )


def thought_of(message: Mapping[str, Any]) -> str:
    """Return the thought that a message has beside its text."""
    own = (_words_in(message.get(name)).strip() for name in THOUGHT_FIELDS)
    return thought_in(message.get("content")).strip() or next(filter(None, own), "")


def thought_in(content: Any) -> str:
    """Return the thought in a content in parts, as it stands there."""
    parts = [as_object(part) for part in content] if isinstance(content, list) else []
    return "".join(
        _words_in(part.get(part["type"])) for part in parts if "think" in str(part.get("type"))
    )


def _words_in(thought: Any) -> str:
    """Return the text of a thought, which may be in parts."""
    if isinstance(thought, list):
        return "".join(map(_words_in, thought))
    found = thought.get("text") if isinstance(thought, dict) else thought
    return found if isinstance(found, str) else ""


def as_object(value: object) -> dict[str, Any]:
    """Return an object, an empty one for anything else."""
    return value if isinstance(value, dict) else {}
