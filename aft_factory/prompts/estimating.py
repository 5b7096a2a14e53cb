"""Lengths in tokens without a tokenizer: rough, but the same wherever they are told. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from aft_factory.prompts.rendering import AggregatorTemplate
from aft_factory.records.messages import Message

BYTES_PER_TOKEN = 4  # of English prose under a vocabulary of 32k to 128k
HOW = f"estimated: bytes of UTF-8 / {BYTES_PER_TOKEN}"


def estimated_tokens(text: str) -> int:
    """Estimate the tokens of one text."""
    return _tokens(_bytes(text))


def estimated_row(
    messages: Sequence[Message],
    proposals: Sequence[str],
    target: str | None,
    template: AggregatorTemplate,
) -> int:
    """Estimate the tokens of a training row; blank proposals are not in it."""
    drafts = [text for text in proposals if text and not text.isspace()]
    texts = [*(message["content"] for message in messages), *drafts, target or ""]
    return _tokens(sum(map(_bytes, texts)) + _frame(template, len(drafts)))


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", errors="replace"))


def _tokens(size: int) -> int:
    return -(-size // BYTES_PER_TOKEN)


@lru_cache(maxsize=64)
def _frame(template: AggregatorTemplate, proposals: int) -> int:
    """Bytes of the prompt around so many proposals."""
    return _bytes(template.render([""] * proposals)) if proposals else 0
