"""`aft analyze radar`, `cost` and `scaling`. Run: pytest tests/analyze/test_evaluations.py"""

import csv
import json
import shutil

import pytest
from evaluate_tools import answering, evaluate, gsm8k_rows, write_rows

from aft_factory.analyze.__main__ import main
from aft_factory.engines.engine import EngineError
from aft_factory.stage.plotting import style

EXACT = "exact_match,flexible-extract"
CATEGORIES = {"writing": [8.0, 7.0], "math": [5.0, 6.0], "coding": [4.0, 4.0]}


@pytest.fixture
def results(tmp_path):
    """Write what `aft eval` would have left; return the folder."""

    def write(name, *, strategy="propose_and_aggregate", value=50.0, model="m", **more):
        options = {key: more.pop(key) for key in ("width", "layers") if key in more}
        runs = more.pop("runs", [value])
        one = {
            "benchmark": "gsm8k",
            "metrics": [
                {"metric": EXACT, "value": value, "error": 1.5, "error_over": "runs", "runs": runs, "n": 10},
                {"metric": "other", "value": 9.0, "error": None, "runs": runs, "n": 10},
            ],
            "questions": 10,
            "missing": [0],
            "data": "abc",
            "strategy": strategy,
            "options": options,
            "tokens": {"completion": 1000},
            "flops": {"exact": 4e15, "appendix_c": 3e15},
        }  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        (folder / "results.json").write_text(
            json.dumps({"model": model, "benchmarks": [one | more]})
        )
        return str(folder)

    return write


@pytest.fixture
def plot(tmp_path):
    """Run an analysis; return the rows of its CSV."""
    output = tmp_path / "plot.png"

    def run(*words):
        assert main([*words, "--output", str(output), "--overwrite"]) == 0
        assert output.read_bytes().startswith(b"\x89PNG")
        assert "<svg" in output.with_suffix(".svg").read_text()
        return list(csv.DictReader(output.with_suffix(".csv").read_text().splitlines()))

    return run


def test_a_radar_has_the_mean_of_each_category_over_the_runs(results, plot, capsys):
    folder = results("aft", benchmark="mt_bench", categories=CATEGORIES)
    lacking = results("sft", benchmark="mt_bench", categories={"writing": [6.0], "math": [3.0]})
    rows = plot("radar", folder, f"base={lacking}")
    found = [tuple(row.values()) for row in rows]
    assert found == [
        ("aft", "writing", "7.5", "0.5", "2"),
        ("aft", "math", "5.5", "0.5", "2"),
        ("aft", "coding", "4.0", "0.0", "2"),
        ("base", "writing", "6.0", "", "1"),
        ("base", "math", "3.0", "", "1"),
    ]
    assert "coding                    4.00               -" in capsys.readouterr().out


def test_a_radar_of_a_run_without_mt_bench_is_an_error_that_names_it(results, tmp_path, capsys):
    words = ["radar", results("a"), "--output", str(tmp_path / "r.png")]
    assert main(words) == 2
    assert "a: no MT-Bench among its benchmarks" in capsys.readouterr().err


def test_cost_is_of_one_question_of_one_run(results, plot):
    plain = results("plain", layers=0, width=5, runs=[50.0, 50.0])
    vote = results(
        "vote", strategy="majority_vote", width=5, flops={"exact": 8e15, "appendix_c": None}
    )
    first, second = plot("cost", plain, vote)
    assert (first["run"], first["metric"], first["value"], first["error"]) == (
        "plain",
        EXACT,
        "50.0",
        "1.5",
    )
    assert float(first["flops_exact"]) == 4e15 / 20  # 10 questions, twice
    assert float(first["flops_appendix_c"]) == 3e15 / 20
    assert float(first["tokens_written"]) == 50
    assert (float(second["flops_exact"]), second["flops_appendix_c"]) == (8e14, "")


