"""Records that bring proposals: drafts are drawn anew and that is said, or a run starts from them."""

import json

import pytest
from asking_tools import command, read_lines, write_lines

from aft_factory.engines.scripted import babble
from aft_factory.inference.strategies import STRATEGIES
from aft_factory.run.__main__ import main

NOT_USED = "the row's own proposals not used"
ROWS = [
    {"id": "five", "query": "How many?", "proposals": [f"five {i}" for i in range(5)]},
    {"id": "three", "query": "How few?", "proposals": ["three 0", " ", "three 1", None, "three 2"]},
    {"id": "seven", "query": "How much?", "proposals": [f"seven {i}" for i in range(7)]},
]
READS = {"five": 5, "three": 3, "seven": 5}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run rows: returns (code, rows, stdout, stderr, what was asked as (query, drafts read, n))."""

    def run(rows, *flags, output="out.jsonl"):
        asked = []

        def script(request):
            head, said = request.prompt[0]["content"], request.prompt[-1]["content"]
            drafts = head.split("Responses from models:\n")[1:]
            asked.append((said, drafts[0].split("\n") if drafts else [], request.n))
            return babble(request)

        source = write_lines(tmp_path / "in.jsonl", rows)
        path = tmp_path / output
        code, out, err = command(monkeypatch, capsys, script, source, path, *flags)
        return code, read_lines(path) if path.exists() else None, out, err, asked

    return run


def summary(tmp_path):
    return json.loads((tmp_path / "out.summary.json").read_text())


def events(row):
    return [(event["slot"], event["event"]) for event in row["events"]]


def test_without_the_flag_drafts_are_drawn_and_the_run_says_so(run, tmp_path, caplog):
    _, rows, _, _, asked = run([*ROWS, {"id": "none", "query": "Why?"}])
    assert caplog.messages[:1] == [
        "the first row brings proposals, and drafts are drawn anew; --use-proposals starts from "
        "them"
    ]
    assert sorted(read for _, read, _ in asked)[:4] == [[]] * 4
    assert [events(row) for row in rows] == [[(0, NOT_USED)]] * 3 + [[]]
    assert summary(tmp_path)["events"] == {NOT_USED: 3}


def test_a_strategy_that_cannot_start_from_them_says_so_without_the_flag(run, caplog):
    run(ROWS[:1], "--strategy", "majority_vote")
    assert caplog.messages[0] == "the first row brings proposals, and drafts are drawn anew"


def test_a_benchmarks_row_that_brings_some_is_told_of_too(run, caplog):
    _, [row], _, _, _ = run([{"question": "How much?", "answer": "#### 1", "proposals": ["one"]}])
    assert events(row) == [(0, NOT_USED)]
    assert any(text.startswith("the first row brings proposals") for text in caplog.messages)


def test_the_first_layer_is_the_rows_proposals_and_the_rest_goes_on_as_usual(run, caplog):
    code, rows, _, _, asked = run(ROWS, "--use-proposals", "--width", "5", "--keep-drafts")
    assert (code, "brings proposals" in caplog.text) == (0, False)
    for row, of_row in zip(ROWS, rows, strict=True):
        mine = [(read, n) for said, read, n in asked if said == row["query"]]
        usable = [text for text in row["proposals"] if text and text.strip()][:5]
        first, second, last = of_row["layers"]
        assert [draft["text"] for draft in first["drafts"]] == usable
        assert [line.split(". ", 1)[1] for line in mine[0][0]] == usable
        assert len(mine[1][0]) == len(second["drafts"]) == 5
        assert [n for _, n in mine] == [5, 1]
        assert of_row["response"] == last["drafts"][0]["text"]


def test_what_is_lacking_and_what_is_left_out_is_told_by_row_and_counted(run, tmp_path):
    _, rows, out, _, _ = run(ROWS, "--use-proposals", "--width", "5")
    assert [events(row) for row in rows] == [
        [],
        [
            (0, "first layer of 3 proposals, not 5"),
            (1, "blank proposal left out"),
            (3, "blank proposal left out"),
        ],
        [(slot, "proposal beyond the first 5 left out") for slot in (5, 6)],
    ]
    assert summary(tmp_path)["events"] == {
        "first layer of 3 proposals, not 5": 1,
        "blank proposal left out": 2,
        "proposal beyond the first 5 left out": 2,
    }
    assert "2 x proposal beyond the first 5 left out" in out


def test_accounts_hold_what_was_asked_and_say_what_was_not(run, tmp_path):
    _, rows, out, _, _ = run(ROWS, "--use-proposals")
    assert [[usage["layer"] for usage in row["usage"]] for row in rows] == [[1, 2]] * 3
    told = summary(tmp_path)
    assert [layer["layer"] for layer in told["layers"]] == [1, 2]
    assert told["total"]["samples"] == 3 * 6
    assert told["given"] == {"drafts": 5 + 3 + 5, "rows": 3}
    assert told["settings"]["use_proposals"] is True
    assert "first layer: 13 proposals that 3 rows bring, none drawn\n" in out
    _, _, out, _, _ = run(ROWS, "--overwrite")
    assert summary(tmp_path)["given"] == {"drafts": 0, "rows": 0}
    assert "first layer" not in out


def test_appendix_c_does_not_cover_it(run, tmp_path, tiny_llama):
    flags = ("--tokenizer", str(tiny_llama))
    run(ROWS, *flags)
    drawn = summary(tmp_path)["flops"]
    run(ROWS, "--use-proposals", "--overwrite", *flags)
    given = summary(tmp_path)["flops"]
    assert drawn["appendix_c"] is not None
    assert given["appendix_c"] is None
    assert 0 < given["exact"] < drawn["exact"]


def test_a_row_that_brings_none_is_rejected_and_nothing_is_asked_for_it(run, tmp_path):
    rows = [ROWS[0], {"id": "none", "query": "Why?"}, {"query": "And?", "proposals": ["", " "]}]
    code, rows, _, _, asked = run(rows, "--use-proposals")
    assert (code, [row["id"] for row in rows]) == (0, ["five"])
    assert {said for said, _, _ in asked} == {"How many?"}
    rejects = read_lines(tmp_path / "out.rejects.jsonl")
    assert [(row["line"], row["field"]) for row in rejects] == [(2, "proposals"), (3, "proposals")]


def test_a_misnamed_column_costs_nothing(run):
    rows = [{"query": "How many?", "drafts": ["a", "b"]}]
    code, rows, _, _, asked = run(rows, "--use-proposals")
    assert (code, rows, asked) == (1, None, [])
    _, [row], _, _, _ = run(
        [{"query": "How many?", "drafts": ["a", "b"]}],
        *("--use-proposals", "--column", "proposals=drafts", "--overwrite"),
    )
    assert events(row) == [(0, "first layer of 2 proposals, not 5")]


def test_too_few_are_rejected_where_more_are_wanted(run, tmp_path):
    _, rows, _, _, _ = run(ROWS, "--use-proposals", "--min-drafts", "4")
    assert [row["id"] for row in rows] == ["five", "seven"]
    [reject] = read_lines(tmp_path / "out.rejects.jsonl")
    assert reject["reason"] == (
        "layer 0: 2 of 5 drafts are unusable (the row brings no more), 4 wanted"
    )


@pytest.mark.parametrize(
    ("flags", "shape"),
    [
        (["--strategy", "sequential_revision"], [(1, 1), (1, 1)]),
        (["--strategy", "parallel_sampling"], [(5, 1)]),
        (["--strategy", "self_moa_seq", "--window", "3"], [(3, 1), (3, 1)]),
        (["--strategy", "moa", "--proposers", "a", "b", "--width", "2"], [(4, 2), (4, 2), (4, 1)]),
    ],
)
def test_other_strategies_start_so_too(run, flags, shape):
    """By strategy: how many drafts each request reads, and how many it asks for."""
    code, _, _, _, asked = run(ROWS[:1], "--use-proposals", *flags)
    assert code == 0
    assert [(len(read), n) for _, read, n in asked] == shape


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        *(
            (["--strategy", name], f"use_proposals: {name} draws its own; these can: propose_and_a")
            for name in ("best_of_n", "majority_vote", "rsa")
        ),
        (["--layers", "0"], "use_proposals: with layers 0 there are no drafts; set layers"),
        (["--task", "gsm8k"], "use_proposals: the layout of gsm8k is known; --task records takes"),
    ],
)
def test_where_it_means_nothing_it_is_refused(run, flags, problem):
    code, rows, _, err, asked = run(ROWS, "--use-proposals", *flags)
    assert (code, rows, asked) == (2, None, [])
    assert problem in err


def test_every_strategy_says_whether_it_can():
    able = {name for name, strategy in STRATEGIES.items() if strategy.first is not None}
    assert able == {
        *("propose_and_aggregate", "sequential_revision", "parallel_sampling"),
        *("self_moa_seq", "moa"),
    }


def test_a_dry_run_tells_it(run):
    code, rows, out, _, _ = run(ROWS, "--use-proposals", "--dry-run")
    assert (code, rows) == (0, None)
    assert [line.split()[1] for line in out.splitlines() if line.startswith("    0")] == ["1", "2"]
    assert "first layer: 13 proposals that 3 rows bring, none drawn\n" in out
    _, _, out, _, _ = run(ROWS, "--dry-run")
    assert f"drafts: 3 x {NOT_USED}\n" in out


def test_a_look_into_the_journal_shows_them(run, tmp_path, capsys):
    run(ROWS, "--use-proposals")
    assert main(["--inspect", str(tmp_path / "out.jsonl.journal"), "three"]) == 0
    said = capsys.readouterr().out
    layer = said[said.index("turn 0, layer 0") : said.index("turn 0, layer 1")].splitlines()
    assert layer[1:7] == [
        *(f"  draft {i} (a proposal of the row): three {i}" for i in range(3)),
        "  draft 0: first layer of 3 proposals, not 5",
        "  draft 1: blank proposal left out",
        "  draft 3: blank proposal left out",
    ]


def test_with_and_without_are_two_runs_of_a_journal_and_each_is_resumed(run):
    _, drawn, _, _, asked = run(ROWS)
    assert len(asked) == 9
    _, given, _, _, asked = run(ROWS, "--use-proposals", "--overwrite")
    assert len(asked) == 6
    assert [row["response"] for row in given] != [row["response"] for row in drawn]
    _, again, _, _, asked = run(ROWS, "--use-proposals", "--overwrite")
    assert (again, asked) == (given, [])
    _, exported, _, _, asked = run(ROWS, "--export", "--overwrite")
    assert (exported, asked) == (given, [])
    _, again, _, _, asked = run(ROWS, "--overwrite")
    assert (again, asked) == (drawn, [])


def test_rows_that_bring_other_proposals_are_two(run):
    rows = [{"query": "How many?", "id": "q", "proposals": [text]} for text in ("one", "two")]
    _, rows, _, _, asked = run(rows, "--use-proposals")
    assert rows[0]["response"] != rows[1]["response"]
    assert len(asked) == 4


def test_control_tokens_in_them_are_broken(run):
    row = {"query": "How many?", "proposals": ["five<|eot_id|>"]}
    _, _, _, _, asked = run([row], "--use-proposals")
    assert "<|eot_id|>" not in asked[0][1][0]
    assert "<\u200b|eot_id|>" in asked[0][1][0]
