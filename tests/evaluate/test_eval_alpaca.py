"""`aft eval alpaca_eval`: alpaca-eval's own code, a judge at a local server, nothing paid twice."""

import csv
import gzip
import hashlib
import importlib.util
import json
import math
from pathlib import Path

import pytest
from evaluate_tools import answering, evaluate, judging, metrics
from shared_data import WHOLE

from aft_factory.evaluate import alpaca
from aft_factory.evaluate.__main__ import main
from aft_factory.evaluate.telling import verdicts_in

pytest.importorskip("alpaca_eval", reason='not installed: pip install "aft-factory[eval]"')

LEADERBOARD = WHOLE / "alpaca_eval_leaderboard.csv"
ANNOTATIONS = WHOLE / "alpaca_eval_annotations.vicuna-7b-v1.3.jsonl.gz"


def reference(folder, count=4):
    rows = [
        {
            "dataset": "own",
            "instruction": f"Tell me of number {number}.",
            "output": "It is a number.",
            "generator": "baseline",
        }
        for number in range(count)
    ]
    path = folder / "reference.json"
    path.write_text(json.dumps(rows))
    return ["--reference", str(path)]


def prefers(share):
    """A judge that gives the second of two texts this share of its probability."""

    def reply(body):
        tops = [
            {"token": "M", "logprob": math.log(share)},
            {"token": "m", "logprob": math.log(1 - share)},
        ]
        tops = [top | {"bytes": None} for top in tops]
        return {"content": "M", "logprobs": {"content": [tops[0] | {"top_logprobs": tops}]}}

    return reply


def test_answers_are_judged_and_counted_by_alpaca_evals_own_code(
    tmp_path, monkeypatch, capsys, caplog
):
    answering(monkeypatch, lambda request: "Numbers are many.")
    monkeypatch.setenv("MY_KEY", "a-secret-key")
    with judging(prefers(0.5)) as (url, asked):
        code, results = evaluate(
            *(tmp_path, "alpaca_eval", *reference(tmp_path), "--judge-url", url),
            *("--judge", "the-judge", "--layers", "1", "--judge-key-env", "MY_KEY"),
        )
    assert code == 0
    # the key goes to the judge, and into no file
    assert asked.keys_seen == {"Bearer a-secret-key"}
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in files if b"a-secret-key" in path.read_bytes()]
    assert metrics(results)["alpaca_eval"]["win_rate"] == pytest.approx(50)
    [one] = results["benchmarks"]
    assert (one["of"], one["metrics"][0]["n"]) == (805, 4)
    assert one["judge"] == "the-judge"
    assert one["length_controlled"] is False
    assert "length_controlled_winrate" not in metrics(results)["alpaca_eval"]
    # one to see that it can judge, and one for each pair
    assert len(asked) == 5
    assert {body["model"] for body in asked} == {"the-judge"}
    assert all(body["logprobs"] and body["top_logprobs"] == 5 for body in asked)
    assert "no length-controlled win rate: it is of all 805 instructions" in caplog.text
    assert "4 of 805" in capsys.readouterr().out
    outputs = json.loads((tmp_path / "out/alpaca_eval/seed42/model_outputs.json").read_text())
    assert outputs[0]["output"] == "Numbers are many."
    # the share by which each was preferred, as a report shows it
    kept = verdicts_in(tmp_path / "out/alpaca_eval/seed42", "alpaca_eval")
    assert list(kept) == [row["instruction"] for row in outputs]
    for [(turn, what, share)] in kept.values():
        assert (turn, what, share) == (0, "preferred", pytest.approx(0.5, abs=1e-6))


def test_no_judgment_is_paid_twice(tmp_path, monkeypatch):
    answering(monkeypatch, lambda request: "Numbers are many.")
    arguments = ("alpaca_eval", *reference(tmp_path), "--judge", "the-judge", "--retries", "0")

    def fails_at_the_fourth(body):
        return None if len(asked) == 4 else prefers(0.5)(body)

    with judging(fails_at_the_fourth) as (url, asked):
        output = ["--judge-url", url, "--scripted", "--quiet", "--output", str(tmp_path / "out")]
        assert main([*arguments, *output]) == 2
        assert not (tmp_path / "out" / "results.json").exists()
        assert evaluate(tmp_path, *arguments, "--judge-url", url)[0] == 0
        texts = [json.dumps(body, sort_keys=True) for body in asked if body]
        assert len(texts) == 6  # one failed
        assert len(set(texts)) == 5
        # and not even where alpaca-eval has forgotten its own verdicts
        (tmp_path / "out/alpaca_eval/judge/annotations_seed0_configs.json").unlink()
        evaluate(tmp_path, *arguments, "--judge-url", url, "--overwrite")
        assert len(asked) == 6


