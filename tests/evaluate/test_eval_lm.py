"""`aft eval` through lm-eval: what is asked, how it is scored, what is refused, how it resumes."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from evaluate_tools import (
    answering,
    arc_rows,
    evaluate,
    gsm8k_rows,
    metrics,
    mmlu_rows,
    write_rows,
)
from ifeval_tools import HAS_PUNKT, needs_punkt
from shared_data import RealData

from aft_factory.engines.engine import EngineError
from aft_factory.engines.scripted import ScriptedEngine
from aft_factory.evaluate import lm_harness
from aft_factory.evaluate.__main__ import main
from aft_factory.evaluate.benchmarks import BENCHMARKS
from aft_factory.evaluate.settings import EvalSettings

pytest.importorskip("lm_eval", reason='lm-eval is not installed: pip install "aft-factory[eval]"')


def number_of(request):
    return re.search(r"Problem (\d+)", json.dumps(request.prompt))[1]


def gsm8k(tmp_path, count):
    return f"gsm8k={write_rows(tmp_path / 'gsm8k.jsonl', gsm8k_rows(count))}"


@needs_punkt
def test_four_benchmarks_are_one_job_and_their_harness_scores_them(
    tmp_path, monkeypatch, real, capsys
):
    rows = real.rows("ifeval_input_data.jsonl")[:3]

    def script(request):
        text = json.dumps(request.prompt)
        if "Problem" in text:
            return f"I think it is {number_of(request)}."
        return "The best answer is B." if "best answer" in text else "word " * 400

    requests = answering(monkeypatch, script)
    code, results = evaluate(
        *(tmp_path, "gsm8k", "ifeval", "mmlu", "arc_c", "--data", gsm8k(tmp_path, 4)),
        *("--data", f"ifeval={write_rows(tmp_path / 'ifeval.jsonl', rows)}"),
        *("--data", f"mmlu={write_rows(tmp_path / 'mmlu.jsonl', mmlu_rows())}"),
        *("--data", f"arc_c={write_rows(tmp_path / 'arc.jsonl', arc_rows())}"),
    )
    assert code == 0
    values = metrics(results)
    assert values["gsm8k"] == {"exact_match,flexible-extract": 100}
    assert values["mmlu"] == {"exact_match,strict_match": pytest.approx(200 / 3)}
    assert values["arc_c"] == {"exact_match,best-answer": pytest.approx(200 / 3)}
    assert list(values["ifeval"]) == [
        *("prompt_level_strict_acc,none", "inst_level_strict_acc,none"),
        *("prompt_level_loose_acc,none", "inst_level_loose_acc,none"),
    ]
    strategies = {one["benchmark"]: one["options"]["layers"] for one in results["benchmarks"]}
    assert strategies == {"gsm8k": 1, "ifeval": 1, "mmlu": 0, "arc_c": 0}
    # 4 + 3 questions of five drafts and an aggregation, 3 + 3 of one answer
    assert len(requests) == 7 * 2 + 6
    assert [one["of"] for one in results["benchmarks"]] == [4, 3, 3, 3]
    text = capsys.readouterr().out
    assert "L=0" in text
    assert "propose_and_aggregate K=5 L=1" in text
    kept = json.loads((tmp_path / "out" / "gsm8k" / "seed42" / "lm_eval.json").read_text())
    assert kept["results"]["gsm8k_cot_zeroshot"]["exact_match,flexible-extract"] == 1.0


@pytest.mark.parametrize(
    ("benchmark", "row", "right", "wrong"),
    [
        (
            "strategyqa",
            {"question": "Do fish swim?", "answer": True},
            [
                "They do. So the answer is yes.",
                "The answer is: **Yes**",
                "answer is no. The answer is yes",
            ],
            ["Yes", "So the answer is no.", "The answer is yesterday", ""],
        ),
        (
            "arc_c",
            arc_rows()[1],  # its labels are digits, and asked for by letters
            ["The best answer is A.", "The best answer is **A**", "the best answer is: (A)"],
            ["A", "The best answer is B.", "The best answer is All of them", ""],
        ),
    ],
)
def test_what_our_own_task_files_take_for_an_answer(tmp_path, benchmark, row, right, wrong):
    data = {benchmark: write_rows(tmp_path / "rows.jsonl", [row] * len(right + wrong))}
    part = lm_harness.prepare(BENCHMARKS[benchmark], EvalSettings(data=data), tmp_path)
    part.score([[text] for text in right + wrong], tmp_path / "scored")
    lines = (tmp_path / "scored" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["exact_match"] for line in lines] == [1] * len(right) + [0] * len(
        wrong
    )


def test_the_tasks_decoding_is_the_final_layers_and_the_budget_ours(tmp_path, monkeypatch):
    requests = answering(monkeypatch, lambda request: "42")
    evaluate(tmp_path, "gsm8k", "--data", gsm8k(tmp_path, 1))
    drafts, final = requests
    assert (drafts.n, drafts.sampling.temperature, drafts.sampling.stop) == (5, 0.7, ())
    assert (final.n, final.sampling.temperature) == (1, 0.0)
    assert final.sampling.stop == ("Q:", "</s>", "<|im_end|>")
    assert final.sampling.max_tokens == drafts.sampling.max_tokens == 4096


@pytest.mark.parametrize(
    ("asked", "final"),
    [
        ({}, {"temperature": 0.0, "stop": []}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0, "stop": []}),
        ({"do_sample": True, "temperature": 0.7}, {"temperature": 0.7, "stop": []}),
        ({"do_sample": True, "top_p": 0.9, "top_k": 5}, {"top_p": 0.9, "top_k": 5, "stop": []}),
        ({"until": "Q:", "max_gen_toks": 256}, {"temperature": 0.0, "stop": ["Q:"]}),
    ],
)
def test_a_tasks_decoding_is_read_as_lm_eval_reads_it(asked, final):
    assert lm_harness.final_of("task", asked) == final


def test_results_say_how_the_final_layer_decoded(tmp_path, monkeypatch):
    answering(monkeypatch, lambda request: "The best answer is B.")
    data = f"arc_c={write_rows(tmp_path / 'arc.jsonl', arc_rows())}"
    _, results = evaluate(tmp_path, "arc_c", "--data", data, "--max-tokens", "77")
    final = results["benchmarks"][0]["final"]  # the task is greedy, whatever drafts are
    assert final == {"temperature": 0.0, "top_p": 0.95, "top_k": None, "max_tokens": 77}


def test_flags_go_before_the_paper_and_the_task(tmp_path, monkeypatch):
    requests = answering(monkeypatch, lambda request: "42")
    evaluate(
        *(tmp_path, "gsm8k", "--data", gsm8k(tmp_path, 1), "--layers", "0"),
        *("--final-temperature", "0.5", "--final-max-tokens", "99"),
    )
    [final] = requests
    assert final.sampling.temperature == 0.5
    assert final.sampling.max_tokens == 99


def test_a_missing_answer_is_wrong_and_told_beside_the_score(tmp_path, monkeypatch, capsys):
    def script(request):
        if number_of(request) == "1":
            return EngineError("this prompt is refused", "row")
        return number_of(request)

    answering(monkeypatch, script)
    code, results = evaluate(tmp_path, "gsm8k", "--data", gsm8k(tmp_path, 4))
    assert code == 1
    assert metrics(results) == {"gsm8k": {"exact_match,flexible-extract": 75}}
    assert results["benchmarks"][0]["missing"] == [1]
    assert "4, 1 without an answer" in capsys.readouterr().out


def test_repeats_have_a_seed_each_and_the_error_is_over_the_runs(tmp_path, monkeypatch):
    drawn = []

    def script(request):  # right in the first run only
        drawn.append(request.seed)
        return number_of(request) if len(drawn) <= 2 else "-1"

    answering(monkeypatch, script)
    _, results = evaluate(
        *(tmp_path, "gsm8k", "--data", gsm8k(tmp_path, 2), "--repeats", "3", "--layers", "0"),
        *("--seed", "7", "--in-flight", "1", "--admit", "1"),
    )
    [one] = results["benchmarks"]
    [metric] = one["metrics"]
    assert results["seeds"] == [7, 8, 9]
    assert metric["runs"] == [100, 0, 0]
    assert metric["value"] == pytest.approx(100 / 3)
    assert metric["error"] == pytest.approx(100 / 3)  # sd 57.7 / sqrt(3)
    assert metric["error_over"] == "runs"
    assert len(set(drawn)) == 6
    assert one["tokens"]["requests"] == 6


@needs_punkt
def test_a_scorer_that_draws_draws_the_same_again(tmp_path):
    """IFEval's own checker takes any letter for one that is none, and guesses languages."""
    row = {"prompt": "Use # often.", "instruction_id_list": ["keywords:letter_frequency"]}
    row |= {"kwargs": [{"let_relation": "at least", "letter": "#", "let_frequency": 1}]}
    rows = [row | {"key": number} for number in range(30)]
    other = {"prompt": "In English.", "instruction_id_list": ["language:response_language"]}
    rows += [{"key": 30 + i, **other, "kwargs": [{"language": "en"}]} for i in range(30)]
    data = {"ifeval": write_rows(tmp_path / "ifeval.jsonl", rows)}
    part = lm_harness.prepare(BENCHMARKS["ifeval"], EvalSettings(data=data), tmp_path)
    texts = [["abcdefghijklm"]] * 30 + [["de a son of"]] * 30

    def verdicts(name):
        part.score(texts, tmp_path / name)
        lines = (tmp_path / name / "samples.jsonl").read_text().splitlines()
        return [json.loads(line)["inst_level_strict_acc"] for line in lines]

    first = verdicts("first")
    assert len({str(one) for one in first[:30]}) == 2
    assert first == verdicts("second")


