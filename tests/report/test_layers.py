"""Numbers by layer against such as are computed by hand. Run: pytest tests/report/test_layers.py"""

import pytest

from aft_factory.report.grading import reference_number
from aft_factory.report.layers import Layer, agreement, flags_of, voted


def test_a_layer_adds_up_to_what_is_computed_by_hand():
    layer = Layer()
    layer.add(["5", "5", "7", None], "5")  # 2 of 4 right; the vote is 5; one of them is right
    layer.add(["1", "2", "2", "3"], "3")  # 1 of 4; the vote is 2
    layer.add([None, None], "4")  # 0 of 2; nobody votes
    layer.add(["8", "9"], None)  # no reference: only the agreement counts
    layer.add(["6", "7", "7", "6", "7"], "7")  # 3 of 5; the vote is 7, the first draft is wrong
    row = layer.row()
    assert (row["queries"], row["drafts"], row["graded"]) == (5, 17, 4)
    assert row["right"] == pytest.approx((0.5 + 0.25 + 0 + 0.6) / 4)
    assert row["voted"] == pytest.approx(2 / 4)
    assert row["passed"] == pytest.approx(3 / 4)
    assert row["agreed"] == pytest.approx((2 / 4 + 2 / 4 + 1 / 2 + 3 / 5) / 4)


def test_without_references_nothing_is_right_or_wrong():
    layer = Layer()
    layer.add([None, None], None)
    row = layer.row()
    assert [row[name] for name in ("right", "voted", "passed", "agreed")] == [None] * 4


def test_one_draft_agrees_with_nobody():
    layer = Layer()
    layer.add(["5"], "5")
    assert (layer.row()["agreed"], layer.row()["right"]) == (None, 1.0)


def test_ties_go_to_the_number_met_first_as_in_a_vote():
    assert voted(["2", "1", "1", "2"]) == "2"
    assert voted([None]) is None
    assert agreement(["2", "1", "1", None]) == 0.5


@pytest.mark.parametrize(
    ("reference", "number"),
    [
        ("#### 72", "72"),
        ("so \\boxed{1,234} it is, in 3 steps", "1234"),
        ("First 5 + 6 = 11.\nThen 11 x 5 = 55.\nA: 55", "55"),
        ("72", "72"),
        ("Paris", None),
        ("In 1969 people landed on the moon, and in 1972 they left it.", None),
        ("   ", None),
        (None, None),
    ],
)
def test_a_reference_is_a_number_only_where_it_says_so(reference, number):
    assert reference_number(reference) == number


def query(**changes):
    drafts = [
        {"text": "a 5", "told": "5", "cut": False},
        {"text": "b 5", "told": "5", "cut": False},
    ]
    usual = {"layers": [{"drafts": drafts}], "events": [], "right": None, "voted": None}
    return {**usual, "problem": None, "done": True, **changes}


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({}, ["agree"]),
        ({"right": True, "voted": False}, ["right", "fixed", "agree"]),
        ({"right": False, "voted": True}, ["wrong", "broke", "agree"]),
        ({"right": False, "voted": True, "problem": "refused"}, ["wrong", "agree", "rejected"]),
        ({"right": True, "voted": True}, ["right", "agree"]),
        ({"right": False, "voted": None}, ["wrong", "agree"]),
        ({"right": True, "voted": None}, ["right", "agree"]),
        ({"events": [{"event": "2 drafts shortened"}]}, ["agree", "shortened"]),
        ({"problem": "empty", "layers": []}, ["rejected"]),
        ({"done": False, "layers": []}, ["unfinished"]),
        (
            {"layers": [{"drafts": [{"text": "a", "cut": True, "tries": [{}]}]}]},
            ["cut", "resampled"],
        ),
    ],
)
def test_what_a_list_is_narrowed_to(changes, flags):
    assert flags_of(query(**changes)) == flags


def test_drafts_of_other_texts_or_numbers_do_not_agree():
    two = [{"text": "one", "cut": False}, {"text": "two", "cut": False}]
    assert flags_of(query(layers=[{"drafts": two}])) == []
    assert flags_of(query(layers=[{"drafts": [two[0]]}, {"drafts": [two[0]]}])) == ["agree"]
    dropped = {"text": "of no use", "cut": False, "lost": True}
    assert flags_of(query(layers=[{"drafts": [two[0], two[0], dropped]}])) == ["agree"]