def test_cost_without_any_flops_says_what_counts_them(results, tmp_path, capsys):
    assert main(["cost", results("a", flops=None), "--output", str(tmp_path / "c.png")]) == 2
    assert "--tokenizer FOLDER" in capsys.readouterr().err


def test_scaling_has_a_series_by_width_and_one_by_depth(results, plot):
    runs = [
        results("plain", width=5, layers=0, value=40.0),
        results("k1", strategy="sequential_revision", width=1, layers=1, value=41.0),
        results("k3", strategy="parallel_sampling", width=3, layers=1, value=43.0),
        results("k5", width=5, layers=1, value=45.0),
        results("k5l2", width=5, layers=2, value=46.0),
        results("vote", strategy="majority_vote", width=5, value=42.0),
    ]
    rows = plot("scaling", *runs)
    found = {}
    for row in rows:
        found.setdefault((row["panel"], row["series"]), []).append((row["x"], row["value"]))
    five = "propose and aggregate, K=5"
    assert {key: points for key, points in found.items() if key[0] in ("width", "depth")} == {
        ("width", "majority vote"): [("5", "42.0")],
        ("width", "parallel sampling (L=1)"): [("1", "41.0"), ("3", "43.0"), ("5", "45.0")],
        ("width", "plain answer"): [("", "40.0")],
        ("width", "propose and aggregate, L=2"): [("5", "46.0")],
        ("depth", five): [("0", "40.0"), ("1", "45.0"), ("2", "46.0")],
        ("depth", "propose and aggregate, K=3"): [("0", "40.0"), ("1", "43.0")],
        ("depth", "sequential revision (K=1)"): [("0", "40.0"), ("1", "41.0")],
    }
    assert found["tokens", five] == [("100.0", "45.0"), ("100.0", "46.0")]
    assert found["flops", "plain answer"] == [("400000000000000.0", "40.0")]


def test_models_and_benchmarks_are_told_apart_in_one_plot(results, plot, caplog):
    runs = [
        results("a", width=3, layers=1),
        results("b", width=3, layers=1, model="other", data="xyz", missing=[2]),
        results("c", width=3, layers=1, benchmark="ifeval"),
    ]
    rows = plot("scaling", *runs)
    assert {(row["benchmark"], row["series"]) for row in rows if row["panel"] == "width"} == {
        ("gsm8k", "m: parallel sampling (L=1)"),
        ("gsm8k", "other: parallel sampling (L=1)"),
        ("ifeval", "m: parallel sampling (L=1)"),
    }
    assert "b: gsm8k: not the same questions" in caplog.text
    assert "b: gsm8k: 2 answers are missing" in caplog.text
    assert "c:" not in caplog.text
    only = plot("scaling", *runs, "--benchmark", "gsm8k", "--metric", "gsm8k=other")
    assert {(row["benchmark"], row["value"]) for row in only} == {("gsm8k", "9.0")}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--benchmark", "mmlu"], "no run has mmlu; there are: "),
        (["--metric", "gsm8k=f1"], f"gsm8k has no 'f1', but: {EXACT}, other"),
        (["--metric", "mmlu=acc"], "no run has mmlu; there are: gsm8k"),
    ],
)
def test_an_unknown_benchmark_or_metric_is_told(results, tmp_path, capsys, words, problem):
    folder = results("a", width=3, layers=1)
    assert main(["scaling", folder, *words, "--output", str(tmp_path / "s.png")]) == 2
    assert problem in capsys.readouterr().err


def test_results_of_another_version_are_told(results, tmp_path, capsys):
    folder = results("old", width=3, layers=1)
    path = tmp_path / "old" / "results.json"
    content = json.loads(path.read_text())
    del content["benchmarks"][0]["flops"]
    path.write_text(json.dumps(content))
    for name in ("scaling", "cost"):
        assert main([name, folder, "--output", str(tmp_path / "s.png")]) == 2
        assert "old: gsm8k: its results lack 'flops'" in capsys.readouterr().err