@pytest.mark.slow
def test_a_real_model_at_a_real_server_is_evaluated(tmp_path, vllm_server, capsys):
    output = tmp_path / "out"
    arguments = ["gsm8k", "mmlu", "arc_c", "--base-url", vllm_server, "--output", str(output)]
    if HAS_PUNKT:
        prompts = write_rows(
            tmp_path / "if.jsonl", RealData(whole=False).rows("ifeval_input_data.jsonl")[:2]
        )
        arguments = ["ifeval", *arguments, "--data", f"ifeval={prompts}"]
    arguments += ["--data", gsm8k(tmp_path, 2), "--max-tokens", "32", "--width", "2"]
    arguments += ["--data", f"mmlu={write_rows(tmp_path / 'mmlu.jsonl', mmlu_rows())}"]
    arguments += ["--data", f"arc_c={write_rows(tmp_path / 'arc.jsonl', arc_rows())}"]
    assert main([*arguments, "--final-max-tokens", "32", "--quiet"]) in (0, 1), capsys.readouterr()
    results = json.loads((output / "results.json").read_text())
    by_name = {one["benchmark"]: one for one in results["benchmarks"]}
    if HAS_PUNKT:
        ifeval = by_name.pop("ifeval")
        assert [metric["n"] for metric in ifeval["metrics"]] == [2] * 4
        assert ifeval["tokens"]["requests"] == 4
    assert [one["metrics"][0]["n"] for one in by_name.values()] == [2, 3, 3]
    # two drafts in one request, and an aggregation; of the others one answer each
    requests = [one["tokens"]["requests"] for one in by_name.values()]
    assert requests == [4, 3, 3], by_name
    assert by_name["gsm8k"]["tokens"]["samples"] == 6


