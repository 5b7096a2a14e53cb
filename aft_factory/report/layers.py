"""What the drafts of a layer are worth: right, voted right, agreed, one right among K. Pure.

Of a query whose reference is a number, draft by draft:

    drafts right    the share of the layer's drafts with that number, mean over queries
    vote right      the share of queries whose commonest number is it (`answers.majority`)
    pass@K          the share of queries with at least one draft that has it
    agreement       the share of drafts with the commonest number, mean over queries with some
                    number and several drafts
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aft_factory.inference.answers import extract_number, majority

SHORT = 4  # words: in a last line that is no more, a number need not be announced


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

    def add(self, numbers: Sequence[str | None], reference: str | None) -> None:
        """Count a query.

        Args:
            numbers: The final number of each draft; None where it has none.
            reference: The right one; None where it is not known.
        """
        self.queries += 1
        self.drafts += len(numbers)
        share = agreement(numbers)
        if share is not None and len(numbers) > 1:
            self.voting += 1
            self.agreed += share
        if reference is not None and numbers:
            self.graded += 1
            self.right += numbers.count(reference) / len(numbers)
            self.voted += voted(numbers) == reference
            self.passed += reference in numbers

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


def reference_number(reference: str | None) -> str | None:
    """Return the number that a reference announces, or that its last line is; None of a text."""
    if reference is None or not reference.strip():
        return None
    last = reference.strip().splitlines()[-1]
    announced = extract_number(reference, whole=False)
    short = len(last.split()) <= SHORT
    return extract_number(last) if announced is None and short else announced


def voted(numbers: Sequence[str | None]) -> str | None:
    """Return the number that most have."""
    winner = majority(numbers)
    return None if winner is None else numbers[winner]


def agreement(numbers: Sequence[str | None]) -> float | None:
    """Return the share of drafts that have the commonest number; None where none has one."""
    votes = Counter(number for number in numbers if number is not None)
    return max(votes.values()) / len(numbers) if votes else None


def flags_of(query: Mapping[str, Any]) -> list[str]:
    """Return what a list can be narrowed to, from what `describing.described` says of a query.

    `fixed` and `broke` compare the answer with the vote of the first layer's drafts, of a query
    that has layers between.
    """
    layers, right = query["layers"], query["right"]
    drafts = [draft for layer in layers for draft in layer["drafts"] if not draft.get("lost")]
    events = " ".join(event["event"] for event in query["events"])
    before = query["voted"]
    agree = {draft.get("number") or draft["text"].strip() for draft in drafts}
    found = {
        "right": right is True,
        "wrong": right is False,
        "fixed": right is True and before is False,
        "broke": right is False and before is True,
        "agree": len(drafts) > 1 and len(agree) == 1,
        "cut": any(draft["cut"] for draft in drafts),
        "resampled": "resampled" in events or any(draft.get("tries") for draft in drafts),
        "shortened": "shortened" in events,
        "rejected": query["problem"] is not None,
        "unfinished": not query["done"],
    }
    return [name for name, is_so in found.items() if is_so]
