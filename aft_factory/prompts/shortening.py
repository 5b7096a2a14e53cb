"""Shortening: the arithmetic of `fitting`, from proposals that are too long to such that fit.

The longest go first, down to one common cap (water-filling), at token boundaries. Pure; knows no
tokenizer and no template.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

from aft_factory.errors import AftError
from aft_factory.records.messages import Message

MIN_PROPOSAL_TOKENS = 16  # a shorter stump of a draft teaches nothing: the row does not fit


class DoesNotFit(AftError, ValueError):
    """A row that no shortening of proposals brings under the limit; says its numbers.

    Attributes:
        field: What is wrong: `cutoff_len`, or `messages` if the chat template refuses them.
    """

    def __init__(self, problem: str, field: str = "cutoff_len") -> None:
        super().__init__(problem)
        self.field = field


@dataclass(frozen=True, slots=True)
class Fitted:
    """What became of one row's proposals.

    Attributes:
        proposals: The proposals, shortened where need be.
        tokens: Length of the whole row with them, in tokens.
        cut: How many proposals were shortened.
        tokens_removed: How many of the row's tokens are gone.
        messages: Of a row without a target, the conversation to answer, drafts included.
        prompt_ids: The tokens of the same.
    """

    proposals: list[str]
    tokens: int
    cut: int = 0
    tokens_removed: int = 0
    messages: Sequence[Message] = field(default=(), compare=False)
    prompt_ids: Sequence[int] | None = field(default=None, compare=False)


def fit(
    proposals: Sequence[str],
    limit: int,
    measure: Callable[[Sequence[str]], int],
    boundaries: Callable[[str], Sequence[int]],
) -> Fitted:
    """Shorten proposals until the row fits.

    Args:
        proposals: Sanitised drafts.
        limit: Most tokens of the whole row: prompt and target.
        measure: Tokens of the whole row with the given proposals; must be exact.
        boundaries: Position in the text at which each of its tokens ends.

    Raises:
        DoesNotFit: If each proposal would keep fewer than `MIN_PROPOSAL_TOKENS`.
    """
    before = measure(proposals)
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