def test_flops_are_of_each_benchmarks_own_width_and_layers(tmp_path, monkeypatch, tiny_llama):
    answering(monkeypatch, lambda request: "The best answer is B." + " word" * 30)
    rows = write_rows(tmp_path / "mmlu.jsonl", mmlu_rows())
    arguments = ["gsm8k", "mmlu", "--data", gsm8k(tmp_path, 3), "--data", f"mmlu={rows}"]
    _, results = evaluate(tmp_path, *arguments, "--tokenizer", str(tiny_llama))
    gsm8k_flops, mmlu_flops = (one["flops"] for one in results["benchmarks"])
    # K = 5 and L = 1: 11 answers' worth by appendix C; of L = 0: one
    assert 8 < gsm8k_flops["appendix_c"] / mmlu_flops["appendix_c"] < 25
    assert gsm8k_flops["exact"] > mmlu_flops["exact"] > 0
    summary = json.loads((tmp_path / "out" / "answers.summary.json").read_text())
    assert summary["flops"]["appendix_c"] is None  # there is no one formula for both
    assert summary["flops"]["exact"] == gsm8k_flops["exact"] + mmlu_flops["exact"]


def test_a_limit_is_told_beside_the_score(tmp_path, monkeypatch, capsys):
    answering(monkeypatch, number_of)
    arguments = ("gsm8k", "--data", gsm8k(tmp_path, 5), "--limit", "2", "--repeats", "2")
    _, results = evaluate(tmp_path, *arguments)
    assert results["benchmarks"][0]["missing"] == [0, 0]
    assert results["benchmarks"][0]["tokens"]["requests"] == 2 * 2 * 2
    assert "2 of 5 x 2" in capsys.readouterr().out


