"""What the drafts of a layer are worth: right, voted right, agreed, one right among K. Pure.

Of a query whose right answer is known, draft by draft (`grading` tells which answer each has):

    drafts right    the share of the layer's drafts that have it, mean over queries
    vote right      the share of queries whose commonest answer is it (`answers.majority`)
    pass@K          the share of queries with at least one draft that has it
    agreement       the share of drafts with the commonest answer, mean over queries with some
                    answer and several drafts
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aft_factory.inference.answers import majority


@dataclass(slots=True)
class Layer:
    """What the drafts of one layer add up to, over queries."""

    queries: int = 0
    drafts: int = 0
    graded: int = 0
    right: float = 0.0
    voted: int = 0
    passed: int = 0
    voting: int = 0
    agreed: float = 0.0

    def add(self, told: Sequence[str | None], target: str | None) -> None:
        """Count a query.

        Args:
            told: The answer of each draft; None where it has none.
            target: The right one; None where it is not known.
        """
        self.queries += 1
        self.drafts += len(told)
        share = agreement(told)
        if share is not None and len(told) > 1:
            self.voting += 1
            self.agreed += share
        if target is not None and told:
            self.graded += 1
            self.right += told.count(target) / len(told)
            self.voted += voted(told) == target
            self.passed += target in told

    def row(self) -> dict[str, float | int | None]:
        """Return it as shares; None is unknown."""
        graded, voting = self.graded or None, self.voting or None
        return {
            "queries": self.queries,
            "drafts": self.drafts,
            "graded": self.graded,
            "right": graded and self.right / graded,
            "voted": graded and self.voted / graded,
            "passed": graded and self.passed / graded,
            "agreed": voting and self.agreed / voting,
        }


def voted(told: Sequence[str | None]) -> str | None:
    """Return the answer that most have."""
    winner = majority(told)
    return None if winner is None else told[winner]


def agreement(told: Sequence[str | None]) -> float | None:
    """Return the share of drafts that have the commonest answer; None where none has one."""
    votes = Counter(answer for answer in told if answer is not None)
    return max(votes.values()) / len(told) if votes else None


def flags_of(query: Mapping[str, Any]) -> list[str]:
    """Return what a list can be narrowed to, from what `describing.described` says of a query.

    `fixed` and `broke` compare the answer with the vote of the first layer's drafts, of a query
    that has layers between and an answer.
    """
    layers, right = query["layers"], query["right"]
    drafts = [draft for layer in layers for draft in layer["drafts"] if not draft.get("lost")]
    events = " ".join(event["event"] for event in query["events"])
    before = query["voted"]
    agree = {draft.get("told") or draft["text"].strip() for draft in drafts}
    found = {
        "right": right is True,
        "wrong": right is False,
        "fixed": right is True and before is False,
        "broke": right is False and before is True and query["problem"] is None,
        "agree": len(drafts) > 1 and len(agree) == 1,
        "cut": any(draft["cut"] for draft in drafts),
        "resampled": "resampled" in events or any(draft.get("tries") for draft in drafts),
        "shortened": "shortened" in events,
        "rejected": query["problem"] is not None,
        "unfinished": not query["done"],
    }
    return [name for name, is_so in found.items() if is_so]
