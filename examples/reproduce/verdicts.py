"""What is decided from answers that are right or wrong: the two gates, and whether a claim held.

Pure. Errors are standard errors; a difference is paired, question by question, so that what makes
a question hard for both sides is no part of its error.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

ERRORS = 2  # standard errors that chance is given
TRAINED = 0.95  # what a trained model is to reach where three of five drafts are right
MAJORITY = 3


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its standard error, None where one value has none."""

    value: float
    error: float | None
    n: int

    def __str__(self) -> str:
        error = "unknown" if self.error is None else f"{self.error:.3f}"
        return f"{self.value:.3f} (se {error}, n {self.n:,})"


@dataclass(frozen=True, slots=True)
class Gate:
    """Whether what comes next makes sense, and why."""

    passed: bool
    text: str


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of values, of which there is one at least."""
    n = len(values)
    error = statistics.stdev(values) / math.sqrt(n) if n > 1 else None
    return Estimate(statistics.fmean(values), error, n)


def paired(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """Return how much better a is than b, on the same questions."""
    return estimate([x - y for x, y in zip(a, b, strict=True)])


def vote_gate(greedy: Sequence[float], vote: Sequence[float], margin: float) -> Gate:
    """Decide whether drafts know more together than one answer does.

    Args:
        greedy: Whether the greedy answer to each question is right.
        vote: Whether the vote of five drafts is.
        margin: What the vote is to be better by, beyond two standard errors.
    """
    found = paired(vote, greedy)
    passed = found.error is not None and found.value - ERRORS * found.error >= margin
    text = (
        f"vote of 5 {statistics.fmean(vote):.3f}, greedy {statistics.fmean(greedy):.3f}: better by "
        f"{found}; wanted is {margin:.3f} beyond {ERRORS} standard errors"
    )
    if not passed:
        text += (
            ". The vote does not beat greedy by a clear margin: there is nothing to aggregate, and "
            "nothing of the claim can be tested on this task with this model"
        )
    return Gate(passed, text)


def training_gate(drafts: Sequence[Sequence[bool]], final: Sequence[bool]) -> Gate:
    """Decide whether a training has taught to aggregate at all.

    Args:
        drafts: For each question which of its drafts are right.
        final: Whether the aggregation is.
    """
    told = [float(right) for own, right in zip(drafts, final, strict=True) if sum(own) == MAJORITY]
    case = f"with {MAJORITY} of {len(drafts[0]) if drafts else 5} drafts right"
    if not told:
        return Gate(False, f"there is no question {case}: nothing tells whether training worked")
    found = estimate(told)
    passed = found.value > TRAINED
    text = f"{case} the aggregation is right in {found}; wanted is more than {TRAINED}"
    if not passed:
        text += (
            ". The model has not learned to aggregate: what its aggregations are worth says "
            "nothing of the claim; train longer, on more rows or at another learning rate"
        )
    return Gate(passed, text)


def over_seeds(seeds: Sequence[Estimate]) -> Estimate:
    """Return the mean over seeds, with the larger of two errors: over seeds, and over questions.

    Three seeds alone tell their own spread badly; questions alone know of one training only.
    """
    by_seed = estimate([one.value for one in seeds])
    known = [one.error for one in seeds if one.error is not None]
    errors = [] if by_seed.error is None else [by_seed.error]
    if len(known) == len(seeds):
        errors.append(math.sqrt(sum(error**2 for error in known)) / len(seeds))
    return Estimate(by_seed.value, max(errors, default=None), sum(one.n for one in seeds))


def held(seeds: Sequence[Estimate]) -> bool:
    """Decide whether a claim held: with every seed, and in the mean beyond two standard errors."""
    mean = over_seeds(seeds)
    beyond = mean.error is not None and mean.value - ERRORS * mean.error > 0
    return beyond and all(one.value > 0 for one in seeds)
