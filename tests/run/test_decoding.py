"""How final answers are decoded: default < preset < file < the benchmark < flag."""

import json

import pytest
from asking_tools import command, write_lines

from aft_factory.asking.journal import Journal
from aft_factory.run.settings import preset_names

BENCH = [
    {"question_id": name, "category": name, "turns": ["One?", "Two?"]}
    for name in ("writing", "math", "coding", "stem", "other")
]
CATEGORIES = {"writing": 0.7, "math": 0.0, "coding": 0.0, "stem": 0.1, "other": 0.7}
ASKED = {"question_id": "asked", "category": "math", "turns": ["One?"], "required_temperature": 0.4}
GSM8K = [{"id": "g", "question": "How much?", "answer": "#### 1"}]
IFEVAL = [{"key": 1, "prompt": "Write.", "instruction_id_list": [], "kwargs": []}]
ALPACA = [{"id": "a", "instruction": "Name a bird.", "dataset": "koala"}]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, caplog):
    """Run rows; returns what was sampled, as {query: {layer: (temperature, top_p, n)}}."""

    def run(rows, *flags, config=None):
        caplog.clear()
        source = write_lines(tmp_path / "in.jsonl", rows)
        if config is not None:
            (tmp_path / "run.yaml").write_text(config)
            flags = ("--config", str(tmp_path / "run.yaml"), *flags)
        output = tmp_path / "out.jsonl"
        journal = tmp_path / "out.jsonl.journal"
        journal.unlink(missing_ok=True)
        code, _, err = command(monkeypatch, capsys, None, source, output, "--overwrite", *flags)
        assert (code, err) == (0, "")
        found = {}
        with Journal(journal, read_only=True) as opened:
            for place, request, _ in opened.replies():
                sampling = request["sampling"]
                here = (sampling["temperature"], sampling["top_p"], request["n"])
                layers = found.setdefault(place.query, {})
                assert layers.setdefault(place.layer, here) == here  # of both turns
        return found

    return run


def last(found):
    """The temperature of each query's last layer."""
    return {query: layers[max(layers)][0] for query, layers in found.items()}


def settings(tmp_path):
    return json.loads((tmp_path / "out.summary.json").read_text())["settings"]


@pytest.mark.parametrize("preset", [None, *preset_names()])
def test_mt_bench_is_decoded_by_category_under_any_preset(run, preset):
    flags = () if preset is None else ("--preset", preset, "--task", "mt_bench")
    found = run([*BENCH, ASKED], *flags)
    assert last(found) == CATEGORIES | {"asked": 0.4}
    assert {layers[max(layers)][1] for layers in found.values()} == {1.0}
    assert {layers[0][:2] for layers in found.values()} == {(0.7, 0.95)}


@pytest.mark.parametrize("rows", [GSM8K, IFEVAL])
@pytest.mark.parametrize("flags", [(), ("--preset", "release"), ("--preset", "mt_bench")])
def test_gsm8k_and_ifeval_are_greedy_under_any_preset(run, rows, flags):
    flags += ("--task", "gsm8k" if rows is GSM8K else "ifeval") if "mt_bench" in flags else ()
    [layers] = run(rows, *flags).values()
    assert layers[2] == (0.0, 1.0, 1)
    assert layers[0] == (0.7, 0.95, 5)


@pytest.mark.parametrize("rows", [BENCH, GSM8K])
def test_a_file_of_settings_does_not_go_before_the_benchmark_and_that_is_said(run, rows, caplog):
    found = run(rows, config="final_temperature: 0.9\nfinal_top_p: 0.5\n")
    assert last(found) == (CATEGORIES if rows is BENCH else {"g": 0.0})
    name, value = ("mt_bench", "each row's own") if rows is BENCH else ("gsm8k", "0.0")
    told = f"final_temperature 0.9 is not used: {name}'s temperature is {value}"
    assert caplog.text.count(told) == 1
    assert "final_top_p 0.5 is not used" in caplog.text


@pytest.mark.parametrize("rows", [BENCH, GSM8K, IFEVAL])
def test_a_flag_goes_before_the_benchmark_and_that_is_said(run, rows, caplog):
    found = run(rows, "--preset", "release", "--final-temperature", "0.33")
    assert set(last(found).values()) == {0.33}
    assert {layers[2][1] for layers in found.values()} == {1.0}  # only what the flag names
    assert caplog.text.count("--final-temperature 0.33 goes before") == 1


