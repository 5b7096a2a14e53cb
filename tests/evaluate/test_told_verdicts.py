"""What harnesses have said of answers, read from what they leave. Run: pytest tests/evaluate/test_told_verdicts.py"""

import json

import pytest

from aft_factory.evaluate.telling import telling_of, verdicts_in


def test_judges_scores_are_those_of_each_turn_and_none_is_left_out(tmp_path):
    path = tmp_path / "model_judgment" / "gpt-4_single.jsonl"
    path.parent.mkdir()
    rows = [
        {"question_id": 81, "turn": 1, "score": 7},
        {"question_id": 81, "turn": 2, "score": -1},  # FastChat's word for none
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert verdicts_in(tmp_path, "mt_bench") == {"mt_bench/81": [(0, "judged", 7)]}


def test_checks_are_read_by_task_and_question_whatever_stands_in_the_texts(tmp_path):
    row = {"task": "ifeval", "doc_id": 3, "filter": "none", "resps": [["a\u2028b"]]}
    row |= {"metrics": ["prompt_level_strict_acc", "inst_level_strict_acc"]}
    row |= {"prompt_level_strict_acc": False, "inst_level_strict_acc": [True, False]}
    (tmp_path / "samples.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", "utf-8")
    found = verdicts_in(tmp_path, "ifeval")
    assert found == {"ifeval/ifeval/3": [(0, "prompt_level_strict_acc,none", 0.0)]}


def test_an_evaluation_that_has_not_ended_has_no_verdicts(tmp_path):
    assert [verdicts_in(tmp_path, name) for name in ("ifeval", "mt_bench", "alpaca_eval")] == [
        {},
        {},
        {},
    ]


@pytest.mark.slow  # loads lm-eval
def test_what_is_no_comparison_with_a_target_tells_no_answers():
    pytest.importorskip("lm_eval")
    assert telling_of("ifeval", "ifeval", ()) is None
    yes = telling_of("strategyqa", "aft_strategyqa", ())
    assert (yes.tell("So the answer is yes.", True), yes.tell("Yes.", True)) == ("yes", None)
    assert yes.same("Yes", "yes")
