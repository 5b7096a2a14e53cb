"""Fitting: shorten proposals so that a row fits a token budget, and nothing else loses a token.

LLaMA-Factory cuts the tail of a prompt at `cutoff_len`, and the query stands at the tail: a long row
silently loses its query. `fit` shortens the proposals instead, longest first down to one common cap
(water-filling), at token boundaries, and never the query, the instructions or the target. The same
function serves the converters and the plugin (against `cutoff_len`) and inference (against the context
length). Pure but for the tokenizer it is handed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aft_factory.errors import AftError, MissingPackage, UsageError
from aft_factory.prompts import (
    MARKERS,
    TEMPLATES,
    AggregatorTemplate,
    chat_template,
    marker_pattern,
    with_aggregator,
)
from aft_factory.records import Message

MIN_PROPOSAL_TOKENS = 16  # a shorter stump of a draft teaches nothing: the row does not fit


class DoesNotFit(AftError, ValueError):
    """A row that no shortening of proposals brings under the limit; says its numbers."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """What became of one row's proposals.

    Attributes:
        proposals: The proposals, shortened where need be.
        tokens: Length of the whole row with them, in tokens.
        cut: How many proposals were shortened.
        tokens_removed: How many of the row's tokens are gone.
    """

    proposals: list[str]
    tokens: int
    cut: int = 0
    tokens_removed: int = 0


def fit(
    proposals: Sequence[str],
    limit: int,
    measure: Callable[[Sequence[str]], int],
    boundaries: Callable[[str], Sequence[int]],
    total: int | None = None,
) -> Fitted:
    """Shorten proposals until the row fits.

    Args:
        proposals: Sanitised drafts.
        limit: Most tokens of the whole row: prompt and target.
        measure: Tokens of the whole row with the given proposals; must be exact.
        boundaries: Position in the text at which each of its tokens ends.
        total: `measure(proposals)`, where it is known already.

    Raises:
        DoesNotFit: If each proposal would keep fewer than `MIN_PROPOSAL_TOKENS`.
    """
    before = measure(proposals) if total is None else total
    if before <= limit:
        return Fitted(list(proposals), before)
    ends = [boundaries(text) for text in proposals]
    lengths = [len(e) for e in ends]
    cap = common_cap(lengths, sum(lengths) - (before - limit))
    while cap >= min(MIN_PROPOSAL_TOKENS, max(lengths, default=0)) > 0:
        shorter = [
            text if length <= cap else text[: end[cap - 1]]
            for text, end, length in zip(proposals, ends, lengths, strict=True)
        ]
        after = measure(shorter)
        cut = sum(length > cap for length in lengths)
        if after <= limit:
            return Fitted(shorter, after, cut, before - after)
        # A cut text may tokenize a little longer than its share; take the excess off the cap.
        cap -= max(1, math.ceil((after - limit) / max(cut, 1)))
    rest = measure([""] * len(proposals))
    raise DoesNotFit(
        f"needs {rest} tokens before any of its {len(proposals)} proposals, the limit is {limit}"
        if rest > limit
        else f"leaves {limit - rest} tokens for {len(proposals)} proposals (at least "
        f"{MIN_PROPOSAL_TOKENS} each), the limit is {limit}"
    )


def common_cap(lengths: Sequence[int], available: int) -> int:
    """Return the largest cap so that lengths cut down to it sum to at most `available`; 0 if none.

    Example:
        >>> common_cap([10, 100, 40], 60)
        25
    """
    rest, count = available, len(lengths)
    for length in sorted(lengths):
        if length * count > rest:
            return max(rest // count, 0)
        rest -= length
        count -= 1
    return max(lengths, default=0)


def token_boundaries(tokenizer: Any) -> Callable[[str], list[int]]:
    """Return the `boundaries` of `fit` for a fast tokenizer.

    Raises:
        UsageError: If the tokenizer is a slow one, which cannot tell where its tokens end.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError("fitting needs a fast tokenizer (a tokenizer.json); convert this one first")

    def boundaries(text: str) -> list[int]:
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [end for _, end in encoding["offset_mapping"]]

    return boundaries


