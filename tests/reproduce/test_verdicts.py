"""The gates of examples/reproduce and whether a claim held, on cases computed by hand."""

import math

import pytest
from verdicts import Estimate, estimate, held, over_seeds, paired, training_gate, vote_gate


def test_a_mean_has_its_standard_error():
    # 3 of 4 right: variance (3 x 1/16 + 9/16) / 3 = 1/4, over 4: 1/16
    assert estimate([1, 1, 1, 0]) == Estimate(0.75, 0.25, 4)
    assert estimate([1]) == Estimate(1, None, 1)


def test_a_difference_is_paired_by_question():
    # differences 1, 0, 0, 0: mean 1/4, variance 1/4
    assert paired([1, 1, 0, 0], [0, 1, 0, 0]) == Estimate(0.25, 0.25, 4)
    # what is equal on every question has no error, however the questions differ
    assert paired([1, 0, 1, 0], [1, 0, 1, 0]) == Estimate(0, 0, 4)
    with pytest.raises(ValueError):
        paired([1, 0], [1])


def answers(n, gained, lost=0):
    """Greedy and vote on n questions, of which the vote gains and loses some."""
    greedy = [0] * gained + [1] * (n - gained)
    vote = [1] * gained + [0] * lost + [1] * (n - gained - lost)
    return greedy, vote


@pytest.mark.parametrize(
    ("gained", "lost", "passed"),
    [
        # 100 of 1000 gained, 20 lost: .080, variance (.120 - .0064) x 1000 / 999, error .01066:
        # .080 - .0213 = .0587
        (100, 20, True),
        # .050, error .0083 (variance .070 - .0025): .050 - .0164 = .0336
        (60, 10, True),
        # .030, error .0070 (variance .050 - .0009): .030 - .0140 = .0160, below .020
        (40, 10, False),
        # .035, error .0065: .035 - .0130 = .0220
        (39, 4, True),
        (0, 0, False),
        (10, 100, False),
    ],
)
def test_a_vote_is_to_beat_greedy_by_a_margin_beyond_two_standard_errors(gained, lost, passed):
    greedy, vote = answers(1000, gained, lost)
    gate = vote_gate(greedy, vote, 0.02)
    assert gate.passed == passed
    assert ("there is nothing to aggregate" in gate.text) != passed
    assert f"better by {(gained - lost) / 1000:.3f} (se 0.0" in gate.text


def test_the_margin_of_the_gate_is_the_scales():
    greedy, vote = answers(1000, 100, 20)
    assert vote_gate(greedy, vote, 0.058).passed
    assert not vote_gate(greedy, vote, 0.059).passed


def test_a_few_questions_open_no_gate():
    assert not vote_gate([0], [1], 0.02).passed
    greedy, vote = answers(10, 1)  # .1, error .1
    assert not vote_gate(greedy, vote, 0.0).passed


THREE, FOUR, TWO = ([True] * right + [False] * (5 - right) for right in (3, 4, 2))


def test_training_is_judged_where_exactly_three_of_five_drafts_are_right():
    # 96 of 100; what comes of two or four right drafts does not count
    drafts = [THREE] * 100 + [FOUR] * 50 + [TWO] * 50
    passed = training_gate(drafts, [True] * 96 + [False] * 104)
    assert passed.passed
    assert "with 3 of 5 drafts right the aggregation is right in 0.960 (se 0.020, n 100)" in (
        passed.text
    )
    failed = training_gate(drafts, [True] * 95 + [False] * 5 + [True] * 100)
    assert not failed.passed  # .95 is not more than .95
    assert "has not learned to aggregate" in failed.text


def test_without_such_a_question_training_is_not_taken_to_have_worked():
    gate = training_gate([FOUR, TWO], [True, True])
    assert not gate.passed
    assert "no question with 3 of 5 drafts right" in gate.text
    assert not training_gate([], []).passed


def test_over_seeds_the_larger_of_two_errors_counts():
    # over seeds: stdev(.1, .2, .3) = .1, / sqrt(3) = .0577; over questions: sqrt(3 x .01^2) / 3
    spread = over_seeds([Estimate(value, 0.01, 1000) for value in (0.1, 0.2, 0.3)])
    assert spread.value == pytest.approx(0.2)
    assert spread.error == pytest.approx(0.1 / math.sqrt(3))
    # equal seeds: no spread; over questions sqrt(3) x .03 / 3
    equal = over_seeds([Estimate(0.2, 0.03, 1000)] * 3)
    assert equal.error == pytest.approx(0.03 / math.sqrt(3))
    assert equal.n == 3000
    assert over_seeds([Estimate(0.2, 0.03, 10)]) == Estimate(0.2, 0.03, 10)
    assert over_seeds([Estimate(0.2, None, 1)]).error is None


@pytest.mark.parametrize(
    ("values", "error", "expected"),
    [
        ((0.05, 0.06, 0.07), 0.01, True),
        ((0.05, 0.06, -0.01), 0.001, False),  # not with every seed
        ((0.01, 0.01, 0.01), 0.009, False),  # .0100 - 2 x .0052 < 0
        ((0.011, 0.011, 0.011), 0.009, True),
        ((0.01, 0.02, 0.12), 0.001, False),  # the seeds differ too much: .05, error .035
        ((0.0, 0.0, 0.0), 0.0, False),
        ((0.1, 0.1, 0.1, 0.1, 0.1), 0.001, True),
        ((0.1, 0.1, 0.1, 0.1, -0.01), 0.001, False),  # .078, error .022, but not with every seed
    ],
)
def test_a_claim_holds_with_every_seed_and_beyond_two_standard_errors(values, error, expected):
    assert held([Estimate(value, error, 1000) for value in values]) == expected


def test_a_claim_whose_error_nobody_knows_does_not_hold():
    assert not held([Estimate(0.5, None, 1)])