def test_the_hash_of_the_data_is_of_its_questions(tmp_path, monkeypatch):
    answering(monkeypatch, number_of)
    hashes = []
    for count in (2, 2, 3):
        data = gsm8k(tmp_path, count)
        _, results = evaluate(tmp_path, "gsm8k", "--data", data, "--overwrite")
        hashes.append(results["benchmarks"][0]["data"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_of_saved_data_the_split_of_the_task_is_asked_about(tmp_path, capsys):
    from datasets import Dataset, DatasetDict

    rows = gsm8k_rows(7)
    splits = {"train": rows, "test": rows[:2]}
    DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()}).save_to_disk(
        tmp_path / "saved"
    )
    words = ["gsm8k", "--data", f"gsm8k={tmp_path / 'saved'}", "--scripted", "--dry-run"]
    assert main([*words, "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("2 rows")


def test_a_dry_run_tells_what_it_would_take_and_writes_nothing(tmp_path, capsys):
    data = gsm8k(tmp_path, 3)
    assert main(["gsm8k", "--data", data, "--scripted", "--dry-run", "--quiet"]) == 0
    assert "3 rows" in (text := capsys.readouterr().out)
    assert re.search(r"all +6 +18 ", text)  # requests, samples
    assert [path.name for path in tmp_path.iterdir()] == ["gsm8k.jsonl"]


def task_file(folder, name, **config):
    import yaml

    (folder / "tasks").mkdir(exist_ok=True)
    data = write_rows(folder / "own.jsonl", [{"ask": "1 + 1?", "want": "2"}] * 3)
    usual = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": data}}}
    usual |= {"test_split": "test", "output_type": "generate_until", "doc_to_text": "{{ask}}"}
    usual |= {"doc_to_target": "{{want}}", "metric_list": [{"metric": "exact_match"}]}
    usual |= {"generation_kwargs": {"until": []}, "metadata": {"version": 7}}
    (folder / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(usual | config))
    return ["--include", str(folder / "tasks")]


def test_a_task_of_the_users_own_is_asked_for_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(lm_harness, "TASKS", None)  # of lm-eval's many files none is read
    monkeypatch.setattr("lm_eval.tasks.__file__", None)
    requests = answering(monkeypatch, lambda request: "2")
    include = task_file(tmp_path, "mine", repeats=2)
    code, results = evaluate(tmp_path, "mine", *include, "--layers", "0")
    assert code == 0
    assert len({request.seed for request in requests}) == 3 * 2  # as often as the task says
    assert metrics(results) == {"mine": {"exact_match,none": 1.0}}  # as the harness has it
    assert results["benchmarks"][0]["task_version"] == "7"


def test_a_task_that_decodes_otherwise_now_is_asked_anew(tmp_path, monkeypatch):
    requests = answering(monkeypatch, lambda request: "2")
    for temperature in (0.2, 0.2, 0.9):
        asked = {"until": [], "do_sample": True, "temperature": temperature}
        include = task_file(tmp_path, "mine", generation_kwargs=asked)
        evaluate(tmp_path, "mine", *include, "--layers", "0", "--overwrite")
    assert [request.sampling.temperature for request in requests] == [0.2] * 3 + [0.9] * 3


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"gen_prefix": "The answer is"}, "gen_prefix"),
        (
            {"num_fewshot": 2},
            "mine has no fewshot_split, so lm-eval takes its examples from the very",
        ),
        ({"generation_kwargs": {"num_beams": 4}}, "generation_kwargs have num_beams"),
        (
            {"output_type": "multiple_choice", "doc_to_choice": ["1", "2"], "doc_to_target": 1},
            "asks how likely given answers are, and a strategy only writes; a generative task of "
            "it: none is known here",
        ),
        ({"doc_to_text": "{{ask | no_such_filter}}"}, "lm-eval cannot"),
    ],
    ids=[
        "the beginning of an answer",
        "examples of its questions",
        "unknown decoding",
        "likelihoods",
        "a broken template",
    ],
)
def test_what_a_strategy_cannot_do_is_refused_before_anything_is_asked(
    tmp_path, monkeypatch, capsys, config, told
):
    requests = answering(monkeypatch, lambda request: "2")
    include = task_file(tmp_path, "mine", **config)
    code = main(["mine", *include, "--scripted", "--output", str(tmp_path / "out")])
    assert code == 2
    assert told in capsys.readouterr().err
    assert not requests