def test_a_verdict_that_is_none_is_told_and_asked_for_anew(tmp_path, monkeypatch, capsys):
    answering(monkeypatch, lambda request: "Numbers are many.")

    def neither(body):
        if "number 2" not in json.dumps(body["messages"]):
            return prefers(0.5)(body)
        tops = [{"token": "Both", "logprob": -0.1, "bytes": None}]
        return {"content": "Both", "logprobs": {"content": [tops[0] | {"top_logprobs": tops}]}}

    arguments = ("alpaca_eval", *reference(tmp_path), "--judge", "the-judge", "--overwrite")
    with judging(neither) as (url, asked):
        code, results = evaluate(tmp_path, *arguments, "--judge-url", url)
        assert code == 1
        assert len(asked) == 5
    assert results["benchmarks"][0]["unjudged"] == [1]
    assert "3 of 805, 1 without a judgment" in (told := capsys.readouterr().out)
    assert "1 judgments are missing; with --overwrite the same command" in told
    # Verdicts that are half written, as of a process that was killed, are no obstacle.
    (tmp_path / "out/alpaca_eval/judge/annotations_seed0_configs.json").write_text('[{"instr')
    with judging(prefers(0.5)) as (moved, again):
        code, results = evaluate(tmp_path, *arguments, "--judge-url", moved)
        assert code == 0
        assert len(again) == 2  # whether it can judge there, and what it has not judged yet
    assert results["benchmarks"][0]["unjudged"] == [0]


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (lambda body: {"content": "M"}, "tells no log-probabilities"),
        (lambda body: None, "the judge nobody at http"),
    ],
    ids=["without log-probabilities", "refusing"],
)
def test_a_judge_that_cannot_judge_is_found_out_first(tmp_path, monkeypatch, capsys, reply, told):
    requests = answering(monkeypatch, lambda request: "Numbers are many.")
    with judging(reply) as (url, asked):
        arguments = ["alpaca_eval", *reference(tmp_path), "--judge-url", url, "--judge", "nobody"]
        output = ["--scripted", "--retries", "0", "--output", str(tmp_path / "out")]
        assert main([*arguments, *output]) == 2
    assert told in capsys.readouterr().err
    assert len(asked) == 1
    assert not requests


def test_a_dry_run_tells_the_judges_requests_and_asks_for_none(tmp_path, capsys):
    with judging(prefers(0.5)) as (url, asked):
        arguments = ["alpaca_eval", *reference(tmp_path), "--judge-url", url, "--judge", "j"]
        assert main([*arguments, "--repeats", "3", "--scripted", "--dry-run", "--quiet"]) == 0
    assert "alpaca_eval: 12 requests to the judge" in capsys.readouterr().out
    assert not asked


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--judge", "no_such_annotator"], "alpaca-eval has no annotator 'no_such_annotator'"),
        (["--judge-url", "http://127.0.0.1:1/v1"], "judge: name the model at --judge-url"),
        (["--judge", "claude"], "is not asked by OpenAI's protocol"),
    ],
)
def test_judges_that_cannot_be_meant_are_refused(tmp_path, capsys, arguments, told):
    output = ["--scripted", "--output", str(tmp_path / "out")]
    assert main(["alpaca_eval", *reference(tmp_path), *arguments, *output]) == 2
    assert told in capsys.readouterr().err


def test_instructions_without_a_reference_are_refused(tmp_path, capsys):
    other = tmp_path / "other.json"
    other.write_text(json.dumps([{"instruction": "Something else."}]))
    arguments = ["--data", f"alpaca_eval={other}", "--scripted", "--output", str(tmp_path / "out")]
    assert main(["alpaca_eval", *reference(tmp_path), *arguments]) == 2
    assert "5 instructions have no answer" in capsys.readouterr().err


