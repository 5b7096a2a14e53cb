"""The command: inputs and outputs, presets and files of settings, dry run, inspection, errors."""

import json
import re
import sqlite3
from pathlib import Path

import pytest
from conftest import demo_rows

from aft_factory.asking.journal import Journal, Place
from aft_factory.engines.sampling import Completion, Reply, Request, Sampling, Usage
from aft_factory.inference.strategies import STRATEGIES
from aft_factory.run.__main__ import COMMAND, main
from aft_factory.run.settings import preset_names


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture
def run(tmp_path, capsys):
    """Run the command with the scripted engine; returns (code, output rows, stdout, stderr)."""

    def run(source, *flags, output="out.jsonl", engine=("--scripted",)):
        if not isinstance(source, (str, Path)):
            source = write_rows(tmp_path / "in.jsonl", source)
        path = tmp_path / output
        code = main([str(source), "--output", str(path), "--quiet", *engine, *flags])
        printed = capsys.readouterr()
        rows = read_rows(path) if path.exists() and path.suffix == ".jsonl" else None
        return code, rows, printed.out, printed.err

    return run


ROWS = [{"id": f"q{i}", "query": f"What is {i}+{i}?", "tag": i} for i in range(6)]


def test_rows_come_in_the_order_of_the_input_with_their_columns(run, tmp_path):
    code, rows, out, _ = run(ROWS)
    assert code == 0
    assert [(row["id"], row["query"], row["tag"]) for row in rows] == [
        (row["id"], row["query"], row["tag"]) for row in ROWS
    ]
    assert list(rows[0]) == [
        *("id", "query", "tag", "response", "finish_reasons", "seed", "usage", "events")
    ]
    assert "read 6 rows: 6 written" in out
    assert not (tmp_path / "out.rejects.jsonl").exists()


def test_what_belongs_to_no_query_is_said_of_all_rows(run, caplog):
    told = "in no prompt, as they are no part of a query by their names: "
    rows = [
        {"query": "a", "topic": "x", "meta": {"k": 1}, "note": "", "blank": [None]},
        *(["no row"], {"context": "refused", "query": "c"}, {"query": "b", "note": "y"}),
    ]

    def messages():
        return [one for one in caplog.messages if "--scripted" not in one]

    assert run(rows)[0] == 0
    assert messages() == [f"{told}note, topic"]
    caplog.clear()
    row = {"question": "2 + 2?", "answer": "#### 4", "id": "1", "system": "Be brief."}
    run([row], "--overwrite", "--task", "gsm8k")
    assert not messages()
    run([row | {"body": "Seven."}], "--overwrite", "--task", "gsm8k")
    assert messages() == [f"{told}body"]
    caplog.clear()
    run([{"query": "a", "id": "1", "reference": "x"}], "--overwrite")
    assert not messages()


def test_a_column_of_a_benchmarks_row_can_be_left_out_of_the_query(run, caplog):
    row = {"question": "2 + 2?", "answer": "#### 4", "context": "In German."}
    code, _, out, _ = run([row], "--task", "gsm8k")
    assert (code, "1 x context: may belong" in out) == (1, True)
    assert "in no prompt" not in caplog.text
    flags = ("--task", "gsm8k", "--overwrite", "--column", "ignore=context")
    code, [written], _, _ = run([row, ["no row"]], *flags)
    assert (code, written["context"]) == (0, "In German.")
    assert "it takes only ignore=NAME" in run([row], *flags[:-1], "messages=question")[3]


