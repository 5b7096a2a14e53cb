"""Fitting: shorten proposals so that a row fits a token budget, and nothing else loses a token.

LLaMA-Factory cuts the tail of a prompt at `cutoff_len`, and the query stands at the tail: a long
row silently loses its query. `fit` shortens the proposals instead, longest first down to one common
cap (water-filling), at token boundaries, and never the query, the instructions or the target. The
same function serves the converters and the plugin. Pure but for the tokenizer it is handed.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aft_factory.errors import AftError, UsageError
from aft_factory.prompts import AggregatorTemplate, with_aggregator
from aft_factory.records import Message
from aft_factory.tokenizer import tokenizer_markers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Conversation = tuple[list[Message], Sequence[str], str | None]  # messages, proposals, target

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
    attempts = shorten(proposals, limit, [boundaries(text) for text in proposals], before)
    shorter = next(attempts)
    while True:
        try:
            shorter = attempts.send(measure(shorter))
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]


def shorten(
    proposals: Sequence[str], limit: int, ends: Sequence[Sequence[int]], before: int
) -> Generator[list[str], int, Fitted]:
    """Do the work of `fit` without measuring, so that many rows can be measured together.

    Args:
        proposals: Sanitised drafts.
        limit: Most tokens of the whole row, which is longer.
        ends: Of each proposal, the positions at which its tokens end.
        before: Tokens of the whole row.

    Yields:
        Proposals to try; wants to be sent the tokens of the whole row with them.

    Raises:
        DoesNotFit: As `fit`.
    """
    lengths = [len(e) for e in ends]
    cap = common_cap(lengths, sum(lengths) - (before - limit))
    while cap >= min(MIN_PROPOSAL_TOKENS, max(lengths, default=0)) > 0:
        shorter = [
            text if length <= cap else text[: end[cap - 1]]
            for text, end, length in zip(proposals, ends, lengths, strict=True)
        ]
        after = yield shorter
        cut = sum(length > cap for length in lengths)
        if after <= limit:
            return Fitted(shorter, after, cut, before - after)
        # A cut text may tokenize a little longer than its share; take the excess off the cap.
        cap -= max(1, math.ceil((after - limit) / max(cut, 1)))
    rest = yield [""] * len(proposals)
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


def token_boundaries(tokenizer: PreTrainedTokenizerFast) -> Callable[[str], list[int]]:
    """Return the `boundaries` of `fit` for a fast tokenizer.

    Raises:
        UsageError: If the tokenizer is a slow one, which cannot tell where its tokens end.
    """
    require_fast(tokenizer)

    def boundaries(text: str) -> list[int]:
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [end for _, end in encoding["offset_mapping"]]

    return boundaries


def require_fast(tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse a tokenizer that cannot tell where its tokens end.

    Raises:
        UsageError: If it is a slow one.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(
            "fitting needs a fast tokenizer (a tokenizer.json); convert this one first"
        )


@dataclass(slots=True)
class Fitter:
    """Measures and fits rows for one tokenizer and chat template.

    Attributes:
        tokenizer: A fast Hugging Face tokenizer.
        chat: Jinja text of the chat template that training will use.
        limit: `cutoff_len`; None measures only.
        template: The aggregator prompt.
    """

    tokenizer: PreTrainedTokenizerFast
    chat: str
    limit: int | None
    template: AggregatorTemplate
    markers: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        require_fast(self.tokenizer)
        # Leaves its core as it is to be here: without the padding or cut-off it was saved with.
        self.tokenizer("", add_special_tokens=False)
        self.markers = tokenizer_markers(self.tokenizer)

    def lengths(self, rows: Sequence[Conversation]) -> list[int]:
        """Return the tokens of each row."""
        segments = [self._segments(*row) for row in rows]
        counts = self._count([text for pair in segments for text in pair])
        return [
            counts[2 * i] + counts[2 * i + 1] + _seams(messages)
            for i, (messages, _, _) in enumerate(rows)
        ]

    def fit_all(self, rows: Sequence[Conversation]) -> list[Fitted | DoesNotFit]:
        """Fit rows (see `fit`), tokenizing all of them at once and then all that are too long."""
        if self.limit is None:
            totals = zip(rows, self.lengths(rows), strict=True)
            return [Fitted(list(proposals), total) for (_, proposals, _), total in totals]
        segments = [self._segments(*row) for row in rows]
        # Not the fast way to encode: it forgets where the tokens stand.
        encoded = self.tokenizer.backend_tokenizer.encode_batch(
            [text for pair in segments for text in pair], add_special_tokens=False
        )
        results: dict[int, Fitted | DoesNotFit] = {}
        attempts: dict[int, Generator[list[str], int, Fitted]] = {}
        after_prompt = []
        for i, (messages, proposals, _) in enumerate(rows):
            prompt, answer = encoded[2 * i], encoded[2 * i + 1]
            after_prompt.append(len(answer) + _seams(messages))
            total = len(prompt) + after_prompt[i]
            if total <= self.limit:
                results[i] = Fitted(list(proposals), total)
            else:
                ends = self._ends(segments[i][0], prompt.offsets, proposals)
                attempts[i] = shorten(proposals, self.limit, ends, total)
        del encoded  # 100 bytes a token

        tries = {i: next(attempt) for i, attempt in attempts.items()}
        while tries:
            texts = [self._segments(rows[i][0], tries[i], rows[i][2])[0] for i in tries]
            for i, count in zip(list(tries), self._count(texts), strict=True):
                try:
                    tries[i] = attempts[i].send(count + after_prompt[i])
                except StopIteration as done:
                    results[i] = done.value
                    del tries[i]
                except DoesNotFit as error:
                    results[i] = error
                    del tries[i]
        return [results[i] for i in range(len(rows))]

    def _count(self, texts: Sequence[str]) -> list[int]:
        encoded = self.tokenizer.backend_tokenizer.encode_batch_fast(
            list(texts), add_special_tokens=False
        )
        return [len(encoding) for encoding in encoded]

    def _ends(
        self, prompt: str, offsets: Sequence[tuple[int, int]], proposals: Sequence[str]
    ) -> list[list[int]]:
        """Return the ends of each proposal's tokens, as they are in the prompt around it.

        A token that goes on into the text after a proposal is not the proposal's: it stays if the
        proposal is cut.
        """
        token_ends = [end for _, end in offsets]
        ends, position = [], 0
        for text in proposals:
            start = prompt.find(text, position)
            if start < 0:  # the chat template changes it
                ends.append(token_boundaries(self.tokenizer)(text))
                continue
            position = start + len(text)
            first, last = bisect_right(token_ends, start), bisect_right(token_ends, position)
            ends.append([end - start for end in token_ends[first:last]])
        return ends

    def _segments(
        self, messages: list[Message], proposals: Sequence[str], target: str | None
    ) -> tuple[str, str]:
        """Return prompt and target as the texts that LLaMA-Factory encodes apart."""
        messages = with_aggregator(messages, proposals, self.template)
        prompt = self._render(messages, add_generation_prompt=True)
        if target is None:
            return prompt, ""
        whole = self._render([*messages, {"role": "assistant", "content": target}])
        return (prompt, whole[len(prompt) :]) if whole.startswith(prompt) else (whole, "")

    def _render(self, messages: list[Message], *, add_generation_prompt: bool = False) -> str:
        try:
            return self.tokenizer.apply_chat_template(  # type: ignore[no-any-return]
                messages,
                chat_template=self.chat,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:  # a template is a program, and can fail in any way
            raise UsageError(f"the chat template to measure with fails: {error}") from error


def _seams(messages: Sequence[Message]) -> int:
    """LLaMA-Factory encodes earlier answers apart, which may cost a token on each side."""
    return 2 * sum(message["role"] == "assistant" for message in messages)