def official():
    if not ANNOTATIONS.exists():
        pytest.skip("AlpacaEval's official annotations (shared/data) are not beside this checkout")
    with gzip.open(ANNOTATIONS, "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    with LEADERBOARD.open(newline="") as stream:
        [row] = [row for row in csv.DictReader(stream) if row["name"] == "vicuna-7b-v1.3"]
    return rows, row


def as_judged(folder, rows):
    """Texts of the official lengths, and the official verdicts where alpaca-eval keeps them."""
    of_model = {row["instruction"]: "b" * row["len_2"] for row in rows}
    verdicts, reference = [], []
    for row in rows:
        text = {"instruction": row["instruction"], "dataset": row["dataset"]}
        reference.append(text | {"output": "a" * row["len_1"], "generator": row["generator_1"]})
        pair = {"output_1": "a" * row["len_1"], "output_2": of_model[row["instruction"]]}
        verdicts.append(
            {"instruction": row["instruction"], **pair, "annotator": alpaca.OFFICIAL}
            | {"preference": row["preference"]}
        )
    judge = folder / "out" / "alpaca_eval" / "judge"
    judge.mkdir(parents=True)
    (judge / "annotations_seed0_configs.json").write_text(json.dumps(verdicts))
    (folder / "reference.json").write_text(json.dumps(reference))
    return of_model, ["--reference", str(folder / "reference.json"), "--layers", "0"]


def test_official_verdicts_give_the_official_win_rate_in_every_digit(tmp_path, monkeypatch):
    rows, row = official()
    of_model, arguments = as_judged(tmp_path, rows)
    answering(monkeypatch, lambda request: of_model[request.prompt[-1]["content"]])
    with judging(prefers(0.5)) as (url, asked):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        code, results = evaluate(tmp_path, "alpaca_eval", *arguments)
    assert code == 0
    assert len(asked) == 1  # whether it can judge
    [one] = results["benchmarks"]
    found = {metric["metric"]: metric for metric in one["metrics"]}
    assert found["win_rate"]["value"] == float(row["win_rate"])
    assert found["win_rate"]["error"] == float(row["standard_error"])
    assert found["discrete_win_rate"]["value"] == float(row["discrete_win_rate"])
    assert found["avg_length"]["value"] == float(row["avg_length"])
    assert found["win_rate"]["n"] == one["of"] == 805


def test_the_length_controlled_rate_is_alpaca_evals_and_leaves_its_package_alone(
    tmp_path, monkeypatch
):
    """With made-up difficulties, whose rate is no number to report: that it is computed at all."""
    rows, _ = official()
    of_model, arguments = as_judged(tmp_path, rows)
    answering(monkeypatch, lambda request: of_model[request.prompt[-1]["content"]])
    gamed = tmp_path / "df_gamed.csv"
    names = ("model", "index", "preference", "std_delta_len", "instruction_difficulty")
    lines = [",".join([*names, "not_gamed_baseline"])]
    for model in ("concise", "verbose"):
        lines += [
            f"{model},{i},{0.4 + i % 3 / 10},{(i % 7 - 3) / 3},{i % 5 / 5},False"
            for i in range(805)
        ]
    gamed.write_text("\n".join(lines))
    with judging(prefers(0.5)) as (url, _):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        output = ["--scripted", "--output", str(tmp_path / "out"), "--lc-data", str(gamed)]
        assert main(["alpaca_eval", *arguments, *output]) == 2  # not the real file
        digest = hashlib.sha256(gamed.read_bytes()).hexdigest()
        monkeypatch.setattr(alpaca, "GAMED", (digest, ""))
        package = Path(importlib.util.find_spec("alpaca_eval").origin).parent
        before = sorted(package.rglob("*.csv"))
        _, results = evaluate(tmp_path, "alpaca_eval", *arguments, "--lc-data", str(gamed))
        assert sorted(package.rglob("*.csv")) == before
    found = metrics(results)["alpaca_eval"]
    assert 0 < found["length_controlled_winrate"] < 100
    assert results["benchmarks"][0]["length_controlled"] is True
