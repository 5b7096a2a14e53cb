"""`aft eval mt_bench`: FastChat's own judging in its own environment, by a judge at a local server."""

import json
import shutil

import pytest
from conftest import ROOT
from evaluate_tools import answering, evaluate, judging
from shared_data import WHOLE

from aft_factory.evaluate.__main__ import main
from aft_factory.evaluate.mt_bench import JUDGE, MODEL, TURNS, _scores

PYTHON = ROOT / ".venv-fastchat" / "bin" / "python"
needs_fastchat = pytest.mark.skipif(
    not PYTHON.exists(), reason="FastChat's environment is not there: make fastchat"
)


@pytest.fixture
def data(tmp_path):
    """FastChat's folder of data."""
    names = {
        "mt_bench_questions.jsonl": "mt_bench/question.jsonl",
        "mt_bench_reference.gpt-4.jsonl": "mt_bench/reference_answer/gpt-4.jsonl",
        "mt_bench_judge_prompts.jsonl": "judge_prompts.jsonl",
    }
    for name, place in names.items():
        if not (WHOLE / name).exists():
            pytest.skip("MT-Bench's files (shared/data) are not beside this checkout")
        path = tmp_path / "data" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(WHOLE / name, path)
    return f"mt_bench={tmp_path / 'data'}"


def rates(body):
    """6 for a first turn, 8 for a second one."""
    second = "second user question" in json.dumps(body)
    return {"content": f"It is fine. Rating: [[{8 if second else 6}]]"}


def will_not_rate_all(body):
    """No rating for the roleplay of question 91."""
    if "Elon Musk" in body["messages"][-1]["content"]:
        return {"content": "I would rather not rate this."}
    return rates(body)


@needs_fastchat
@pytest.mark.slow
def test_both_turns_are_judged_and_counted_by_fastchat(tmp_path, monkeypatch, data, capsys, caplog):
    requests = answering(monkeypatch, lambda request: "An answer.")
    arguments = ("mt_bench", "--data", data, "--harness-python", str(PYTHON), "--layers", "0")
    arguments += ("--judge", "my-judge", "--limit", "12")
    with judging(will_not_rate_all) as (url, asked):
        code, results = evaluate(tmp_path, *arguments, "--judge-url", url)
        assert code == 1
        assert len(asked) == 1 + 24  # whether it is there, and each turn
        assert {body["model"] for body in asked} == {"my-judge"}
    [one] = results["benchmarks"]
    found = {metric["metric"]: (metric["value"], metric["n"]) for metric in one["metrics"]}
    assert found == {"first turn": (6.0, 11), "second turn": (8.0, 11), "average": (7.0, 11)}
    assert one["categories"] == {"writing": [7.0], "roleplay": [7.0]}
    assert one["of"] == 80
    assert "11 of 80, 1 without a judgment" in capsys.readouterr().out
    # a conversation of two turns each, at the temperature of its category
    assert len(requests) == 24
    assert {request.sampling.temperature for request in requests} == {0.7}
    assert {request.sampling.max_tokens for request in requests} == {1024}
    # Wherever the judge is served, nothing is judged twice, but what it would not.
    with judging(lambda body: {"content": "[[85]]"}) as (moved, again):
        code, results = evaluate(tmp_path, *arguments, "--judge-url", moved, "--overwrite")
    assert code == 0
    assert len(again) == 1 + 2
    assert [metric["n"] for metric in results["benchmarks"][0]["metrics"]] == [12, 12, 12]
    # FastChat's average is its own; what cannot be of its scale is told.
    assert "2 ratings are not of 1 to 10" in caplog.text
    assert "question 91, turn " in caplog.text


def test_categories_stand_in_the_order_of_the_questions_whatever_is_judged_first(tmp_path):
    asked = [
        {"question_id": i, "category": name} for i, name in enumerate(["writing", "math", "stem"])
    ]
    path = tmp_path / "model_judgment" / f"{JUDGE}_single.jsonl"
    path.parent.mkdir()
    judged = [
        {"question_id": number, "turn": turn, "score": 5 + turn}
        for number, turn in ((1, 2), (0, 1), (1, 1), (0, 2))  # none of the third
    ]
    path.write_text("".join(f"{json.dumps(one)}\n" for one in judged))
    shown = "".join(f"## {title} ##\n{MODEL} 1 6.5\n" for title in TURNS.values())
    categories = {}
    _scores(shown, tmp_path, asked, categories)
    assert list(categories.items()) == [("writing", [6.5]), ("math", [6.5])]


@needs_fastchat
@pytest.mark.slow
def test_a_dead_judge_is_found_out_first(tmp_path, monkeypatch, data, capsys):
    requests = answering(monkeypatch, lambda request: "An answer.")
    arguments = ["mt_bench", "--data", data, "--harness-python", str(PYTHON), "--retries", "0"]
    judge = ["--judge-url", "http://127.0.0.1:1/v1", "--judge", "nobody"]
    output = ["--scripted", "--output", str(tmp_path / "out")]
    assert main([*arguments, *judge, *output]) == 2
    assert "the judge nobody at http://127.0.0.1:1/v1" in capsys.readouterr().err
    assert not requests


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "make fastchat"),
        (["--harness-python", "/nowhere/python"], "/nowhere/python: No such file"),
    ],
)
def test_an_environment_without_fastchat_is_told_how_to_be_made(
    tmp_path, data, capsys, arguments, told
):
    output = ["--scripted", "--output", str(tmp_path / "out")]
    assert main(["mt_bench", "--data", data, *arguments, *output]) == 2
    assert told in capsys.readouterr().err


def test_data_that_lack_a_file_are_refused_by_its_name(tmp_path, data, capsys):
    (tmp_path / "data" / "judge_prompts.jsonl").unlink()
    output = ["--scripted", "--output", str(tmp_path / "out")]
    assert main(["mt_bench", "--data", data, *output]) == 2
    assert "with judge_prompts.jsonl" in capsys.readouterr().err
