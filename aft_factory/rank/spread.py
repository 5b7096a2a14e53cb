"""How the scores of a ranking spread: their range, and how often there was nothing to choose."""

from __future__ import annotations

from array import array
from collections.abc import Collection
from dataclasses import dataclass, field
from statistics import fmean, median

from aft_factory.records.record import Row
from aft_factory.stage.stage import Tally

HEADS = ("count", "lowest", "median", "mean", "highest")


@dataclass(slots=True)
class Spread(Tally):
    """Counts scores.

    Attributes:
        scores: By which they are: all, those of kept proposals, the best and the worst of each row.
        tied: Rows whose best score is that of two proposals or more.
        level: Of these, those whose scores are all equal.
        rows: Rows with two scores or more.
    """

    scores: dict[str, array[float]] = field(default_factory=dict)
    tied: int = 0
    level: int = 0
    rows: int = 0

    def add(self, scores: Collection[float], kept: Collection[float]) -> None:
        """Add the scores of a row."""
        if not scores:
            return
        best, worst = max(scores), min(scores)
        parts = {"all": scores, "kept": kept, "best": [best], "worst": [worst]}
        for name, values in parts.items():
            self.scores.setdefault(name, array("d")).extend(values)
        if len(scores) > 1:
            self.rows += 1
            self.tied += list(scores).count(best) > 1
            self.level += best == worst

    def _numbers(self) -> dict[str, dict[str, float]]:
        return {
            name: dict(
                zip(
                    HEADS,
                    (len(found), min(found), median(found), fmean(found), max(found)),
                    strict=True,
                )
            )
            for name, found in self.scores.items()
        }

    def summary(self) -> Row:
        """Return the numbers."""
        ties = {"rows": self.rows, "best_tied": self.tied, "all_equal": self.level}
        return {"scores": self._numbers(), "ties": ties}

    def describe(self) -> list[str]:
        """Return the numbers as a table, and the ties."""
        if not self.scores:
            return []
        lines = ["scores " + "".join(f"{head:>10}" for head in HEADS)]
        for name, numbers in self._numbers().items():
            lines.append(f"  {name:5}" + "".join(f"{numbers[head]:10.5g}" for head in HEADS))
        if self.rows:
            share = self.tied / self.rows
            lines.append(
                f"ties: the best score is that of several proposals in {self.tied} of {self.rows} "
                f"rows ({share:.1%}), and of all in {self.level}"
            )
        return lines
