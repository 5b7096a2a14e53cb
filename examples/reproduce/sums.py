"""The task: sums of several numbers by running totals, in an order that each answer picks anew.

    What is 38 + 29 + 47 + 61 + 12?    ->    61+38=99+12=111+47=158+29=187

Answers of other orders make their slips in other places, so that drafts of one question disagree
where they are wrong and agree where they are right: what aggregation, and a vote, can live on.
Pure; every row follows from the seed. In no row is the target one of its drafts, word by word.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
SPLITS = ("plain", "more", "gate", "test")
FEWEST = 4  # numbers: they have 24 orders, more than a row has drafts


@dataclass(frozen=True, slots=True)
class Sums:
    """How hard the sums are.

    Attributes:
        count: Numbers in a sum.
        digits: Of each number.
        slips: Of an off-policy draft: the share with a slip in it.
    """

    count: int = 5
    digits: int = 2
    slips: float = 0.3

    def __post_init__(self) -> None:
        if self.count < FEWEST:
            raise ValueError(f"count: expected {FEWEST} or more, for enough orders: {self.count}")

    def draw(self, random: random.Random) -> list[int]:
        """Draw the numbers of a sum, all different, so that each order is another text."""
        low = 10 ** (self.digits - 1)
        return random.sample(range(low, 10 * low), self.count)


def query(numbers: Sequence[int]) -> str:
    """Return the question."""
    return f"What is {' + '.join(map(str, numbers))}?"


def numbers_of(text: str) -> list[int]:
    """Return the numbers of a question."""
    return [int(word) for word in text.removeprefix("What is ").rstrip("?").split(" + ")]


def worked(order: Sequence[int], slip: tuple[int, int] = (0, 0)) -> str:
    """Write the running totals; a slip (n, by) is in the n-th of them, and so in those after."""
    total, text = order[0], str(order[0])
    for place, number in enumerate(order[1:], start=1):
        total += number + (slip[1] if place == slip[0] else 0)
        text += f"+{number}={total}"
    return text


def shuffled(numbers: Sequence[int], random: random.Random) -> list[int]:
    """Return the numbers in an order drawn at random."""
    return random.sample(list(numbers), len(numbers))


def draft(numbers: Sequence[int], random: random.Random, slips: float) -> str:
    """Write an off-policy draft: another writer's, who slips in one place now and then."""
    slip = (0, 0)
    if random.random() < slips:
        slip = (random.randrange(1, len(numbers)), random.choice((-10, -1, 1, 10)))
    return worked(shuffled(numbers, random), slip)


def target(numbers: Sequence[int], drafts: Sequence[str], random: random.Random) -> str:
    """Write what is to be learned: in the question's order, or else in one that no draft has.

    A target that is one of the drafts teaches to copy.
    """
    text = worked(numbers)
    while text in drafts:
        text = worked(shuffled(numbers, random))
    return text


def make_splits(task: Sums, sizes: dict[str, int], seed: int) -> dict[str, list[Row]]:
    """Make the questions of each split, no sum twice: for training with the answer to learn."""
    draw, seen = random.Random(f"sums {seed}"), set()
    splits: dict[str, list[Row]] = {}
    for split in SPLITS:
        rows: list[Row] = []
        while len(rows) < sizes[split]:
            numbers = task.draw(draw)
            if (key := tuple(sorted(numbers))) in seen:
                continue
            seen.add(key)
            row: Row = {"id": f"{split}-{len(rows)}", "query": query(numbers)}
            if split in ("gate", "test"):
                row["answer"] = str(sum(numbers))
            else:
                row["reference"] = worked(shuffled(numbers, draw))
            rows.append(row)
        splits[split] = rows
    return splits


def make_sets(
    task: Sums, questions: Sequence[Row], drafted: Sequence[Row], width: int, seed: int
) -> dict[str, list[Row]]:
    """Make the aggregation rows of each training set.

    Args:
        task: What the sums are.
        questions: The rows of the split `more`.
        drafted: The same, as `aft sample` left them: with drafts of the model's own.
        width: Drafts of a row.
        seed: Of what is drawn.

    Returns:
        By name: `aft_on`, the model's own drafts; `aft_off`, drafts of another writer; `pseudo`,
        the targets of `aft_on` beside drafts that they were not made from, another question's.
        `without_proposals` is `aft_on` without its drafts, which `aft convert` leaves out.
    """
    draw = random.Random(f"sets {seed}")
    asked = {row["id"]: row for row in questions}
    on = [aggregation(asked[row["id"]], row["proposals"][:width], draw) for row in drafted]
    off = [
        aggregation(
            row, [draft(numbers_of(row["query"]), draw, task.slips) for _ in range(width)], draw
        )
        for row in questions
    ]
    others = [*on[1:], *on[:1]]
    pseudo = [
        row | {"proposals": other["proposals"]} for row, other in zip(on, others, strict=True)
    ]
    return {"aft_on": on, "aft_off": off, "pseudo": pseudo, "without_proposals": on}


def aggregation(row: Row, drafts: Sequence[str], random: random.Random) -> Row:
    """Return a row to learn aggregation from."""
    # As they are compared when one is copied: without outer blanks, which a model may write.
    seen = [text.strip() for text in drafts]
    wanted = target(numbers_of(row["query"]), seen, random)
    kept = {"id": row["id"], "query": row["query"]}
    return kept | {"proposals": list(drafts), "aggregation": wanted}