@pytest.mark.slow  # lm-eval reads all of its task files
def test_examples_are_never_taken_from_the_questions(tmp_path, capsys):
    data = f"gsm8k_platinum={write_rows(tmp_path / 'gsm8k.jsonl', gsm8k_rows(9))}"
    output = ["--scripted", "--output", str(tmp_path / "out")]
    assert main(["gsm8k_platinum", "--data", data, *output]) == 2
    assert "gsm8k_platinum shows 5 examples of a split that a local copy has not" in (
        capsys.readouterr().err
    )


@pytest.mark.slow  # lm-eval reads all of its task files
def test_a_likelihood_task_is_refused_with_the_generative_one(tmp_path, capsys):
    data = f"arc_challenge={write_rows(tmp_path / 'arc.jsonl', arc_rows())}"
    output = ["--scripted", "--output", str(tmp_path / "out")]
    assert main(["arc_challenge", "--data", data, *output]) == 2
    assert "a generative task of it: arc_c" in capsys.readouterr().err
    assert main(["gsm8k_cot_zeroshoot", *output]) == 2
    assert "did you mean 'gsm8k_cot_zeroshot'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name a BENCHMARK"),
        (["gsm8k", "--data", "gsm9k=x.jsonl"], "x.jsonl: no such file"),
        (["gsm8k", "--repeats", "0"], "repeats: expected a number from 1"),
        (["gsm8k", "--include", "nowhere"], "include: nowhere: no such folder"),
        (
            ["alpaca_eval", "--judge-url", "http://me:pw@h/v1"],
            "judge_url: expected http://",
        ),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(arguments, told, tmp_path, capsys):
    assert main([*arguments, "--scripted", "--output", str(tmp_path / "out")]) == 2
    assert told in capsys.readouterr().err


def test_a_benchmark_behind_a_flag_of_several_values_is_asked_for(tmp_path, capsys):
    data, rows = gsm8k(tmp_path, 1), write_rows(tmp_path / "arc.jsonl", arc_rows())
    words = ["--base-url", "http://127.0.0.1:1/v1", "gsm8k", "arc_c", "--dry-run", "--quiet"]
    assert main([*words, "--data", data, "--data", f"arc_c={rows}"]) == 0
    assert capsys.readouterr().out.startswith("4 rows, 0 of them unusable")
    assert main(["--base-url", "http://127.0.0.1:1/v1", "drop", "--dry-run"]) == 2
    assert "got 'drop'; is it the INPUT, or a BENCHMARK? name that" in capsys.readouterr().err


def test_data_for_a_benchmark_that_is_not_asked_for_are_refused(tmp_path, capsys):
    data = gsm8k(tmp_path, 1).replace("gsm8k=", "gsm=")
    output = ["--scripted", "--output", str(tmp_path / "out")]
    assert main(["gsm8k", "--data", data, *output]) == 2
    assert "data: gsm: not among the benchmarks" in capsys.readouterr().err


def test_a_subject_that_lm_eval_does_not_know_is_refused_by_row(tmp_path, capsys):
    rows = [*mmlu_rows(), mmlu_rows()[0] | {"subject": "alchemy"}]
    data = f"mmlu={write_rows(tmp_path / 'mmlu.jsonl', rows)}"
    assert main(["mmlu", "--data", data, "--scripted", "--output", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert "mmlu.jsonl:4" in error
    assert "'alchemy'" in error


def test_what_was_answered_needs_no_model_again(tmp_path, monkeypatch):
    requests = answering(monkeypatch, number_of)
    # One whose settings hold what is kept nowhere is known again too.
    arguments = ("gsm8k", "--data", gsm8k(tmp_path, 2), "--sampling-args", "hf_token=secret")
    _, first = evaluate(tmp_path, *arguments)
    assert len(requests) == 4
    assert first["settings"]["sampling_args"] == {"hf_token": "..."}

    def no_model(self):
        raise AssertionError("a model was opened")

    monkeypatch.setattr(ScriptedEngine, "close", no_model)  # asyncio, at the end of a run
    _, second = evaluate(tmp_path, *arguments, "--overwrite", "--judge", "someone")
    assert second["benchmarks"] == first["benchmarks"]
    with pytest.raises(AssertionError, match="a model was opened"):
        evaluate(tmp_path, *arguments, "--overwrite", "--layers", "0")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], []),
        (
            ["--strategy", "majority_vote"],
            [
                "majority_vote: drafts of temperature 0 are all alike, and asked for once; "
                "--temperature samples them",
            ],
        ),
        (
            ["--strategy", "majority_vote", "--temperature", "0.7"],
            ["--temperature 0.7 goes before gsm8k's own temperature: 0.0"],
        ),
        (
            ["--final-temperature", "0.5"],
            ["--final-temperature 0.5 goes before gsm8k's own temperature: 0.0"],
        ),
        (
            ["--layers", "0", "--repeats", "2"],
            ["greedy and without drafts: 2 runs differ by rounding only"],
        ),
    ],
)
def test_what_becomes_of_the_decoding_is_told_as_by_a_run(
    tmp_path, monkeypatch, caplog, arguments, told
):
    answering(monkeypatch, number_of)
    evaluate(tmp_path, "gsm8k", "--data", gsm8k(tmp_path, 1), *arguments)
    assert [one for one in caplog.messages if one.startswith("gsm8k: ")] == [
        f"gsm8k: {text}" for text in told
    ]