def test_two_runs_of_one_point_are_refused(results, tmp_path, capsys):
    runs = [
        results("a", width=3, layers=1),
        results("b", strategy="parallel_sampling", width=3, layers=1),
    ]
    assert main(["scaling", *runs, "--output", str(tmp_path / "s.png")]) == 2
    assert "a and b are one point" in capsys.readouterr().err


@pytest.mark.slow
def test_figures_of_real_evaluations_that_share_their_drafts(
    tmp_path, monkeypatch, plot, tiny_llama
):
    """Real evaluations by lm-eval, a scripted model: what each asks, and what the plots make of it."""
    data = f"gsm8k={write_rows(tmp_path / 'gsm8k.jsonl', gsm8k_rows(4))}"
    requests = answering(monkeypatch, lambda request: f"#### {request.seed % 4}")
    shared = ("--data", data, "--journal", str(tmp_path / "drafts.sqlite"), "--split-samples")
    shared += ("--tokenizer", str(tiny_llama), "--repeats", "2")
    found = {}
    for name, fresh, samples, *flags in (  # by 4 questions and 2 seeds; greedy ones are alike
        ("k3", 8 * 3 + 8, 8 * 4, "--width", "3", "--layers", "1"),
        ("k2", 8, 8 * 3, "--width", "2", "--layers", "1"),  # its final answers only
        ("revise", 8 + 8, 8 * 3, "--strategy", "sequential_revision", "--layers", "2"),
        (
            "vote3",
            8 * 3,
            8 * 3,
            "--strategy",
            "majority_vote",
            "--width",
            "3",
            "--temperature",
            "1",
        ),
        ("vote2", 0, 8 * 2, "--strategy", "majority_vote", "--width", "2", "--temperature", "1"),
    ):
        del requests[:]
        code, results = evaluate(tmp_path / name, "gsm8k", *shared, *flags)
        assert code == 0
        assert (name, len(requests)) == (name, fresh)
        # what it would have taken by itself
        assert results["benchmarks"][0]["tokens"]["samples"] == samples
        found[name] = results["benchmarks"][0]
    runs = [f"{name}={tmp_path / name / 'out'}" for name in found]
    rows = plot("scaling", *runs)
    assert {(row["series"], row["x"]) for row in rows if row["panel"] == "width"} == {
        *(("parallel sampling (L=1)", width) for width in "23"),
        *(("majority vote", width) for width in "23"),
        ("propose and aggregate, L=2", "1"),
    }
    for row in rows:
        own = found[row["run"]]["metrics"][0]
        assert (float(row["value"]), float(row["error"])) == (own["value"], own["error"])
        assert (row["error_over"], row["repeats"]) == ("runs", "2")
    per_question = {
        "tokens": lambda one: one["tokens"]["completion"] / 8,
        "flops": lambda one: one["flops"]["exact"] / 8,
    }
    for panel, of in per_question.items():
        at = {row["run"]: float(row["x"]) for row in rows if row["panel"] == panel}
        assert at == {name: of(one) for name, one in found.items()}
    costs = {row["run"]: row for row in plot("cost", *runs)}
    for name, one in found.items():
        assert float(costs[name]["flops_appendix_c"]) == one["flops"]["appendix_c"] / 8
    assert all(value["flops_exact"] for value in costs.values())

    # All of it again from the journal alone: of a model that answers nothing.
    answering(monkeypatch, lambda request: EngineError("asked", "fatal"))
    for name, flags in (("k3", ("--width", "3", "--layers", "1")),):
        shutil.rmtree(tmp_path / name)
        again = evaluate(tmp_path / name, "gsm8k", *shared, *flags)[1]["benchmarks"][0]
        assert again == found[name]
    assert plot("scaling", *runs) == rows
    assert list(costs.values()) == plot("cost", *(f"{run}/results.json" for run in runs))


def test_many_runs_in_one_plot_look_each_their_own_way():
    looks = [tuple(style(number).values()) for number in range(28)]
    assert len(set(looks)) == 28
