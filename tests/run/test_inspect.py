"""Reading what was made: `--inspect` of an output, what the model was asked, and rows for scorers.

Run: pytest tests/run/test_inspect.py
"""

import json
from pathlib import Path

import pytest
from asking_tools import command, fails, read_lines, write_lines

from aft_factory.asking.journal import Journal
from aft_factory.engines.scripted import babble
from aft_factory.inference.strategies import STRATEGIES
from aft_factory.run.__main__ import main
from aft_factory.run.replaying import prompts_of
from aft_factory.sample.__main__ import main as sample

ROWS = [{"id": f"q{i}", "query": f"What is {i}?"} for i in range(3)]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command on rows; returns the prompts that were asked for."""
    monkeypatch.chdir(tmp_path)

    def run(rows, *flags, script=babble):
        asked = []

        def noted(request):
            asked.append(request.prompt)
            return script(request)

        source = write_lines(Path("in.jsonl"), rows)
        command(monkeypatch, capsys, noted, source, "out.jsonl", *flags)
        return asked

    return run


def inspected(capsys, *words):
    assert main(["--inspect", *words]) == 0
    return capsys.readouterr().out


def test_an_output_is_inspected_as_its_journal_is(run, tmp_path, capsys):
    run(ROWS)
    shown = inspected(capsys, "out.jsonl", "q1")
    assert shown.startswith("query q1\n")
    assert shown == inspected(capsys, "out.jsonl.journal", "q1")
    # The first row's, where none is named.
    assert inspected(capsys, "out.jsonl") == inspected(capsys, "out.jsonl", "q0")
    assert inspected(capsys, "out.jsonl.journal") == inspected(capsys, "out.jsonl", "q0")
    # While there is no output yet.
    Path("out.jsonl").unlink()
    assert inspected(capsys, "out.jsonl", "q1") == shown


def test_a_journal_of_another_name_is_found_by_the_summary(run, capsys):
    run(ROWS, "--journal", "kept.db")
    assert inspected(capsys, "out.jsonl", "q2").startswith("query q2\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["out.jsonl", "q9"], "error: out.jsonl.journal: no query 'q9' among its 3, such as "),
        (["nowhere.jsonl"], "error: nowhere.jsonl: no such journal\n"),
        (["in.jsonl", "q1"], "error: in.jsonl.journal: no such journal\n"),
        (
            ["out.jsonl", "q1", "q2"],
            "error: --inspect: expected OUTPUT and one ID, got out.jsonl q1",
        ),
    ],
)
def test_what_cannot_be_inspected_is_told(run, capsys, words, message):
    run(ROWS)
    assert main(["--inspect", *words]) == 2
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_the_prompts_that_are_shown_are_those_that_were_sent(run, strategy):
    flags = {
        "moa": ["--proposers", "a", "b", "--width", "2"],
        "rsa": ["--width", "4", "--subset", "2", "--layers", "2"],
        "self_moa_seq": ["--width", "6", "--window", "3"],
    }
    asked = run(ROWS[:1], "--strategy", strategy, *flags.get(strategy, []))
    with Journal(Path("out.jsonl.journal"), read_only=True) as journal:
        shown = prompts_of(journal, "q0")
    unlike = {json.dumps(prompt) for layer in shown.values() for prompt in layer.values()}
    assert unlike == {json.dumps(prompt) for prompt in asked}
    layers = {"best_of_n": 1, "majority_vote": 1, "self_moa_seq": 4}
    assert len(shown) == layers.get(strategy, 2 if strategy == "parallel_sampling" else 3)


def test_prompts_of_later_turns_and_a_template_of_ones_own(run, tmp_path):
    mine = str(tmp_path / "mine.jinja")  # loaded once a process by its name
    Path(mine).write_text("MINE{% for p in proposals %}\n{{ p }}{% endfor %}")
    rows = [{"question_id": 1, "category": "math", "turns": ["First?", "Second?"]}]
    flags = ("--template", mine, "--proposer-system", "Be brief.", "--width", "2")
    asked = run(rows, *flags, "--layers", "1")
    with Journal(Path("out.jsonl.journal"), read_only=True) as journal:
        shown = prompts_of(journal, "1")
    assert [shown[turn, layer][0] for turn in (0, 1) for layer in (0, 1)] == asked
    assert asked[3][0]["content"].startswith("MINE")


def test_prompts_are_shown_on_demand_each_once_a_layer(run, capsys):
    run(ROWS, "--width", "3", "--layers", "1")
    assert "prompt of" not in inspected(capsys, "out.jsonl", "q1")
    shown = inspected(capsys, "out.jsonl", "q1", "--prompts")
    assert "\nprompt of draft 0, 1, 2:\n    [user] What is 1?\n" in shown
    head = "\nprompt of draft 0:\n    [system] You have been provided with a set of responses"
    assert (shown.count(head), shown.count("prompt of")) == (1, 2)
    [row] = [row for row in read_lines(Path("out.jsonl")) if row["id"] == "q1"]
    assert shown.rstrip().endswith(row["response"])


def test_prompts_of_a_query_that_has_not_ended_are_those_that_were_sent(run, capsys):
    def first_only(request):
        return fails("What")(request) if request.prompt[0]["role"] == "system" else babble(request)

    run(ROWS[:1], script=first_only)
    shown = inspected(capsys, "out.jsonl", "q0", "--prompts")
    assert shown.count("prompt of") == 2  # of the drafts, and of the aggregations that were refused


def test_prompts_of_another_command_are_not_known(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_lines(Path("in.jsonl"), ROWS)
    sample(["in.jsonl", "--output", "s.jsonl", "--scripted", "--quiet"])
    assert main(["--inspect", "s.jsonl", "q0"]) == 0
    assert main(["--inspect", "s.jsonl", "q0", "--prompts"]) == 2
    assert "expected the journal of `aft run`, got that of `aft sample`" in capsys.readouterr().err


def test_prompts_of_a_query_that_the_last_run_had_not_are_not_known(run, capsys):
    run(ROWS)
    run(ROWS[:1], "--seed", "1", "--overwrite")
    assert main(["--inspect", "out.jsonl", "q2", "--prompts"]) == 2
    assert "its last run, whose prompts are known, had no 'q2'" in capsys.readouterr().err


def test_the_baselines_answer_in_a_row_of_alpaca_eval_is_not_taken_for_ours(run):
    row = {"instruction": "Name a bird.", "dataset": "koala", "output": "A crow.", "generator": "b"}
    run([row])
    [written] = read_lines(Path("out.jsonl"))
    assert (written["input_output"], written["input_generator"]) == ("A crow.", "b")
    assert not {"output", "generator"} & set(written)
    assert (written["instruction"], written["dataset"]) == ("Name a bird.", "koala")
    # Elsewhere a column of that name is the user's.
    run([{"query": "Name a bird.", "generator": "b"}], "--overwrite")
    assert read_lines(Path("out.jsonl"))[0]["generator"] == "b"