@dataclass(slots=True)
class Fitter:
    """Fits rows for one tokenizer and chat template; counts what it does.

    Attributes:
        tokenizer: A fast Hugging Face tokenizer.
        chat: Jinja text of the chat template that training will use.
        limit: `cutoff_len`; None measures only.
        template: The aggregator prompt.
    """

    tokenizer: Any
    chat: str
    limit: int | None
    template: AggregatorTemplate
    markers: Any = field(init=False)

    def __post_init__(self) -> None:
        self.markers = tokenizer_markers(self.tokenizer)

    def lengths(self, rows: Sequence[tuple[list[Message], Sequence[str], str | None]]) -> list[int]:
        """Return the tokens of each (messages, proposals, target), encoded as one parallel batch."""
        texts: list[str] = []
        for messages, proposals, target in rows:
            texts += self._segments(with_aggregator(messages, proposals, self.template), target)
        encoded = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [
            # Earlier answers are encoded apart by LLaMA-Factory; a seam may cost a token on each side.
            len(encoded[2 * i]) + len(encoded[2 * i + 1]) + 2 * _earlier_answers(messages)
            for i, (messages, _, _) in enumerate(rows)
        ]

    def fit(
        self, messages: list[Message], proposals: Sequence[str], target: str | None, total: int
    ) -> Fitted:
        """Fit one row whose length is known (see `fit`)."""
        if self.limit is None:
            return Fitted(list(proposals), total)
        return fit(
            proposals,
            self.limit,
            lambda shorter: self.lengths([(messages, shorter, target)])[0],
            token_boundaries(self.tokenizer),
            total,
        )

    def _segments(self, messages: list[Message], target: str | None) -> tuple[str, str]:
        """Return prompt and target as the texts that LLaMA-Factory encodes apart."""
        render = self.tokenizer.apply_chat_template
        options = {"tokenize": False, "chat_template": self.chat}
        prompt = render(messages, add_generation_prompt=True, **options)
        if target is None:
            return prompt, ""
        whole = render([*messages, {"role": "assistant", "content": target}], **options)
        return (prompt, whole[len(prompt) :]) if whole.startswith(prompt) else (whole, "")


def load_tokenizer(name: str) -> Any:
    """Load a tokenizer from a folder or from the hub.

    Raises:
        MissingPackage: If transformers is not installed.
        UsageError: If there is no such tokenizer.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingPackage("--tokenizer", "transformers") from None
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot load the tokenizer {name!r}: {error}") from None


def resolve_chat_template(name: str, tokenizer: Any) -> str:
    """Return the chat template to measure with: `llama3`, `mistral`, `own`, a path, or `auto`.

    `auto` is `llama3` where the vocabulary has Llama 3's role headers, else the tokenizer's own, else
    `mistral` where the vocabulary is of Llama's older kind.

    Raises:
        UsageError: If it cannot be told, or there is none of that name.
    """
    vocabulary = tokenizer.get_vocab()
    own = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
    if name == "auto" and "<|start_header_id|>" in vocabulary:
        name = "llama3"
    elif name == "auto" and own is None and "</s>" in vocabulary:
        name = "mistral"
    if name in ("auto", "own"):
        if own is None:
            raise UsageError("this tokenizer has no chat template; pass --chat-template llama3, mistral or a path")
        return own
    if not (TEMPLATES / "chat" / f"{name}.jinja").is_file() and Path(name).is_file():
        return Path(name).read_text(encoding="utf-8")
    return chat_template(name)


def tokenizer_markers(tokenizer: Any) -> Any:
    """Return the marker pattern of the known families plus this tokenizer's own special tokens."""
    special = {
        str(token.content)
        for token in tokenizer.added_tokens_decoder.values()
        if token.special and len(token.content) > 1 and not str(token.content).isspace()
    }
    return marker_pattern(frozenset(m for m in special if not m.startswith(MARKERS)))


def _earlier_answers(messages: Sequence[Message]) -> int:
    return sum(message["role"] == "assistant" for message in messages)
