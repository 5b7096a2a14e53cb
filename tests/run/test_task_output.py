"""A benchmark's own file is complete, whatever failed: its scorer dies of a row that is missing, or
scores without it. Read here as the scorers read it."""

import json

import pytest
from asking_tools import command, fails, read_lines, write_lines

GSM8K = [{"question": f"How much is {i} + {i}?", "answer": f"#### {2 * i}"} for i in range(4)]
IFEVAL = [{"key": i, "prompt": f"Write {i}.", "instruction_id_list": [], "kwargs": []} for i in range(4)]  # fmt: skip
MT_BENCH = [{"question_id": i, "category": "math", "turns": [f"First {i}?", f"Second {i}?"]} for i in range(4)]  # fmt: skip
SECOND = fails("2")
ALPACA = [{"instruction": f"Name {i} birds.", "dataset": "koala"} for i in range(4)]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a task of which some prompts fail; returns (code, rows of its file, stdout, summary)."""

    def run(task, rows, *flags, script=SECOND, suffix=".jsonl"):
        source = write_lines(tmp_path / "in.jsonl", rows)
        output, file = tmp_path / "out.jsonl", tmp_path / f"task{suffix}"
        argv = ("--task", task, "--task-output", str(file), "--width", "2", "--layers", "1")
        code, out, _ = command(monkeypatch, capsys, script, source, output, *argv, *flags)
        written = None
        if file.exists():
            written = json.loads(file.read_text()) if suffix == ".json" else read_lines(file)
        return code, written, out, json.loads((tmp_path / "out.summary.json").read_text())

    return run


def test_alpaca_eval_has_every_instruction_in_order_and_an_empty_output_for_one_without(run):
    code, rows, out, _ = run("alpaca_eval", ALPACA, suffix=".json")
    assert code == 1
    assert [row["instruction"] for row in rows] == [row["instruction"] for row in ALPACA]
    assert [bool(row["output"]) for row in rows] == [True, True, False, True]
    assert rows[2] == {
        "dataset": "koala",
        "instruction": "Name 2 birds.",
        "output": "",
        "generator": "aft",
        "rejected": "refused: no 2",
    }
    assert [list(row) for row in rows if "rejected" not in row] == [
        ["dataset", "instruction", "output", "generator"]
    ] * 3
    assert "task.json: 4 rows, 1 of them with an empty answer, marked `rejected`" in out


@pytest.mark.parametrize(
    ("share", "code"), [("0.25", 0), ("0.24", 1), ("1", 0), ("-1", 2), ("nan", 2)]
)
def test_a_share_of_the_answers_may_be_missing_where_that_is_allowed(
    tmp_path, monkeypatch, capsys, share, code
):
    source, file = write_lines(tmp_path / "in.jsonl", ALPACA), tmp_path / "task.json"
    flags = ("--task", "alpaca_eval", "--task-output", str(file), "--allow-failed", share)
    ended, _, err = command(monkeypatch, capsys, SECOND, source, tmp_path / "out.jsonl", *flags)
    assert ended == code
    told = {0: "", 1: "1 of 4 rows have no answer; ", 2: "allow_failed: expected a "}
    assert (told[code] in err, file.exists()) == (True, code < 2)


def test_no_share_allows_a_file_without_any_answer(run):
    code, written, *_ = run("ifeval", IFEVAL, "--allow-failed", "1", script=fails(""))
    assert (code, written) == (1, None)
    assert run("ifeval", IFEVAL, "--allow-failed", "1", "--overwrite", "--strict")[0] == 1


def test_ifeval_finds_every_prompt(run):
    code, rows, _, _ = run("ifeval", IFEVAL)
    found = {row["prompt"]: row["response"] for row in rows}  # as evaluation_lib does
    assert (code, list(found)) == (1, [row["prompt"] for row in IFEVAL])
    assert [bool(found[row["prompt"]]) for row in IFEVAL] == [True, True, False, True]


def test_mt_bench_has_the_first_answer_where_the_second_turn_failed(run):
    code, rows, _, _ = run("mt_bench", MT_BENCH, script=fails("Second 2"))
    turns = {row["question_id"]: row["choices"][0]["turns"] for row in rows}
    assert (code, list(turns)) == (1, [0, 1, 2, 3])
    assert [[bool(text) for text in turns[i]] for i in range(4)] == [
        *([[True, True]] * 2),
        [True, False],
        [True, True],
    ]
    assert ["rejected" in row for row in rows] == [False, False, True, False]


def test_gsm8k_is_scored_over_all_rows_and_a_rejected_one_is_wrong(run):
    def script(request):
        said = request.prompt[-1]["content"]
        failed = fails("How much is 2")(request)
        return (
            failed if isinstance(failed, Exception) else [f"#### {2 * int(said[12])}"] * request.n
        )

    rows = [*GSM8K, {"question": "No gold?"}, "not json"]
    code, written, out, summary = run("gsm8k", rows, script=script)
    assert code == 1
    assert [row["question"] for row in written] == [row["question"] for row in rows[:5]]
    assert [row["correct"] for row in written] == [True, True, False, True, False]
    assert (summary["correct"], summary["accuracy"]) == (3, 0.5)
    assert "accuracy: 50.0% (3 of 6 rows)" in out
    assert "1 rows are not in it" in out


def test_the_accuracy_of_gsm8k_needs_no_file_of_the_benchmarks(tmp_path, monkeypatch, capsys):
    script = lambda request: ["#### 4"] * request.n  # noqa: E731
    argv = (write_lines(tmp_path / "in.jsonl", GSM8K), tmp_path / "out.jsonl")
    code, out, _ = command(monkeypatch, capsys, script, *argv)
    assert (code, "accuracy: 25.0% (1 of 4 rows)" in out) == (0, True)


UNREAD = [
    ("alpaca_eval", ALPACA[0] | {"instruction": " "}, True),
    ("alpaca_eval", {"instruction": 5}, False),
    ("mt_bench", {"question_id": 9, "turns": ["a", " "]}, True),
    ("mt_bench", {"question_id": 9, "turns": "a"}, True),
    ("mt_bench", {"turns": ["a"]}, False),
    ("gsm8k", {"question": "No gold?", "answer": "none"}, True),
    ("gsm8k", {"question": None, "answer": "#### 1"}, False),
    ("ifeval", {"prompt": "No key."}, True),
    ("ifeval", {"key": 5, "prompt": ["x"]}, False),
    *[(task, "not json", False) for task in ("alpaca_eval", "mt_bench", "gsm8k", "ifeval")],
]
OTHERS = {"alpaca_eval": ALPACA[0], "mt_bench": MT_BENCH[0], "gsm8k": GSM8K[0], "ifeval": IFEVAL[0]}


@pytest.mark.parametrize(("task", "row", "named"), UNREAD)
def test_a_row_that_cannot_be_read_is_there_if_its_scorer_can_know_it(run, task, row, named):
    suffix = ".json" if task == "alpaca_eval" else ".jsonl"
    code, rows, out, _ = run(task, [row, OTHERS[task]], suffix=suffix)
    assert code == 1
    assert ["rejected" in written for written in rows] == [True, False][1 - named :]
    assert ("1 rows are not in it" in out) == (not named)
    if task == "mt_bench" and named:
        assert rows[0]["choices"][0]["turns"] == [""] * len(row["turns"])


def test_without_a_failure_nothing_is_marked_and_the_code_is_0(run):
    code, rows, out, _ = run("ifeval", IFEVAL, script=fails("nothing"))
    assert (code, [sorted(row) for row in rows]) == (0, [["prompt", "response"]] * 4)
    assert "task.jsonl: 4 rows\n" in out


def test_an_export_of_a_run_that_is_not_done_leaves_the_file_out(
    run, tmp_path, monkeypatch, capsys
):
    run("ifeval", IFEVAL[:2], script=fails("nothing"))
    source = write_lines(tmp_path / "in.jsonl", IFEVAL)
    file = tmp_path / "other.jsonl"
    output = tmp_path / "again.jsonl"
    flags = ("--journal", str(tmp_path / "out.jsonl.journal"), "--task-output", str(file))
    code, out, _ = command(monkeypatch, capsys, None, source, output, *flags, "--export")
    assert (code, len(read_lines(output)), file.exists()) == (1, 2, False)
    assert f"{file} is not written: 2 rows are not done yet" in out