def test_bad_rows_are_rejected_with_file_line_and_field_and_counts_reconcile(run, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(
        '{"query": "a"}\nnot json\n\n{"query": " "}\n{"query": ["x"]}\n{"query": "b"}\n'
    )
    code, rows, _, _ = run(source)
    assert code == 0
    assert [row["query"] for row in rows] == ["a", "b"]
    rejects = read_rows(tmp_path / "out.rejects.jsonl")
    assert [(r["line"], r["field"]) for r in rejects] == [(2, "row"), (4, "query"), (5, "query[0]")]
    summary = json.loads((tmp_path / "out.summary.json").read_text())
    assert (summary["read"], summary["written"], summary["rejected"]) == (5, 2, 3)
    assert run(source, "--strict", "--overwrite")[0] == 1


def test_a_column_named_as_one_of_ours_is_kept_under_another_name(run):
    _, [row], _, _ = run([{"query": "a", "response": "old", "seed": 7}])
    assert (row["input_response"], row["input_seed"], row["seed"]) == ("old", 7, 42)
    rows = [
        {"query": "a", "input_response": "older", "response": "old"},
        {"query": "a", "response": "old", "input_response": "older"},
    ]
    _, rows, _, _ = run(rows, "--overwrite")
    kept = [{value for name, value in row.items() if name.startswith("input_")} for row in rows]
    assert kept == [{"old", "older"}] * 2


@pytest.mark.parametrize("identity", ["row-17", 0, 17])
def test_a_row_of_a_benchmark_keeps_its_id(run, identity):
    given = {"id": identity, "question": "How much is 8 * 9?", "answer": "#### 72"}
    _, [row], _, _ = run([given])
    assert (row["id"], row["question"]) == (str(identity), given["question"])
    question = {"question_id": 81, "category": "math", "turns": ["How much?"], "id": identity}
    _, [row], _, _ = run([question], "--overwrite")
    assert (row["id"], row["question_id"], row["input_id"]) == ("81", 81, identity)


def test_drafts_of_all_layers_are_written_on_request(run):
    _, [row], _, _ = run(ROWS[:1], "--width", "3", "--layers", "2", "--keep-drafts")
    assert [len(layer["drafts"]) for layer in row["layers"]] == [3, 3, 1]
    assert row["layers"][2]["drafts"][0]["text"] == row["response"]


def test_rows_tell_the_seed_of_their_run(run):
    for flags, seed in (((), 42), (("--seed", "7"), 7), (("--preset", "release"), 2025)):
        _, rows, _, _ = run(ROWS, *flags, "--overwrite")
        assert {row["seed"] for row in rows} == {seed}


def test_rows_have_stable_types_for_datasets(run, tmp_path):
    import datasets

    run(ROWS, "--keep-drafts")
    table = datasets.load_dataset(
        "json", data_files=str(tmp_path / "out.jsonl"), split="train", cache_dir=str(tmp_path)
    )
    assert table.num_rows == 6
    assert len(table[0]["layers"]) == 3


def test_the_summary_counts_tokens_by_kind_and_layer(run, tmp_path):
    _, rows, _, _ = run(ROWS, "--width", "2", "--layers", "1")
    summary = json.loads((tmp_path / "out.summary.json").read_text())
    assert [(row["layer"], row["requests"], row["samples"]) for row in summary["layers"]] == [
        (0, 6, 12),
        (1, 6, 6),
    ]
    for kind in ("prompt", "cached", "completion"):
        assert summary["total"][kind] == sum(u[kind] for row in rows for u in row["usage"])
    assert summary["session"]["requests_asked"] == 12


def test_the_summary_adds_up_the_sessions_of_a_run(run, tmp_path):
    def summary():
        return json.loads((tmp_path / "out.summary.json").read_text())

    run(ROWS, "--width", "2", "--layers", "1", "--limit", "2")
    first = summary()
    assert first["sessions"][0]["seconds"] == pytest.approx(first["session"]["seconds"], abs=0.1)
    run(ROWS, "--width", "2", "--layers", "1", "--overwrite")
    run(ROWS, "--width", "2", "--layers", "1", "--overwrite", "--export")
    both = summary()
    assert [session["requests_asked"] for session in both["sessions"]] == [4, 8]
    assert both["seconds"] > both["sessions"][0]["seconds"] == first["seconds"] > 0
    assert both["session"] == {}


TOLD = ("--base-url", "http://nowhere.invalid/v1", "--draft-tokens", "100")


def flops(printed):
    """FLOPs by the tokens computed and by appendix C, as a dry run tells them."""
    found = re.search(r"FLOPs: (\S+) by the tokens computed, (\S+) by the paper's", printed)
    return float(found[1]), float(found[2])


def test_flops_count_every_turn_as_a_query(run, tiny_llama):
    question = {"question_id": 1, "category": "math", "turns": ["Sum of 1 and 2?", "Of 3 and 4?"]}
    singly = [
        question | {"question_id": i, "turns": [turn]} for i, turn in enumerate(question["turns"])
    ]
    told = (*TOLD, "--tokenizer", str(tiny_llama))
    exact, paper = flops(run([question], "--dry-run", engine=told)[2])
    exact_singly, paper_singly = flops(run(singly, "--dry-run", engine=told)[2])
    # The second turn has the first in its prompt, which is little beside five drafts.
    assert paper_singly < paper < 1.2 * paper_singly
    assert exact_singly < exact < 1.2 * exact_singly


def test_flops_count_rows_that_are_answered(run, tmp_path, tiny_llama):
    bad = [{"id": f"bad{i}", "query": " "} for i in range(3)]
    told = (*TOLD, "--tokenizer", str(tiny_llama))
    alone = flops(run(ROWS[:1], "--dry-run", engine=told)[2])
    assert flops(run([*bad, ROWS[0]], "--dry-run", engine=told)[2]) == alone


def test_equal_rows_are_counted_once_as_they_are_asked_once(run, tmp_path, tiny_llama):
    told = (*TOLD, "--tokenizer", str(tiny_llama))
    alone = run(ROWS[:1], "--dry-run", engine=told)[2]
    thrice = run(ROWS[:1] * 3, "--dry-run", engine=told)[2]
    assert flops(thrice) == flops(alone)
    assert "2 rows ask what an earlier one asks, and take nothing more" in thrice
    code, rows, _, _ = run(ROWS[:1] * 3, "--width", "2", "--layers", "1")
    summary = json.loads((tmp_path / "out.summary.json").read_text())
    assert (code, len(rows), rows[0]) == (0, 3, rows[1])
    assert (summary["read"], summary["written"], summary["repeated"]) == (3, 3, 2)
    assert summary["total"]["requests"] == summary["session"]["requests_asked"] == 2
    assert summary["finish_reasons"] == {"stop": 1}


def test_the_same_command_again_asks_nothing(run, tmp_path):
    _, first, _, _ = run(ROWS)
    code, again, _, err = run(ROWS)
    assert code == 2
    assert "pass --overwrite" in err
    _, again, _, _ = run(ROWS, "--overwrite")
    assert again == first
    summary = json.loads((tmp_path / "out.summary.json").read_text())
    assert summary["session"]["requests_asked"] == 0


@pytest.mark.parametrize("suffix", ["json", "jsonl.gz", "parquet", "jsonl.zst"])
def test_outputs_of_every_format(run, tmp_path, suffix):
    from aft_factory.records.tables import read_rows as read_table

    _, expected, _, _ = run(ROWS)
    run(ROWS, "--keep-drafts", output=f"other.{suffix}")
    rows = [line.value for line in read_table(str(tmp_path / f"other.{suffix}"))]
    assert [row["response"] for row in rows] == [row["response"] for row in expected]


def test_parquet_holds_every_column_of_every_row(run, tmp_path, caplog):
    import pyarrow.parquet as pq

    mixed = [*ROWS, {"id": "q6", "query": "What is 6+6?", "tag": "six", "note": "twelve"}]
    code, _, _, _ = run(mixed, output="out.parquet")
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert code == 0
    assert [json.loads(row["tag"]) for row in rows] == [row["tag"] for row in mixed]
    assert [row["note"] for row in rows] == [None] * 6 + ["twelve"]
    assert [row["events"] for row in rows] == [[]] * 7
    assert "column tag is JSON text" in caplog.text


def test_every_strategy_runs_from_the_command(run):
    for strategy, *flags in [
        ("sequential_revision", "--layers", "3"),
        ("parallel_sampling", "--width", "3"),
        ("best_of_n", "--width", "3"),
        ("majority_vote", "--width", "3"),
        ("self_moa_seq", "--width", "8", "--window", "3"),
        ("rsa", "--width", "4", "--subset", "2", "--layers", "2"),
        ("moa", "--proposers", "a", "b"),
    ]:
        code, rows, _, err = run(ROWS, "--strategy", strategy, *flags, output=f"{strategy}.jsonl")
        assert (code, err) == (0, "")
        assert all(row["response"] for row in rows)


def test_best_of_n_takes_what_the_reward_model_likes_best(run, tiny_reward_model):
    flags = ("--strategy", "best_of_n", "--width", "4", "--keep-drafts")
    code, rows, _, _ = run(ROWS, *flags, "--reward-model", str(tiny_reward_model))
    assert code == 0
    for row in rows:
        [scores] = [details["scores"] for details in row["details"]]
        drafts = [draft["text"] for draft in row["layers"][0]["drafts"]]
        assert len(set(scores)) == 4
        assert row["response"] == drafts[scores.index(max(scores))]


def test_flags_override_the_file_which_overrides_the_preset(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("width: 7\ntemperature: 1\nengine_args:\n  dtype: float32\nmodel: m\n")
    flags = ["in", "--preset", "alpaca_eval", "--config", str(config), "--temperature", "0.2"]
    settings = COMMAND.read(vars(COMMAND.parser().parse_args(flags)))
    assert (settings.width, settings.layers, settings.temperature) == (7, 2, 0.2)
    assert (settings.final_temperature, settings.engine_args) == (0.9, {"dtype": "float32"})


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_a_presets_width_layers_and_final_layer_do_not_stick_to_another_strategy(run, strategy):
    for preset in preset_names():
        flags = ["--preset", preset, "--task", "records", "--strategy", strategy]
        flags += ["--proposers", "a"] if strategy == "moa" else []
        code, _, _, err = run(ROWS[:1], *flags, output=f"{preset}.jsonl")
        assert (code, err) == (0, "")


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_settings_of_the_final_layer_are_refused_where_there_is_none(run, tmp_path, strategy):
    flags = ["--strategy", strategy, "--final-temperature", "0.123", "--final-max-tokens", "77"]
    flags += ["--proposers", "a"] if strategy == "moa" else []
    code, _, _, err = run(ROWS, *flags)
    if not STRATEGIES[strategy].has_final:
        assert code == 2
        assert f"final_temperature: {strategy} has no final layer; set temperature" in err
        assert f"final_max_tokens: {strategy} has no final layer; set max_tokens" in err
        code, _, _, _ = run(ROWS, *flags[:2])
    assert code == 0
    with Journal(tmp_path / "out.jsonl.journal", read_only=True) as journal:
        used = {request["sampling"]["temperature"] for _, request, _ in journal.replies()}
    assert used == ({0.7, 0.123} if STRATEGIES[strategy].has_final else {0.7})


def test_a_flag_adds_to_the_columns_of_a_file(run, tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("column: {messages: ask}\n")
    row = {"id": "1", "ask": "How many?", "query": "Which?", "context": "6 pails"}
    flags = ("--config", str(path), "--column", "ignore=context")
    assert run([row], *flags)[0] == 0
    summary = json.loads((tmp_path / "out.summary.json").read_text())
    assert summary["settings"]["column"] == {"messages": "ask", "ignore": "context"}
    code, _, out, _ = run([row], "--config", str(path), "--overwrite")
    assert (code, "1 x context: may belong" in out) == (1, True)


def test_a_benchmarks_file_is_written_of_rows_known_as_its_own(run, tmp_path):
    own = tmp_path / "own.jsonl"
    flags = ("--task-output", str(own))
    row = {"idx": 7, "question": "How much is 8 * 9?", "answer": "8 * 9 = 72\n#### 72"}
    assert run([row], *flags)[0] == 0
    assert json.loads(own.read_text())["answer"] == row["answer"]
    code, _, _, err = run([row | {"answer": "72"}], *flags, "--overwrite")
    assert code == 2
    assert "needs --task gsm8k, if these are its rows (question, answer)" in err


def test_all_wrong_settings_are_reported_at_once_with_suggestions(run, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("widht: 3\ntop_p: high\nseed: 1.5\n")
    code, _, _, err = run(ROWS, "--config", str(config))
    assert code == 2
    assert "unknown key 'widht'; did you mean 'width'?" in err
    assert "top_p: expected a number, got 'high'" in err
    assert "seed: expected a whole number, got 1.5" in err
    flags = ("--top-p", "0", "--strategy", "rsaa", "--width", "0", "--retries", "-1")
    code, _, _, err = run(ROWS, *flags)
    assert code == 2
    for words in ("top_p: expected", "did you mean 'rsa'?", "width: expected", "retries: expected"):
        assert words in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--strategy", "majority_vote", "--layers", "2"], "layers: majority_vote has no such"),
        (["--task-output", "m.json"], "task_output: needs --task"),
        (["--task", "alpaca_eval", "--task-output", "m.txt"], "unknown format"),
        (["--task", "mt_bench", "--task-output", "m.json"], "ends in .jsonl"),
        (["--strategy", "moa"], "proposers: moa needs"),
        (["--strategy", "rsa", "--reward-model", "x"], "reward_model: rsa asks no"),
        (["--reward-dtype", "float32"], "reward_dtype: propose_and_aggregate asks no"),
        (["--sampling-args", "seed=1"], "sampling_args: seed is set by --seed"),
        (
            ["--sampling-args", "temperature=0"],
            "temperature is set by --temperature and --final-temperature",
        ),
        (
            ["--sampling-args", "max_completion_tokens=9"],
            "max_completion_tokens is set by --max-tokens and --final-max-tokens",
        ),
        (
            ["--sampling-args", "min_p=0.1", "--sampling-args", "top_k=3"],
            "top_k is set by --top-k and --final-top-k",
        ),
        *(
            (
                ["--sampling-args", f"{name}=1"],
                f"sampling_args: {name} is the run's own to set; leave it out",
            )
            for name in ("n", "stop", "messages", "stream", "best_of")
        ),
        (["--width", "99999999999999"], "width: expected a number from 1 to 10000"),
        (["--template", "papr"], "did you mean 'paper'"),
        (["--preset", "alpaca"], "did you mean 'alpaca_eval'"),
        (["--rejects", "{input}"], "--rejects would replace the input"),
        (["--journal", "{output}"], "--journal and --output would write one file"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_asked(run, tmp_path, flags, words):
    names = {"input": tmp_path / "in.jsonl", "output": tmp_path / "out.jsonl"}
    code, rows, _, err = run(ROWS, *(flag.format(**names) for flag in flags))
    assert (code, rows) == (2, None)
    assert words in err


def test_a_chat_template_that_does_not_reach_the_server_is_refused(run):
    engine = ("--base-url", "http://127.0.0.1:9/v1", "--chat-template", "llama3")
    code, _, _, err = run(ROWS, engine=engine)
    assert code == 2
    assert "chat_template: a server renders by its own; start it with that one (vLLM's" in err


def test_without_an_engine_it_says_which_flags_name_one(run):
    assert "--model DIR_OR_NAME or --base-url URL" in run(ROWS, engine=())[3]


def test_a_missing_input_is_named(run):
    code, _, _, err = run("nowhere.jsonl")
    assert (code, "nowhere.jsonl: no such file" in err) == (2, True)


def test_an_empty_input_gives_an_empty_output(run):
    code, rows, _, _ = run([])
    assert (code, rows) == (0, [])


def test_a_dry_run_tells_requests_and_tokens_and_writes_nothing(run, tmp_path, tiny_llama):
    before = sorted(tmp_path.iterdir())
    code, rows, out, err = run(
        ROWS, "--dry-run", "--width", "3", "--draft-tokens", "100",
        engine=("--base-url", "http://nowhere.invalid/v1", "--tokenizer", str(tiny_llama)),
    )  # fmt: skip
    assert (code, rows, err) == (0, None, "")
    lines = out.splitlines()
    assert lines[0].startswith("6 rows, 0 of them unusable")
    [total] = [line.split() for line in lines if line.split()[0] == "all"]
    assert total[:3] == ["all", "18", "42"]
    assert total[-1] == "4,200"
    assert "FLOPs:" in lines[-1]
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "in.jsonl"])


def test_inspect_shows_a_query_layer_by_layer(run, tmp_path, capsys):
    _, [row], _, _ = run(ROWS[:1], "--width", "2", "--layers", "1", "--keep-drafts")
    journal = str(tmp_path / "out.jsonl.journal")
    assert main(["--inspect", journal, "q0"]) == 0
    shown = capsys.readouterr().out
    assert "[user] What is 0+0?" in shown
    position = -1
    for layer in row["layers"]:
        for draft in layer["drafts"]:
            found = shown.index(f"draft {draft['slot']} (stop): {draft['text']}")
            assert found > position
            position = found
    assert main(["--inspect", journal, "q1"]) == 2
    assert "no query 'q1' among its 1, such as q0" in capsys.readouterr().err
    assert main(["--inspect", "nowhere", "q1"]) == 2


def test_inspect_leaves_out_what_the_server_did_not_tell(tmp_path, capsys):
    request = Request([{"role": "user", "content": "?"}], 1, Sampling(), seed=1)
    with Journal(tmp_path / "j") as journal:
        journal.keep_query("q0", [list(request.prompt)])
        journal.begin_run("r")
        for layer, tokens in enumerate(((9, 4, 2), (9, None, 2), (None, None, None))):
            reply = Reply.of((Completion("six"),), *tokens)
            journal.keep(bytes([layer]), Place("q0", 0, layer, 0), "m", request, reply)
    shown = inspected(capsys, tmp_path / "j")
    assert "; 9 tokens of prompt (4 cached), 2 written\n" in shown
    assert "; 9 tokens of prompt, 2 written\n" in shown
    assert "; ? tokens of prompt, ? written\n" in shown


def inspected(capsys, journal, name="q0"):
    assert main(["--inspect", str(journal), name]) == 0
    return capsys.readouterr().out


def test_inspect_shows_the_run_that_was_last_at_work(run, tmp_path, capsys):
    journal = tmp_path / "out.jsonl.journal"
    shown = {}
    for seed in ("1", "2"):
        flags = ("--width", "2", "--layers", "1", "--seed", seed, "--overwrite")
        run(ROWS[:2], *flags)
        shown[seed] = inspected(capsys, journal)
        assert shown[seed].count("  draft 0 (stop)") == 2  # of layer 0, and of layer 1
    assert shown["1"] != shown["2"]
    assert "of 2 runs that had it, the one that was last at work" in shown["2"]
    run(ROWS[:2], "--width", "2", "--layers", "1", "--seed", "1", "--overwrite")
    assert inspected(capsys, journal).splitlines()[2:] == shown["1"].splitlines()[1:]
    # A run without the query does not hide it.
    run(ROWS[1:2], "--width", "2", "--layers", "1", "--seed", "3", "--overwrite")
    assert inspected(capsys, journal).splitlines()[2:] == shown["1"].splitlines()[1:]


def test_inspect_shows_the_drafts_that_a_run_took_from_another(run, tmp_path, capsys):
    for layers in ("1", "2"):
        run(ROWS[:1], "--width", "2", "--layers", layers, "--overwrite")
    shown = inspected(capsys, tmp_path / "out.jsonl.journal")
    assert shown.count("layer") == 3
    assert [shown.count(f"  draft {i} (stop)") for i in (0, 1)] == [3, 2]


OUTCOME = {"answers": [], "finish_reasons": [], "details": [], "events": [], "problem": None, "about": None}  # fmt: skip


def test_inspect_shows_events_and_how_the_query_ended(tmp_path, capsys):
    event = {"turn": 0, "layer": 1, "slot": 3, "event": "empty"}
    endings = {
        "voted": {"answers": ["It is 7."], "finish_reasons": ["stop"], "details": [{"votes": ["7"]}]},
        "failed": {"events": [event], "problem": "layer 1: 1 of 1 drafts empty", "about": "drafts"},
    }  # fmt: skip
    with Journal(tmp_path / "j") as journal:
        journal.begin_run("settings")
        for name in (*endings, "under way"):
            journal.keep_query(name, [[{"role": "user", "content": "How many?"}]])
            reply = Reply.of((Completion(f"draft of {name}"),), 10, 0, 2)
            request = Request(name, 1, Sampling(), 1)
            journal.keep(request.key("m"), Place(name, 0, 0, 0), "m", request, reply)
        for name, ending in endings.items():
            journal.keep_outcome(name.encode(), OUTCOME | ending, query=name, done=True)
    voted = inspected(capsys, tmp_path / "j", "voted")
    assert voted.endswith('answer (stop): It is 7.\n  votes: ["7"]\n')
    failed = inspected(capsys, tmp_path / "j", "failed")
    assert (
        failed.index("draft of failed") < failed.index("layer 1 -") < failed.index("draft 3: empty")
    )
    assert failed.endswith("rejected: drafts: layer 1: 1 of 1 drafts empty\n")
    assert inspected(capsys, tmp_path / "j", "under way").endswith("not done yet\n")


def test_inspect_says_so_where_several_rows_have_one_id(run, tmp_path, capsys):
    run([{"id": "q0", "query": "One?"}, {"id": "q0", "query": "Two?"}])
    shown = inspected(capsys, tmp_path / "out.jsonl.journal")
    assert "(2 rows have this id: their drafts stand side by side)" in shown


def test_a_journal_of_an_older_version_is_refused_in_clear_words(run, tmp_path, capsys):
    journal = tmp_path / "out.jsonl.journal"
    run(ROWS)
    with sqlite3.connect(journal) as db:
        db.execute("PRAGMA user_version = 0")  # as it was
    db.close()
    for flags in (["--inspect", str(journal), "q0"], []):
        code, err = (
            (main(flags), capsys.readouterr().err) if flags else run(ROWS, "--overwrite")[::3]
        )
        assert code == 2
        assert f"error: {journal}: another version of aft-factory wrote this journal" in err


def test_inspect_keeps_a_models_text_from_steering_the_terminal(tmp_path, capsys):
    reply = Reply((Completion("\x1b[2Jboo\nnext"),), Usage())
    with Journal(tmp_path / "j") as journal:
        journal.keep_query("q", [[{"role": "user", "content": "\x1b]0;title\x07"}]])
        place = Place("q", 0, 0, 0)
        journal.keep(b"k", place, "m", Request("?", 1, Sampling(), 1), reply)
    main(["--inspect", str(tmp_path / "j"), "q"])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\\x1b[2Jboo\n      next" in shown


def test_a_file_that_is_no_journal_is_refused(run, tmp_path):
    (tmp_path / "out.jsonl.journal").write_text("something of mine" * 100)
    code, rows, _, err = run(ROWS)
    assert (code, rows) == (2, None)
    assert "not a journal" in err
    assert (tmp_path / "out.jsonl.journal").read_text().startswith("something of mine")


def test_our_own_records_can_be_the_input(run):
    code, rows, _, _ = run(demo_rows()[:5])
    assert code == 0
    assert [row["proposals"] for row in rows] == [row["proposals"] for row in demo_rows()[:5]]


def test_alpaca_eval_in_and_out(run, tmp_path, real):
    source = real.path("alpaca_eval_v2.aft.jsonl")
    code, rows, _, _ = run(
        source, "--preset", "alpaca_eval", "--limit", "20",
        "--task-output", str(tmp_path / "model_outputs.json"), "--generator", "aft",
    )  # fmt: skip
    outputs = json.loads((tmp_path / "model_outputs.json").read_text())
    queries = [row["query"][0]["content"] for row in real.rows("alpaca_eval_v2.aft.jsonl")[:20]]
    assert code == 0
    assert outputs == [
        {"instruction": query, "output": row["response"], "generator": "aft"}
        for query, row in zip(queries, rows, strict=True)
    ]


def test_mt_bench_in_and_out(run, tmp_path, real):
    code, rows, _, _ = run(
        real.path("mt_bench_questions.jsonl"), "--preset", "mt_bench",
        "--task-output", str(tmp_path / "aft.jsonl"),
    )  # fmt: skip
    answers = read_rows(tmp_path / "aft.jsonl")
    assert code == 0
    assert [a["question_id"] for a in answers] == [
        row["question_id"] for row in real.rows("mt_bench_questions.jsonl")
    ]
    assert [a["choices"][0]["turns"] for a in answers] == [row["responses"] for row in rows]
    assert all(row["response"] == row["responses"][1] for row in rows)
    with Journal(tmp_path / "out.jsonl.journal", read_only=True) as journal:
        final = {
            (place.query, place.turn): request["sampling"]["temperature"]
            for place, request, _ in journal.replies()
            if place.layer == 2
        }
    assert len(answers) == real.either(sample=16, whole=80)
    assert len(final) == 2 * len(answers)
    assert (final["81", 0], final["111", 1], final["141", 0]) == (0.7, 0.0, 0.1)


def test_a_final_temperature_that_is_asked_for_goes_before_the_tasks(run, tmp_path, real):
    source = real.path("mt_bench_questions.jsonl")
    run(source, "--preset", "mt_bench", "--final-temperature", "0.33", "--limit", "2")
    with Journal(tmp_path / "out.jsonl.journal", read_only=True) as journal:
        temperatures = {
            request["sampling"]["temperature"]
            for place, request, _ in journal.replies()
            if place.layer == 2
        }
    assert temperatures == {0.33}


@pytest.mark.parametrize("damaged", ["not json", "null", '["question", "answer"]'])
def test_a_first_row_that_is_damaged_does_not_hide_the_layout(run, tmp_path, damaged):
    source = tmp_path / "gsm8k.jsonl"
    source.write_text(f'{damaged}\n{{"question": "How much is 8 * 9?", "answer": "#### 72"}}\n')
    code, rows, _, _ = run(source)
    assert (code, [row["question"] for row in rows]) == (0, ["How much is 8 * 9?"])
    assert len(read_rows(tmp_path / "out.rejects.jsonl")) == 1


@pytest.mark.parametrize(
    ("preset", "name"),
    [("gsm8k", "gsm8k_train500.jsonl"), ("ifeval", "ifeval_input_data.jsonl")],
)
def test_gsm8k_and_ifeval_in_and_out(run, tmp_path, preset, name, real):
    flags = ("--preset", preset, "--limit", "30", "--task-output", str(tmp_path / "task.jsonl"))
    code, rows, _, _ = run(real.path(name), *flags)
    outputs = read_rows(tmp_path / "task.jsonl")
    assert (code, len(rows)) == (0, 30)
    assert [row["response"] for row in outputs] == [row["response"] for row in rows]


def test_each_layer_can_be_decoded_by_settings_of_its_own(run, monkeypatch):
    from aft_factory.engines.scripted import ScriptedEngine

    asked = []
    original = ScriptedEngine.sample

    async def sample(self, request):
        asked.append(request.sampling)
        return await original(self, request)

    monkeypatch.setattr(ScriptedEngine, "sample", sample)
    flags = "--layers 2 --width 2 --temperature 1.2 --max-tokens 900 --sampling-args min_p=0.1"
    flags += " --middle-temperature 0.5 --middle-sampling-args chat_template_kwargs={a: 1}"
    flags = [*flags.split("chat_template")[0].split(), "chat_template_kwargs={a: 1}"]
    flags += ["--final-max-tokens", "77", "--final-sampling-args", "min_p=0.2"]
    assert run([{"query": "a"}], *flags)[0] == 0
    drafts, middle, final = asked
    assert (drafts.temperature, drafts.max_tokens, drafts.extra) == (1.2, 900, {"min_p": 0.1})
    extra = {"min_p": 0.1, "chat_template_kwargs": {"a": 1}}
    assert (middle.temperature, middle.max_tokens, middle.extra) == (0.5, 900, extra)
    assert (final.temperature, final.max_tokens, final.extra) == (1.2, 77, {"min_p": 0.2})


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--strategy majority_vote --middle-top-k 3", "middle_top_k: majority_vote has no layers between"),
        ("--strategy parallel_sampling --middle-sampling-args min_p=1", "middle_sampling_args: parallel_sampling has no layers between"),
        ("--strategy majority_vote --final-top-p 0.5", "final_top_p: majority_vote has no final layer; set top_p"),
        ("--final-sampling-args n=2", "sampling_args: n is the run's own to set"),
        ("--strategy best_of_n --final-sampling-args min_p=1", "final_sampling_args: best_of_n has no final layer"),
        ("--middle-sampling-args n=2", "sampling_args: n is the run's own to set"),
        ("--sampling-args chat_template_kwargs=5", "chat_template_kwargs: expected names with values"),
        ("--final-sampling-args chat_template_kwargs=[a]", "chat_template_kwargs: expected names with values"),
        ("--drafts tail:0", "drafts: expected answer, full, tail:N or summary, got 'tail:0'"),
    ],
)  # fmt: skip
def test_layers_that_a_strategy_does_not_have_are_not_set(run, flags, words):
    code, _, _, err = run([{"query": "a"}], *flags.split())
    assert (code, words in err) == (2, True)


@pytest.mark.parametrize(
    ("options", "context", "told"),
    [
        ({"width": 5, "max_tokens": 1000}, 5999, True),
        ({"width": 5, "max_tokens": 1000}, 6000, False),
        ({"width": 5, "max_tokens": 1000, "layers": 0}, 1500, False),
        ({"width": 5, "max_tokens": 1000, "middle_max_tokens": 1500}, 8000, True),
        ({"strategy": "rsa", "width": 9, "subset": 2, "max_tokens": 1000}, 3000, False),
        ({"strategy": "self_moa_seq", "width": 9, "window": 3, "max_tokens": 1000}, 3000, True),
        ({"strategy": "majority_vote", "max_tokens": 1000}, 1200, False),
        ({"max_tokens": 1000}, None, False),
    ],
)
def test_drafts_that_cannot_fit_are_told_before_the_run(options, context, told, caplog):
    from aft_factory.run.answering import warn_of_room
    from aft_factory.run.settings import RunSettings

    warn_of_room(RunSettings(**options), context)
    assert ("do not fit the context" in caplog.text) is told
    assert ("long drafts will be shortened; --max-tokens" in caplog.text) is told
    caplog.clear()
    warn_of_room(RunSettings(**options), context, fitted=False)
    assert ("--tokenizer shortens long drafts; --max-tokens" in caplog.text) is told


@pytest.mark.parametrize(
    ("flags", "who"),
    [
        ([], "no model is"),
        (["--model", "m"], "m is not"),
        (
            ["--model", "m", "--base-url", "http://me:pw@127.0.0.1:9/v1?key=1"],
            "http://127.0.0.1:9/v1 is not",
        ),
    ],
)
def test_a_script_is_told_of_and_the_model_that_it_stands_for(run, caplog, flags, who):
    assert run([{"query": "a"}], *flags)[0] == 0
    assert caplog.messages == [f"--scripted: {who} asked, the answers are made up"]
