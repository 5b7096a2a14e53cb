"""The task of examples/reproduce: rows are right, and no target is one of its drafts."""

import itertools
import random
import re

import pytest
from sums import SPLITS, Sums, draft, make_sets, make_splits, numbers_of, query, target, worked

SIZES = dict.fromkeys(SPLITS, 50)
TASK = Sums()


def totals(text):
    """The running totals of an answer, each added up anew; and whether all are right."""
    first, *rest = re.split(r"\+", text)
    total, right = int(first), True
    for part in rest:
        number, told = map(int, part.split("="))
        right &= told == total + number
        total = told
    return total, right


def order(text):
    """The numbers of an answer, as it adds them."""
    return [int(part.split("=")[0]) for part in text.split("+")]


def drafted(splits, text):
    """The rows of `more` as `aft sample` leaves them, each with five drafts."""
    return [{"id": row["id"], "proposals": [text(row)] * 5} for row in splits["more"]]


def test_an_answer_is_its_running_totals():
    assert worked([38, 29, 47]) == "38+29=67+47=114"
    assert worked([38, 29, 47], slip=(1, 10)) == "38+29=77+47=124"
    assert worked([38, 29, 47], slip=(2, -1)) == "38+29=67+47=113"


@pytest.mark.parametrize("task", [TASK, Sums(count=8, digits=4)])
def test_every_question_has_its_right_answer_in_an_order_of_its_own(task):
    splits = make_splits(task, SIZES, 1)
    orders = set()
    for split, rows in splits.items():
        assert len({row["id"] for row in rows}) == len(rows) == SIZES[split]
        for row in rows:
            numbers = numbers_of(row["query"])
            assert row["query"] == query(numbers)
            assert len(set(numbers)) == len(numbers) == task.count
            assert {len(str(number)) for number in numbers} == {task.digits}
            if split in ("gate", "test"):
                assert (row["answer"], "reference" in row) == (str(sum(numbers)), False)
                continue
            assert totals(row["reference"]) == (sum(numbers), True)
            assert sorted(order(row["reference"])) == sorted(numbers)
            orders.add(tuple(map(numbers.index, order(row["reference"]))))
    assert len(orders) > 40


def test_no_sum_is_asked_twice_not_even_in_another_order_or_split():
    # 10 numbers of one digit, four of them: 210 sums in all
    tiny = Sums(count=4, digits=1)
    splits = make_splits(tiny, dict.fromkeys(SPLITS, 31), 1)
    asked = [tuple(sorted(numbers_of(row["query"]))) for rows in splits.values() for row in rows]
    assert len(set(asked)) == len(asked) == 124


def test_rows_follow_from_the_seed():
    assert make_splits(TASK, SIZES, 1) == make_splits(TASK, SIZES, 1) != make_splits(TASK, SIZES, 2)


def test_a_slip_is_in_one_place_and_the_share_of_slips_is_kept():
    draw = random.Random(0)
    wrong = 0
    for _ in range(2000):
        numbers = TASK.draw(draw)
        text = draft(numbers, draw, 0.3)
        assert sorted(order(text)) == sorted(numbers)
        total, right = totals(text)
        assert (total == sum(numbers)) == right
        wrong += not right
    assert 0.27 < wrong / 2000 < 0.33


def test_a_target_is_in_the_questions_order_or_in_one_that_no_draft_has():
    numbers = [38, 29, 47, 61]
    every = [worked(one) for one in itertools.permutations(numbers)]
    draw = random.Random(0)
    assert target(numbers, [], draw) == target(numbers, every[1:], draw) == worked(numbers)
    for left in range(len(every)):  # the one order that is left
        others = every[:left] + every[left + 1 :]
        assert target(numbers, others, draw) == every[left]


def test_in_no_training_set_is_a_target_one_of_its_drafts():
    splits = make_splits(TASK, SIZES, 1)

    def copies(row):  # drafts that are the very answer one would write, with a line break
        return worked(numbers_of(row["query"])) + "\n"

    sets = make_sets(TASK, splits["more"], drafted(splits, copies), 5, 1)
    assert set(sets) == {"aft_on", "aft_off", "pseudo", "without_proposals"}
    for rows in sets.values():
        assert [row["query"] for row in rows] == [row["query"] for row in splits["more"]]
        for row in rows:
            assert len(row["proposals"]) == 5
            assert row["aggregation"] not in [text.strip() for text in row["proposals"]]
            assert totals(row["aggregation"]) == (sum(numbers_of(row["query"])), True)


def test_on_policy_drafts_are_the_models_and_pseudo_targets_are_not_made_from_the_drafts_beside():
    splits = make_splits(TASK, SIZES, 1)
    rows = drafted(splits, lambda row: f"draft of {row['id']}")
    sets = make_sets(TASK, splits["more"], rows, 3, 1)
    assert [row["proposals"] for row in sets["aft_on"]] == [row["proposals"][:3] for row in rows]
    assert sets["without_proposals"] == sets["aft_on"]
    for on, pseudo in zip(sets["aft_on"], sets["pseudo"], strict=True):
        assert on | {"proposals": None} == pseudo | {"proposals": None}
        assert on["proposals"] != pseudo["proposals"]
    assert sorted(row["proposals"][0] for row in sets["pseudo"]) == sorted(
        row["proposals"][0] for row in sets["aft_on"]
    )
    off = [text for row in sets["aft_off"] for text in row["proposals"]]
    wrong = sum(not totals(text)[1] for text in off)
    assert 0 < wrong < len(off) / 2


def test_too_few_numbers_have_too_few_orders():
    with pytest.raises(ValueError, match="count: expected 4 or more"):
        Sums(count=3)
