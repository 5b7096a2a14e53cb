"""How often each value came up, and what that tells: quantiles, shares above a limit."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from itertools import accumulate

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


class Distribution:
    """How often each value came up."""

    def __init__(self) -> None:
        self.counts: Counter[float] = Counter()

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[value] += 1

    @property
    def total(self) -> int:
        """How many values there were."""
        return self.counts.total()

    def summary(self) -> dict[str, float]:
        """Return count, min, quantiles, max and mean; quantiles are values that came up."""
        total = self.total
        if not total:
            return {"count": 0}
        values = sorted(self.counts)
        ends = list(accumulate(self.counts[value] for value in values))
        quantiles = {
            f"p{round(100 * share)}": values[bisect_left(ends, math.ceil(share * total))]
            for share in QUANTILES
        }
        mean = math.fsum(value * count for value, count in self.counts.items()) / total
        extremes = {"max": values[-1], "mean": mean}
        return {"count": total, "min": values[0], **quantiles, **extremes}

    def over(self, limit: float) -> float:
        """Return the share of the values that are larger than the limit."""
        larger = sum(count for value, count in self.counts.items() if value > limit)
        return larger / max(self.total, 1)


class Lengths:
    """Distributions of the lengths of a record's parts and of whole training rows."""

    def __init__(self, *names: str) -> None:
        self.parts = {name: Distribution() for name in names}

    def summary(self) -> dict[str, dict[str, float]]:
        """Return the summary of each part."""
        return {name: part.summary() for name, part in self.parts.items()}