def test_existing_results_are_not_replaced_unasked(tmp_path, monkeypatch, capsys):
    answering(monkeypatch, number_of)
    data = gsm8k(tmp_path, 1)
    evaluate(tmp_path, "gsm8k", "--data", data)
    out = str(tmp_path / "out")
    assert main(["gsm8k", "--data", data, "--scripted", "--output", out]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_gsm8ks_verdicts_are_the_official_ones(tmp_path, real):
    rows = real.rows("gsm8k_model_solutions.jsonl")
    # This file has the answers behind another mark than the data set itself.
    answers = [row["ground_truth"].replace("\nA: ", "\n#### ") for row in rows]
    questions = [
        {"question": row["question"], "answer": answer}
        for row, answer in zip(rows, answers, strict=True)
    ]
    data = {"gsm8k": write_rows(tmp_path / "gsm8k.jsonl", questions)}
    part = lm_harness.prepare(BENCHMARKS["gsm8k"], EvalSettings(data=data), tmp_path)
    assert part.of == real.either(sample=len(rows), whole=1119)
    for kind in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
        [score] = part.score([[row[kind]["solution"]] for row in rows], tmp_path / kind)
        lines = (tmp_path / kind / "samples.jsonl").read_text(encoding="utf-8").splitlines()
        samples = [one for one in map(json.loads, lines) if one["filter"] == "flexible-extract"]
        assert [bool(one["exact_match"]) for one in samples] == [
            row[kind]["is_correct"] for row in rows
        ]
        assert score.n == len(rows)


# For each number a process that dies at its n-th request, with everything imported; every request
# that was answered before leaves its key in a log.
DYING = """
import os, sys
import lm_eval.evaluator
from aft_factory.engines.scripted import ScriptedEngine
from aft_factory.evaluate.__main__ import main
from aft_factory.stage import engines

log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

class Dying(ScriptedEngine):
    async def sample(self, request):
        global left
        reply = await super().sample(request)
        left -= 1
        if left == 0:
            os._exit(77)
        os.write(log, (request.key("").hex() + "\\n").encode())
        return reply

engines.ScriptedEngine = Dying
for left in map(int, sys.argv[2].split(",")):
    if (pid := os.fork()) == 0:
        code = 99
        try:
            code = main(sys.argv[3:])
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == (77 if left else 0), code
"""


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_and_asks_nothing_twice(tmp_path):
    data = gsm8k(tmp_path, 30)

    def run(name, *kills):
        command = ["gsm8k", "--data", data, "--output", str(tmp_path / name), "--scripted"]
        numbers = ",".join(map(str, [*kills, 0]))
        argv = [sys.executable, "-c", DYING, str(tmp_path / f"{name}.log"), numbers, *command]
        path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        done = subprocess.run(
            [*argv, "--quiet", "--repeats", "2"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": path},
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        log = (tmp_path / f"{name}.log").read_text().splitlines()
        results = json.loads((tmp_path / name / "results.json").read_text())
        return sorted(log), results | {"seconds": None}

    log, results = run("killed", 7, 1, 23, 12, 3, 31, 9, 2, 17, 11)
    assert (log, results) == run("whole")
    assert len(set(log)) == len(log) == 120
