"""What becomes of a draft that is empty, or did not come to an end of its own. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from aft_factory.engines.sampling import Completion, Sampling

EmptyPolicy = Literal["resample", "drop", "reject"]
UnfinishedPolicy = Literal["resample", "drop", "reject"]
TruncatedPolicy = Literal["keep", "resample", "drop", "reject"]
FilteredPolicy = Literal["resample", "keep", "drop", "reject"]
WORDS = {
    "empty": "empty",
    "truncated": "cut off",
    "filtered": "cut off by a filter of contents",
    "unanswered": "no text",
    "unfinished": "an unfinished thought",
    "stopped": "a thought that a text of `stop` ended",
}


@dataclass(frozen=True, slots=True)
class Policy:
    """What becomes of a draft that is empty, or that `max_tokens` or a filter of contents cut off.

    Attributes:
        empty: `resample` under another seed, then drop; `drop`; or `reject` the whole query.
        truncated: The same, or `keep`. After resampling in vain, the last
            cut-off draft is kept, though an empty one came after it.
        resamples: How often to resample one draft.
        min_drafts: With fewer usable drafts in a layer the query is rejected.
        filtered: As `empty`, or `keep` what was written before a filter of contents ended it.
        unfinished: Of a thought that `max_tokens` cut off, before there was an answer: as `empty`,
            but resampled with twice the tokens each time, as far as the context goes; or `keep`,
            an answer of no text, for who set its length. What was cut off without any text was a
            thought that the server does not show.
    """

    empty: EmptyPolicy = "resample"
    truncated: TruncatedPolicy = "keep"
    resamples: int = 2
    min_drafts: int = 1
    filtered: FilteredPolicy = "resample"
    unfinished: UnfinishedPolicy | Literal["keep"] = "resample"


def verdict(
    completion: Completion, policy: Policy, left: int, stops: Sequence[str] = ()
) -> tuple[str | None, str]:
    """Return what is wrong with a draft, if anything is, and its fate by the policy.

    Args:
        completion: The draft.
        policy: For unusable drafts.
        left: How often it may be resampled yet; in vain, it is dropped, but kept if cut off.
        stops: What it was to end before. A server ends a thought as well where one stands in it.

    Returns:
        The event to record, and `keep`, `resample`, `drop` or `reject`.
    """
    blank = not completion.text.strip()
    fate: str
    stopped = stops and left and completion.stopped is not False
    if blank and completion.instead is not None and completion.thought and stopped:
        problem, fate = "stopped", "resample"
    elif blank and completion.instead is not None and not completion.cut_off:
        problem, fate = "unanswered", "reject" if policy.empty == "reject" else "drop"
    elif blank and completion.cut_off and (completion.thought or not completion.text):
        problem, fate = "unfinished", policy.unfinished
    elif completion.filtered and not (blank and policy.filtered == "keep"):
        problem, fate = "filtered", policy.filtered
    elif blank:
        problem, fate = "empty", policy.empty
    elif completion.cut_off:
        problem, fate = "truncated", policy.truncated
    else:
        return None, "keep"
    if fate == "resample" and not left:
        fate = "keep" if problem == "truncated" else "drop"
    return problem, fate


def budget_after(problem: str, budget: Sampling, most_tokens: int) -> Sampling:
    """Return how a draft is sampled anew."""
    if problem == "unfinished":
        return replace(budget, max_tokens=min(2 * budget.max_tokens, most_tokens))
    return replace(budget, stop=()) if problem == "stopped" else budget
