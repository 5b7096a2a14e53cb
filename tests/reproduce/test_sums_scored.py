"""What is read from the answers to the sums: lm-eval's scores, the gate on training, copies."""

import json

import pytest
from cells import HERE, Chain, read_scale
from evaluate_tools import answering, asked, evaluate, write_rows
from sums import SPLITS, Sums, make_splits, numbers_of, worked

pytest.importorskip("lm_eval", reason='lm-eval is not installed: pip install ".[eval]"')


@pytest.fixture
def chain(tmp_path):
    return Chain(read_scale(HERE / "smoke.yaml"), "base", tmp_path, 1)


def test_lm_eval_scores_the_last_number(tmp_path, monkeypatch, chain):
    rows = make_splits(Sums(), dict.fromkeys(SPLITS, 6), 1)["test"]
    order = [row["query"] for row in rows]
    shape = [  # of the answer to each question, and whether it is right
        (lambda text: text, 1),
        (lambda text: f"The sum is {text.rpartition('=')[2]}.\n", 1),
        (lambda text: text[:-1], 0),
        (lambda text: text.rpartition("=")[0], 0),
        (lambda text: f"{text}+1={sum(numbers_of(order[4])) + 1}", 0),
        (lambda text: "I do not know.", 0),
    ]

    def script(request):
        at = order.index(asked(request))
        return shape[at][0](worked(numbers_of(order[at])))

    answering(monkeypatch, script)
    words = ["--include", str(HERE / "tasks"), "--data"]
    words += [f"aft_sums={write_rows(tmp_path / 'test.jsonl', rows)}", "--layers", "0"]
    code, results = evaluate(tmp_path, "aft_sums", *words, "--seed", "1")
    assert code == 0
    [metric] = results["benchmarks"][0]["metrics"]
    assert metric["value"] == pytest.approx(2 / 6)
    place = chain.place("sft", "plain")
    place.parent.mkdir()
    (tmp_path / "out").rename(place)
    assert chain.right("sft", "plain") == [right for _, right in shape]


def answer(right, response, drafts=("1+2=3",) * 5):
    """A row of answers.jsonl; the right answer is 3, and so many of its drafts are right."""
    texts = [*drafts[:right], *["1+2=4"] * (5 - right)]
    layers = [
        {"layer": 0, "drafts": [{"text": text} for text in texts]},
        {"layer": 1, "drafts": [{"text": response}]},
    ]
    return {"id": "x", "answer": "3", "response": response, "layers": layers}


def test_the_gate_on_training_is_of_what_was_answered(chain):
    place = chain.place("aft_on", "aggregate", "gate")
    place.mkdir(parents=True)
    rows = [answer(3, "2+1=3")] * 97 + [answer(3, "1+2=4")] * 3 + [answer(2, "1+2=4")] * 100
    write_rows(place / "answers.jsonl", rows)
    gate = chain.training_gate("aft_on")
    assert gate.passed
    assert "right in 0.970 (se 0.017, n 100)" in gate.text
    # 103 of 200 are "1+2=4", which is a draft of each of these rows
    assert gate.text.endswith("; 52% of all are one draft, copied")
    write_rows(place / "answers.jsonl", rows[3:])
    assert chain.training_gate("aft_on").passed
    write_rows(place / "answers.jsonl", rows[50:])
    assert not chain.training_gate("aft_on").passed  # 47 of 50


def test_the_gate_on_votes_is_of_the_gates_questions(chain):
    for how, right in (("plain", 700), ("vote_5", 800)):
        where = chain.place("sft", how, "gate") / "aft_sums" / "seed1"
        where.mkdir(parents=True)
        rows = [{"doc_id": number, "exact_match": float(number < right)} for number in range(1000)]
        if how == "vote_5":  # they are paired by question, not by their places
            rows.reverse()
        (where / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    gate = chain.vote_gate()
    assert gate.passed
    assert "vote of 5 0.800, greedy 0.700: better by 0.100 (se 0.009, n 1,000)" in gate.text