def test_nothing_is_said_where_nothing_was_set_otherwise(run, caplog):
    run(BENCH, "--preset", "mt_bench")
    run(GSM8K, "--preset", "gsm8k")
    run(IFEVAL)
    run(ALPACA, "--preset", "alpaca_eval")
    assert "aft_factory.run" not in caplog.text


@pytest.mark.parametrize("strategy", ["best_of_n", "majority_vote"])
def test_the_baselines_are_decoded_as_the_benchmark_says(run, strategy, caplog):
    found = run(BENCH, "--preset", "mt_bench", "--strategy", strategy, "--width", "4")
    assert last(found) == CATEGORIES
    # Servers refuse several greedy samples, or take chance for them; they would be all alike.
    assert {query: layers[0][2] for query, layers in found.items()} == {
        query: 1 if temperature == 0 else 4 for query, temperature in CATEGORIES.items()
    }
    assert "temperature 0.7 is not used: mt_bench's temperature is each row's own" in caplog.text
    assert "drafts of temperature 0 are all alike, and asked for once" in caplog.text
    assert run(ALPACA, "--preset", "alpaca_eval", "--strategy", strategy) == {
        "a": {0: (0.9, 1.0, 5)}
    }
    assert run(GSM8K, "--strategy", strategy) == {"g": {0: (0.0, 1.0, 1)}}
    assert "asked for once" in caplog.text


def test_a_flag_samples_the_drafts_of_a_baseline(run, caplog):
    flags = ("--strategy", "majority_vote", "--temperature", "0.6")
    assert run(GSM8K, *flags) == {"g": {0: (0.6, 1.0, 5)}}
    assert "--temperature 0.6 goes before gsm8k's own temperature: 0.0" in caplog.text
    assert "asked for once" not in caplog.text
    told = "temperature: 0.6\ntop_p: 0.9\n"
    found = run(GSM8K, "--strategy", "majority_vote", config=told)
    assert found == {"g": {0: (0.0, 1.0, 1)}}


def test_the_last_population_of_rsa_is_its_final_layer(run):
    flags = ("--strategy", "rsa", "--width", "3", "--subset", "2", "--layers", "1")
    found = run(BENCH, *flags)
    assert last(found) == CATEGORIES
    assert {layers[0][0] for layers in found.values()} == {0.7}


def test_other_rows_are_decoded_as_the_settings_say(run):
    rows = [{"id": "q", "query": "What?"}]
    assert last(run(rows, "--preset", "release")) == {"q": 0.7}
    assert last(run(rows, config="final_temperature: 0.2\n")) == {"q": 0.2}
    assert last(run(rows, "--strategy", "majority_vote", config="temperature: 0.2\n")) == {"q": 0.2}


def test_what_no_layer_uses_is_said(run, caplog):
    assert last(run(GSM8K, "--layers", "0", "--temperature", "0.3")) == {"g": 0.0}
    assert "temperature 0.3 is not used: it is of drafts, and there are none" in caplog.text


USED = [
    ([{"query": "?"}], (), {"task": "records", "width": 5, "layers": 2, "final_temperature": 0.7, "final_top_p": 0.95, "final_top_k": None, "final_max_tokens": 4096}),
    (GSM8K, ("--layers", "1"), {"task": "gsm8k", "layers": 1, "final_temperature": 0.0, "final_top_p": 1.0}),
    (BENCH, ("--preset", "mt_bench"), {"final_temperature": "each row's own", "final_max_tokens": 1024}),
    ([{"query": "?"}], ("--strategy", "sequential_revision"), {"width": 1, "layers": 2}),
    ([{"query": "?"}], ("--strategy", "parallel_sampling"), {"width": 5, "layers": 1}),
    ([{"query": "?"}], ("--strategy", "self_moa_seq"), {"width": 30, "window": 6}),
    (GSM8K, ("--strategy", "majority_vote"), {"width": 5, "temperature": 0.0, "top_p": 1.0, "final_temperature": None}),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "flags", "used"), USED)
def test_the_summary_names_the_settings_that_were_used(run, tmp_path, rows, flags, used):
    run(rows, *flags)
    found = settings(tmp_path)
    assert {name: found[name] for name in used} == used
