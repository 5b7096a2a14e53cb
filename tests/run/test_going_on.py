"""Going on: what one run left is in nobody's way, and what the next one takes is told.

Run: pytest tests/run/test_going_on.py
"""

import json
from pathlib import Path

import pytest
from asking_tools import command, fails, read_lines, write_lines

from aft_factory.asking.journal import Journal
from aft_factory.convert.__main__ import main as convert
from aft_factory.engines.engine import EngineError
from aft_factory.engines.scripted import babble
from aft_factory.run.__main__ import main

ROWS = [{"id": f"q{i}", "query": f"What is {i}?"} for i in range(6)]
ALPACA = [{"instruction": f"Name {i} birds.", "dataset": "koala"} for i in range(4)]
ONE_BY_ONE = ("--in-flight", "2", "--admit", "1")
SIZE = ("--width", "2", "--layers", "1")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command on rows; returns (code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(rows, *flags, script=None):
        source = write_lines(Path("in.jsonl"), rows)
        return command(monkeypatch, capsys, script, source, "out.jsonl", *SIZE, *flags)

    return run


def breaks(words):
    """A script whose engine dies at prompts with these words."""

    def script(request):
        if words in request.prompt[-1]["content"]:
            raise EngineError("the engine died", "fatal")
        return babble(request)

    return script


def summary():
    return json.loads(Path("out.summary.json").read_text())


def test_after_an_export_the_same_command_goes_on(run):
    code, _, _ = run(ROWS, *ONE_BY_ONE, script=breaks("4"))
    assert (code, Path("out.jsonl").exists()) == (2, False)
    assert run(ROWS, "--export")[0] == 0
    some = read_lines(Path("out.jsonl"))
    assert 0 < len(some) < 6
    assert summary()["unfinished"] == 6 - len(some)
    assert run(ROWS)[0] == 0  # no --overwrite
    assert [row["id"] for row in read_lines(Path("out.jsonl"))] == [f"q{i}" for i in range(6)]
    # What is done is not replaced without a word.
    assert run(ROWS)[0] == 2


def test_rejects_that_an_export_left_by_name_are_no_obstacle_either(run):
    flags = ["--rejects", "bad.jsonl"]
    run([{"no": 1}, *ROWS], *flags, *ONE_BY_ONE, script=breaks("4"))
    assert run([{"no": 1}, *ROWS], *flags, "--export")[0] == 0
    assert len(read_lines(Path("bad.jsonl"))) == 1
    assert run([{"no": 1}, *ROWS], *flags)[0] == 0


def test_exists_says_that_the_journal_is_used_again(run):
    assert run(ROWS)[0] == 0
    assert run(ROWS)[2] == (
        "error: out.jsonl exists; pass --overwrite to replace it; the answers in "
        "out.jsonl.journal are used again\n"
    )
    Path("out.jsonl.journal").unlink()
    assert run(ROWS)[2] == "error: out.jsonl exists; pass --overwrite to replace it\n"


@pytest.mark.parametrize("again", [False, True])
def test_where_no_row_is_written_no_empty_output_is_in_the_way(run, again):
    if again:  # nor one of before, which would not go with the new rejects
        run(ROWS)
    code, out, _ = run(ROWS, *(["--overwrite"] if again else []), "--seed", "1", script=fails("is"))
    assert (code, Path("out.jsonl").exists()) == (1, False)
    assert out.startswith("read 6 rows: 0 written, 6 rejected (out.rejects.jsonl)\n")
    assert len(read_lines(Path("out.rejects.jsonl"))) == 6
    assert run(ROWS, "--seed", "1")[0] == 0
    assert len(read_lines(Path("out.jsonl"))) == 6
    assert not Path("out.rejects.jsonl").exists()


def test_nor_is_a_benchmarks_file_without_an_answer(run):
    flags = ["--task-output", "model.json", "--task", "alpaca_eval"]
    code, out, _ = run(ALPACA, *flags, script=fails("Name"))
    assert (code, Path("model.json").exists()) == (1, False)
    assert "model.json is not written: no row has an answer\n" in out
    assert run(ALPACA, *flags)[0] == 0


def test_nor_is_a_training_file_without_a_row(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_lines(Path("in.jsonl"), [{"ask": "How many?", "proposals": ["5"], "aggregation": "5"}])
    argv = ["proposals", "in.jsonl", "--output", "x.jsonl", "--quiet"]
    assert convert(argv) == 1
    assert capsys.readouterr().out.startswith("read 1 rows: 0 written, 1 rejected (x.rejects")
    assert not Path("x.jsonl").exists()
    assert convert([*argv, "--column", "messages=ask"]) == 0


def last_line(out):
    """The last line of what a run tells of itself, before what comes next."""
    return [line for line in out.splitlines() if not line.startswith("next: ")][-1]


def test_the_last_line_tells_what_was_asked_and_what_the_journal_had(run):
    assert last_line(run(ROWS[:2])[1]) == "requests: 4 asked, 0 from the journal"
    out = run(ROWS, "--overwrite")[1]
    assert last_line(out) == "requests: 8 asked, 4 from the journal"
    out = run(ROWS, "--overwrite")[1]
    assert last_line(out) == "requests: 0 asked, 12 from the journal"
    out = run(ROWS, "--overwrite", "--export")[1]
    assert last_line(out) == "requests: 0 asked, 12 from the journal"


def test_what_was_answered_of_a_query_before_it_ended_is_from_the_journal(run):
    def aggregations_fail(request):
        if request.prompt[0]["role"] == "system":
            raise EngineError("the engine died", "fatal")
        return babble(request)

    assert run(ROWS[:1], script=aggregations_fail)[0] == 2
    assert last_line(run(ROWS[:1])[1]) == "requests: 1 asked, 1 from the journal"


def test_a_benchmarks_file_of_before_does_not_stay_beside_an_output_that_is_not_done(run):
    flags = ["--task-output", "model.json", "--task", "alpaca_eval"]
    assert run(ALPACA[:2], *flags)[0] == 0
    more = [*ALPACA, {"instruction": "Name 9 birds.", "dataset": "koala"}]
    code, out, _ = run(more, *flags, "--overwrite", "--export")
    assert (code, Path("model.json").exists(), len(read_lines(Path("out.jsonl")))) == (1, False, 2)
    assert "model.json is not written: 3 rows are not done yet" in out
    assert run(more, *flags)[0] == 0
    assert len(json.loads(Path("model.json").read_text())) == 5


def test_a_benchmarks_file_that_is_not_named_again_is_told_to_be_of_before(run):
    assert run(ALPACA, "--task", "alpaca_eval", "--task-output", "model.json")[0] == 0
    again = run(ALPACA, "--overwrite", "--seed", "1")[1]
    warning = "warning: model.json is of the run before; --task-output writes it anew\n"
    assert warning in again
    assert warning not in run(ALPACA, "--overwrite", "--seed", "2")[1]  # whose run had none
    named = ["--task", "alpaca_eval", "--task-output", "model.json", "--overwrite"]
    run(ALPACA, *named)
    assert warning not in run(ALPACA, *named)[1]


def left(out):
    return [line for line in out.splitlines() if "left to pay" in line or "other settings" in line]


def test_a_dry_run_tells_what_is_left_to_pay(run):
    flags = ["--dry-run", "--draft-tokens", "100"]
    assert left(run(ROWS, *flags)[1]) == []  # there is no journal
    run(ROWS[:2])
    [line] = left(run(ROWS, *flags)[1])
    assert line.startswith("left to pay: 8 requests, ")
    assert line.endswith(" 1,200 written; 2 of 6 rows are done in out.jsonl.journal")
    run(ROWS, "--overwrite")
    everything = "left to pay: nothing; all 6 rows are done in out.jsonl.journal"
    assert left(run(ROWS, *flags)[1]) == [everything]
    # Rows that cannot be read, and those that ask the same again, cost nothing.
    assert left(run([*ROWS, {"no": 1}, ROWS[0]], *flags)[1]) == [everything]


def test_a_dry_run_takes_off_what_was_answered_of_a_query_that_has_not_ended(run):
    def aggregations_fail(request):
        if request.prompt[0]["role"] == "system":
            raise EngineError("the engine died", "fatal")
        return babble(request)

    run(ROWS[:1], script=aggregations_fail)
    [line] = left(run(ROWS[:1], "--dry-run", "--draft-tokens", "100")[1])
    assert line.startswith("left to pay: 1 requests, ")
    assert line.endswith(" 100 written; 0 of 1 rows are done in out.jsonl.journal")


def test_a_rejected_row_is_left_to_pay(run):
    run(ROWS, script=fails("3"))
    [line] = left(run(ROWS, "--dry-run")[1])
    assert line.startswith("left to pay: 2 requests, ")


def test_a_dry_run_does_not_reckon_with_answers_to_other_settings(run):
    run(ROWS)
    [line] = left(run(ROWS, "--dry-run", "--temperature", "0.1")[1])
    assert line == (
        "out.jsonl.journal is of a run with other settings (temperature 0.7, now 0.1): what of it "
        "is used again is not reckoned with"
    )
    # What decides no answer is no other setting.
    same = ["--in-flight", "7", "--retries", "1", "--draft-tokens", "9", "--limit", "4"]
    [line] = left(run(ROWS, "--dry-run", *same)[1])
    assert line.startswith("left to pay: nothing; all 4 rows")


def test_a_dry_run_tells_prices(run):
    flags = ["--dry-run", "--draft-tokens", "100", "--price-in", "0", "--price-out", "1000"]
    out = run(ROWS, *flags)[1]  # 6 rows of two drafts and one aggregation of 100 tokens
    assert "\nprice: 1.80, by --price-in and --price-out\n" in out
    cheap = [*flags[:-1], "0.002"]
    assert "\nprice: 0.0000036, by" in run(ROWS, *cheap)[1]  # two digits that tell something
    assert "price" not in run(ROWS, "--dry-run")[1]
    run(ROWS[:2])
    out = run(ROWS, *flags)[1]
    assert out.splitlines()[-1] == "price of that: 1.20, by --price-in and --price-out"
    reads = run(ROWS, "--dry-run", "--price-in", "1e6", "--draft-tokens", "1")[1]
    total = next(line.split() for line in reads.splitlines() if line.split()[0] == "all")
    assert f"\nprice: {total[3]}.00, " in reads


def test_who_only_reads_a_journal_leaves_nothing_behind(run, tmp_path, capsys):
    run(ROWS)
    before = sorted(tmp_path.iterdir())
    assert main(["--inspect", "out.jsonl.journal", "q1"]) == 0
    run(ROWS, "--dry-run")
    assert sorted(tmp_path.iterdir()) == before
    # What a run at work needs stays.
    with Journal(Path("out.jsonl.journal")) as journal:
        journal.begin_run("x")
        assert main(["--inspect", "out.jsonl.journal", "q1"]) == 0
        assert Path("out.jsonl.journal-wal").exists()
