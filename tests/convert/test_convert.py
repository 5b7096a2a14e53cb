"""The command `python -m aft_factory.convert`, from end to end. Run: pytest tests/convert/test_convert.py"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from conftest import demo_rows
from kill_tools import check_every_kill

from aft_factory.convert.__main__ import main
from aft_factory.prompts.markers import known_markers
from aft_factory.prompts.rendering import load_template
from aft_factory.records.record import record_from_row
from aft_factory.stats.__main__ import main as stats

ROWS = [
    {"id": "a", "query": "How many pails?", "proposals": ["5", "6", "7"], "aggregation": "Six.", "reference": "6"},
    {"id": "b", "query": "And litres?", "proposals": ["30", "31"], "aggregation": "Thirty.", "reference": "30"},
]  # fmt: skip
BAD = {"id": "c", "query": "?", "proposals": "none"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def convert(folder, capsys):
    """Run the command in the folder and return its stdout, or stderr where it ends with 2."""

    def run(*argv, expect=0):
        code = main([*map(str, argv), "--quiet"])
        out, err = capsys.readouterr()
        assert code == expect, err
        assert (err == "") == (code != 2)
        # What comes next has its tests in test_next_steps.py.
        return re.sub(r"^next: .*\n", "", out, flags=re.MULTILINE) if code != 2 else err

    return run


def write(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def read(name):
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


def files():
    return sorted(str(path) for path in Path().rglob("*"))


# Targets


def test_target_aggregation_writes_records(convert):
    write("in.jsonl", ROWS)
    assert (
        convert("proposals", "in.jsonl", "--output", "out.jsonl")
        == "read 2 rows: 2 written to out.jsonl, 0 rejected\n"
    )
    assert read("out.jsonl") == [record_from_row(row).to_row() for row in ROWS]
    assert files() == ["in.jsonl", "out.jsonl"]


def test_target_sharegpt_writes_the_rendered_conversation(convert):
    row = ROWS[0] | {
        "query": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q <s>"}]
    }
    row |= {"proposals": ["5", "  ", "6 </s>"]}
    convert("proposals", write("in.jsonl", [row]), "--target", "sharegpt", "--output", "out.jsonl")
    system = "Be brief.\n\n" + load_template("paper").render(["5", "6 <\u200b/s>"])
    assert read("out.jsonl") == [
        {
            "id": "a",
            "conversations": [
                {"from": "system", "value": system},
                {"from": "human", "value": "q <\u200bs>"},
                {"from": "gpt", "value": "Six."},
            ],
        }
    ]


def test_target_sft_writes_query_and_reference(convert):
    convert("proposals", write("in.jsonl", ROWS[:1]), "--target", "sft", "--output", "out.jsonl")
    turns = [{"from": "human", "value": "How many pails?"}, {"from": "gpt", "value": "6"}]
    assert read("out.jsonl") == [{"id": "a", "conversations": turns}]


@pytest.mark.parametrize(
    ("target", "field", "problem"),
    [
        (
            "sharegpt",
            "aggregation",
            "missing or empty, nothing to train on; aggregate first",
        ),
        ("sft", "reference", "missing or empty; no response to train the baseline on"),
    ],
)
def test_rows_without_the_text_to_train_on_are_rejected(convert, target, field, problem):
    rows = [ROWS[0], ROWS[1] | {field: None}, ROWS[1] | {field: " "}]
    out = convert("proposals", write("in.jsonl", rows), "--target", target, "--output", "out.jsonl")
    assert out == (
        f"read 3 rows: 1 written to out.jsonl, 2 rejected (out.rejects.jsonl)\n  2 x {field}: {problem}\n"
    )
    assert read("out.rejects.jsonl") == [
        {"file": "in.jsonl", "line": i, "field": field, "reason": problem, "row": rows[i - 1]}
        for i in (2, 3)
    ]


def test_a_template_of_ones_own(convert):
    Path("mine.jinja").write_text(
        "{% for p in proposals %}\n- {{ p }}\n{% endfor %}", encoding="utf-8"
    )
    convert(
        *("proposals", write("in.jsonl", ROWS[:1]), "--target", "sharegpt"),
        *("--template", "mine.jinja", "--output", "out.jsonl"),
    )
    assert read("out.jsonl")[0]["conversations"][0] == {
        "from": "system",
        "value": "- 5\n- 6\n- 7\n",
    }


@pytest.mark.parametrize("suffix", ["jsonl", "json", "jsonl.gz", "json.zst", "parquet"])
def test_any_format_in_gives_the_same_rows_out(convert, suffix):
    write("in.jsonl", ROWS)
    convert("proposals", "in.jsonl", "--output", f"between.{suffix}")
    convert("proposals", f"between.{suffix}", "--output", "out.jsonl")
    assert read("out.jsonl") == [record_from_row(row).to_row() for row in ROWS]


def test_several_inputs_are_read_in_order(convert):
    write("1.jsonl", ROWS[:1])
    Path("2.json").write_text(json.dumps(ROWS[1:]), encoding="utf-8")
    convert("proposals", "2.json", "1.jsonl", "2.json", "--output", "out.jsonl")
    assert [row["id"] for row in read("out.jsonl")] == ["b", "a", "b"]


# Which proposals


def test_max_proposals_keeps_the_first_that_are_not_blank(convert):
    row = {
        "id": "a",
        "query": "q",
        "proposals": [
            {"text": t, "score": i, "model": t} for i, t in enumerate(["", "1", "2", "3"])
        ],
    }
    convert("proposals", write("in.jsonl", [row]), "--max-proposals", 2, "--output", "out.jsonl")
    (written,) = read("out.jsonl")
    assert (written["proposals"], written["scores"], written["proposal_models"]) == (
        ["1", "2"],
        [1.0, 2.0],
        ["1", "2"],
    )


def shuffled(convert, rows, seed):
    write("in.jsonl", rows)
    convert(
        "proposals",
        "in.jsonl",
        "--shuffle-proposals",
        "--seed",
        seed,
        "--output",
        "out.jsonl",
        "--overwrite",
    )
    return {row["id"]: row["proposals"] for row in read("out.jsonl")}


def test_the_shuffle_depends_on_seed_and_id_alone(convert):
    rows = [{"id": str(i), "query": "q", "proposals": list("abcdef")} for i in range(20)]
    first = shuffled(convert, rows, 42)
    assert first == shuffled(convert, rows, 42)
    assert first == shuffled(convert, rows[::-1], 42)
    assert {"7": first["7"]} == shuffled(convert, rows[7:8], 42)
    assert first != shuffled(convert, rows, 43)
    assert len({tuple(proposals) for proposals in first.values()}) > 10
    assert all(sorted(proposals) == list("abcdef") for proposals in first.values())
    assert first["0"] == ["e", "c", "b", "f", "d", "a"]  # never changes: seeds are published


def test_shuffling_comes_before_the_cut_and_scores_follow(convert):
    row = {"id": "0", "query": "q", "proposals": list("abcdef"), "scores": [0, 1, 2, 3, 4, 5]}
    convert(
        *("proposals", write("in.jsonl", [row]), "--shuffle-proposals", "--max-proposals", 2),
        *("--output", "out.jsonl"),
    )
    (written,) = read("out.jsonl")
    assert written["proposals"] == ["e", "c"]
    assert written["scores"] == [4.0, 2.0]


# What is read, what is shown, what is replaced


def test_rows_mixed_plain_earlier_are_rows_like_others(convert):
    rows = [ROWS[0], ROWS[1] | {"id": "b#plain", "proposals": []}]
    out = convert("proposals", write("in.jsonl", rows), "--output", "out.jsonl")
    assert out.startswith("read 2 rows: 2 written to out.jsonl, 0 rejected\n")
    assert "once more" not in out
    out = convert("proposals", write("in.jsonl", rows[1:]), "--output", "one.jsonl")
    assert out.startswith("read 1 rows: 1 written to one.jsonl, 0 rejected\n")
    assert [row["id"] for row in read("one.jsonl")] == ["b#plain"]


@pytest.mark.parametrize("flags", [["--target", "sft"], ["--without-proposals"]])
def test_a_row_that_was_mixed_in_plain_is_not_trained_on_twice_without_proposals(convert, flags):
    rows = [row | {"reference": "Six."} for row in (ROWS[0], ROWS[0] | {"id": "a#plain"})]
    source = write("in.jsonl", rows)
    out = convert("proposals", source, "--output", "out.jsonl", *flags)
    assert out.startswith("read 2 rows: 1 written to out.jsonl, 1 rejected")
    assert "1 x id: 'a#plain' is a row that mix_plain added once more" in out
    assert [row["id"] for row in read("out.jsonl")] == ["a"]


def test_a_row_too_long_is_rejected_whatever_its_id(convert, llama3_tokenizer_dir):
    rows = [ROWS[0], {"id": "b#plain", "query": "long " * 2000, "aggregation": "Six."}]
    flags = ["--tokenizer", llama3_tokenizer_dir, "--cutoff-len", 700]
    out = convert("proposals", write("in.jsonl", rows), "--output", "out.jsonl", *flags)
    assert out.startswith("read 2 rows: 1 written to out.jsonl, 1 rejected (out.rejects.jsonl)\n")


@pytest.mark.parametrize("as_json", [False, True])
def test_a_thought_beside_an_answer_is_in_no_target_and_counted(convert, as_json):
    answer = {"role": "assistant", "content": "5", "reasoning_content": "2 + 3"}
    turns = [{"role": "user", "content": "2 + 3?"}, answer]
    source = write("in.jsonl", [{"messages": json.dumps(turns) if as_json else turns}, ROWS[0]])
    text = convert("proposals", source, "--output", "out.jsonl", "--target", "sft")
    assert [row["conversations"][-1]["value"] for row in read("out.jsonl")] == ["5", "6"]
    assert "  1 x answers taken without their reasoning_content" in text.splitlines()


def test_a_thought_that_was_kept_is_part_of_the_target_and_of_no_baseline(
    convert, llama3_tokenizer_dir
):
    row = ROWS[0] | {"reference": "Six.", "thinking": "long " * 2000}
    flags = ["--output", "out.jsonl", "--tokenizer", llama3_tokenizer_dir, "--cutoff-len", 700]
    named = [*flags, "--overwrite", "--column", "aggregation_thought=thinking"]
    source = write("in.jsonl", [row])
    assert "1 written to out.jsonl, 0 rejected" in convert("proposals", source, *flags)
    for target in ("aggregation", "sharegpt"):
        told = convert("proposals", source, *named, "--target", target, expect=1)
        assert "1 rejected" in told
    convert("proposals", source, *named, "--target", "sft")
    assert "long" not in str(read("out.jsonl"))


@pytest.mark.parametrize("target", ["aggregation", "sharegpt"])
def test_what_is_rejected_is_not_mixed_in_plain_either(convert, llama3_tokenizer_dir, target):
    rows = [ROWS[0], ROWS[1] | {"query": "long " * 2000}, ROWS[1] | {"aggregation": 3}, BAD]
    flags = ["--mix-plain", 1, "--target", target]
    flags += ["--tokenizer", llama3_tokenizer_dir, "--cutoff-len", 700]
    out = convert("proposals", write("in.jsonl", rows), "--output", "out.jsonl", *flags)
    assert out.startswith("read 4 rows: 1 written to out.jsonl, 3 rejected (out.rejects.jsonl)\n")
    assert "  1 rows written once more without proposals (--mix-plain)\n" in out
    assert [row["id"] for row in read("out.jsonl")] == ["a", "a#plain"]


@pytest.mark.parametrize("flags", [[], ["--without-proposals"]])
def test_a_row_without_proposals_is_plain_already(convert, flags):
    rows = ROWS if flags else [row | {"proposals": ["", " "]} for row in ROWS]
    out = convert(
        "proposals", write("in.jsonl", rows), "--output", "out.jsonl", "--mix-plain", 1, *flags
    )
    assert "once more" not in out
    assert [row["id"] for row in read("out.jsonl")] == ["a", "b"]


@pytest.mark.parametrize(("limit", "ids"), [(1, ["a"]), (2, ["a", "b"]), (9, ["a", "b"])])
def test_limit_reads_only_the_first_rows(convert, limit, ids):
    convert("proposals", write("in.jsonl", ROWS), "--limit", limit, "--output", "out.jsonl")
    assert [row["id"] for row in read("out.jsonl")] == ids


def test_preview_needs_and_writes_no_file(convert):
    out = convert("proposals", write("in.jsonl", [*ROWS, BAD]), "--preview", 1)
    assert out == (
        "============================== a\n"
        f"[system]\n{load_template('paper').render(['5', '6', '7'])}\n\n"
        "[human]\nHow many pails?\n\n"
        "[gpt]\nSix.\n\n"
        "read 3 rows: 2 would be written, 1 rejected\n"
        "  1 x proposals: expected a list, got str 'none'\n"
    )
    assert files() == ["in.jsonl"]


def test_preview_of_what_is_not_aggregated_yet(convert):
    rows = [
        {"id": "a", "query": "q", "proposals": ["1"], "aggregation": text} for text in (None, " ")
    ]
    out = convert("proposals", write("in.jsonl", rows), "--preview", 2, "--output", "out.jsonl")
    assert out.count("[gpt]\n(no aggregation yet)") == 2
    assert [row["aggregation"] for row in read("out.jsonl")] == [None, " "]


def test_preview_of_the_sft_baseline_shows_no_proposals(convert):
    out = convert("proposals", write("in.jsonl", ROWS), "--target", "sft", "--preview", 1)
    assert out.startswith(
        "============================== a\n[human]\nHow many pails?\n\n[gpt]\n6\n"
    )


def test_an_output_is_replaced_only_when_asked(convert):
    write("in.jsonl", ROWS)
    write("out.jsonl", [])
    err = convert("proposals", "in.jsonl", "--output", "out.jsonl", expect=2)
    assert err == "error: out.jsonl exists; pass --overwrite to replace it\n"
    assert read("out.jsonl") == []
    convert("proposals", "in.jsonl", "--output", "out.jsonl", "--overwrite")
    assert len(read("out.jsonl")) == 2


def test_rejects_name_file_line_field_and_reason(convert):
    Path("in.jsonl").write_bytes(
        json.dumps(BAD).encode() + b"\n\n{oops\n" + json.dumps(ROWS[0]).encode()
    )
    out = convert(
        "proposals", "in.jsonl", "--output", "data/out.jsonl.gz", "--rejects", "why.jsonl"
    )
    assert (
        out.splitlines()[0] == "read 3 rows: 1 written to data/out.jsonl.gz, 2 rejected (why.jsonl)"
    )
    first, second = read("why.jsonl")
    problem = "expected a list, got str 'none'"
    assert first == {
        "file": "in.jsonl",
        "line": 1,
        "field": "proposals",
        "reason": problem,
        "row": BAD,
    }
    assert second.pop("reason").startswith("not JSON: ")
    assert second == {"file": "in.jsonl", "line": 3, "field": None, "text": "{oops"}


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def test_what_json_cannot_hold_is_rejected(convert):
    rows = [ROWS[0] | {"tree": nested(500)}, ROWS[1] | {"tree": nested(1005)}]
    # Python's own writer has no form for the second either.
    lines = [
        json.dumps(rows[0]),
        json.dumps(ROWS[1])[:-1] + ', "tree": ' + "[" * 1006 + "]" * 1006 + "}",
    ]
    Path("in.jsonl").write_text("\n".join(lines))
    out = convert("proposals", "in.jsonl", "--output", "out.jsonl")
    assert out.splitlines()[1] == "  1 x row: cannot be written: Recursion limit reached"
    (reject,) = read("out.rejects.jsonl")
    assert (reject["line"], reject["row"]) == (2, None)
    (written,) = read("out.jsonl")
    assert json.loads(written["meta"]) == {"tree": nested(500)}


@pytest.mark.parametrize("output", ["my.v1.jsonl", "my.v1.json.gz", "my.v1.parquet"])
def test_rejects_stand_beside_the_output_under_its_name(convert, output):
    convert("proposals", write("in.jsonl", [*ROWS, BAD]), "--output", f"data/{output}")
    rejects = f"data/{output.removesuffix('.jsonl')}.rejects.jsonl"
    assert files() == ["data", f"data/{output}", rejects, "in.jsonl"]


def test_rejects_of_an_earlier_run_go(convert):
    write("in.jsonl", [*ROWS, BAD])
    convert("proposals", "in.jsonl", "--output", "out.jsonl")
    assert files() == ["in.jsonl", "out.jsonl", "out.rejects.jsonl"]
    write("in.jsonl", ROWS)
    convert("proposals", "in.jsonl", "--output", "out.jsonl", "--overwrite")
    assert files() == ["in.jsonl", "out.jsonl"]


def test_exit_code_is_1_for_rejects_when_strict_and_when_nothing_is_written(convert):
    write("in.jsonl", [*ROWS, BAD])
    convert("proposals", "in.jsonl", "--output", "1.jsonl")
    convert("proposals", "in.jsonl", "--output", "2.jsonl", "--strict", expect=1)
    assert read("1.jsonl") == read("2.jsonl")
    convert("proposals", write("bad.jsonl", [BAD]), "--output", "3.jsonl", expect=1)
    convert("proposals", write("none.jsonl", []), "--output", "4.jsonl")
    convert("proposals", write("good.jsonl", ROWS), "--output", "5.jsonl", "--strict")


def test_exit_code_is_1_for_rejects_too_where_nobody_reads_what_is_told(convert, monkeypatch):
    monkeypatch.setattr("aft_factory.convert.writing.show", Mock(side_effect=BrokenPipeError))
    write("in.jsonl", [*ROWS, BAD])
    convert("proposals", "in.jsonl", "--output", "1.jsonl", "--strict", expect=1)


def test_columns_of_other_names(convert):
    row = {
        "key": 7,
        "rules": "Be brief.",
        "question": "q",
        "drafts": ["1"],
        "best": "One.",
        "gold": "1",
        "set": "x",
    }
    names = {
        "id": "key",
        "system": "rules",
        "messages": "question",
        "proposals": "drafts",
        "aggregation": "best",
        "reference": "gold",
        "source": "set",
    }
    flags = [flag for field, name in names.items() for flag in ("--column", f"{field}={name}")]
    convert("proposals", write("in.jsonl", [row]), *flags, "--output", "out.jsonl")
    (written,) = read("out.jsonl")
    assert written == {
        "id": "7",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q"}],
        "proposals": ["1"],
        "aggregation": "One.",
        "reference": "1",
        "source": "x",
        "scores": None,
        "proposal_models": None,
        "aggregation_thought": None,
        "meta": "{}",
    }


def test_queries_that_come_again_are_counted_and_written(convert):
    again = [ROWS[0] | {"id": "other"}, ROWS[0] | {"query": [{"role": "user", "content": "New"}]}]
    write("in.jsonl", [*ROWS, *again, ROWS[0] | {"proposals": 1}])
    out = convert("proposals", "in.jsonl", "--output", "out.jsonl").splitlines()
    assert out[-2:] == [
        "only told, and no reason to reject a row:",
        "  1 x queries that an earlier row has",
    ]
    assert len(read("out.jsonl")) == 4


def test_summary_numbers_reconcile(convert):
    rows = [*ROWS, BAD, BAD | {"proposals": [3]}, BAD | {"proposals": ["a", 3]}, {"query": " "}]
    write("in.jsonl", rows)
    with Path("in.jsonl").open("a") as file:
        file.write("\n{oops\n")
    assert convert("proposals", "in.jsonl", "--output", "out.jsonl").splitlines() == [
        "read 7 rows: 2 written to out.jsonl, 5 rejected (out.rejects.jsonl)",
        "  2 x proposals[]: expected a text, or an object with response or text or content or output, got int 3",
        "  1 x proposals: expected a list, got str 'none'",
        "  1 x query: the query is empty",
        f"  1 x row: {read('out.rejects.jsonl')[-1]['reason']}",
    ]
    assert [row["line"] for row in read("out.rejects.jsonl")] == [3, 4, 5, 6, 8]


@pytest.mark.parametrize("target", ["aggregation", "sharegpt", "sft"])
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet"])
def test_a_second_run_writes_the_same_bytes(convert, target, suffix):
    write("in.jsonl", [*demo_rows(), BAD])
    flags = [] if target == "sft" else ["--shuffle-proposals", "--max-proposals", 3]
    for name in ("1", "2"):
        output = f"{name}.{suffix}"
        convert("proposals", "in.jsonl", "--target", target, *flags, "--output", output)
    assert Path(f"1.{suffix}").read_bytes() == Path(f"2.{suffix}").read_bytes()
    rejects = "rejects.jsonl" if suffix == "jsonl" else f"{suffix}.rejects.jsonl"
    assert Path(f"1.{rejects}").read_bytes() == Path(f"2.{rejects}").read_bytes()


# Rows longer than the cutoff


def long_row(name, words):
    return {
        "id": name,
        "query": "q",
        "proposals": ["word " * words, "short"],
        "aggregation": "A.",
        "reference": "A.",
    }


def test_rows_at_risk_are_counted_with_their_percentage(convert):
    rows = [long_row(str(i), 10) for i in range(7)] + [long_row("long", 4000)]
    out = convert("proposals", write("in.jsonl", rows), "--output", "out.jsonl")
    assert out.splitlines()[2:] == [
        "warning: 12.5% of rows (1) are longer than 2048 tokens (estimated; --tokenizer measures), LLaMA-Factory's default "
        "cutoff_len (examples/ have 4096). The plugin shortens their proposals to fit. Without it (--target sharegpt) LLaMA-Factory cuts them, and "
        "the query is lost first, unless --tokenizer and --cutoff-len fit them here."
    ]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "json.gz"])
@pytest.mark.parametrize("template", ["paper", "moa"])
def test_the_estimate_is_that_of_stats_whatever_the_file(convert, suffix, template):
    rows = [long_row(str(i), 1400 + 4 * i) for i in range(40)]
    rows += [row | {"id": f"ü{row['id']}", "aggregation": "é" * 50} for row in rows]
    rows += [
        row | {"id": f"b{row['id']}", "proposals": [*row["proposals"], " " * 900]} for row in rows
    ]
    flags = ("--template", template, "--output", f"out.{suffix}")
    out = convert("proposals", write("in.jsonl", rows), *flags)
    assert stats([f"out.{suffix}", "--template", template, "--json", "stats.json", "--quiet"]) == 0
    share = json.loads(Path("stats.json").read_text())["tokens"]["over"]["2048"]
    assert 0.1 < share < 0.9
    assert f"warning: {share:.1%} of rows ({round(share * 160)}) are longer than 2048" in out


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("aggregation", "The plugin shortens their proposals to fit. Without it"),
        ("sharegpt", "and the query is lost first. Pass --tokenizer and --cutoff-len to fit"),
        ("sft", "they have no proposals that could be shortened"),
    ],
)
def test_what_becomes_of_rows_at_risk_depends_on_the_target(convert, target, words):
    row = long_row("long", 4000) | {"reference": "word " * 4000}
    out = convert(
        *("proposals", write("in.jsonl", [row]), "--target", target, "--output", "out.jsonl")
    )
    assert words in out


def test_a_registered_file_holds_only_what_can_be_trained_on(convert):
    Path("own.jinja").write_text("{{ proposals[1] }}")
    one = ROWS[0] | {"proposals": ["alone"], "id": "one"}
    rows = [ROWS[0], ROWS[0] | {"aggregation": None}, one, ROWS[0] | {"aggregation": " "}]
    flags = ("proposals", write("in.jsonl", rows), "--template", "own.jinja", "--output")
    out = convert(*flags, "out.jsonl", "--register", ".")
    assert out.splitlines()[:3] == [
        "read 4 rows: 1 written to out.jsonl, 3 rejected (out.rejects.jsonl)",
        "  2 x aggregation: missing or empty, nothing to train on; aggregate first",
        "  1 x template: 'own.jinja' fails for 1 proposals: list object has no element 1",
    ]
    assert [row["line"] for row in read("out.rejects.jsonl")] == [2, 3, 4]
    out = convert(*flags, "all.jsonl")  # that may wait to be aggregated
    assert out.startswith("read 4 rows: 4 written to all.jsonl, 0 rejected")


def test_a_cutoff_without_a_tokenizer_is_refused_and_not_only_estimated(convert):
    write("in.jsonl", [long_row("0", 10)])
    out = convert("proposals", "in.jsonl", "--output", "out.jsonl", "--cutoff-len", 8192, expect=2)
    assert out == "error: --cutoff-len counts tokens; name the --tokenizer to count with\n"


def test_nothing_is_registered_where_nothing_was_written(convert):
    write("in.jsonl", [BAD])
    convert("proposals", "in.jsonl", "--output", "out.jsonl", "--register", ".", expect=1)
    assert not Path("dataset_info.json").exists()


def test_a_tokenizer_alone_measures(convert, llama3_tokenizer_dir):
    rows = [long_row("0", 10), long_row("1", 4000)]
    out = convert(
        "proposals",
        write("in.jsonl", rows),
        "--output",
        "out.jsonl",
        "--tokenizer",
        llama3_tokenizer_dir,
    )
    assert out.splitlines()[2].startswith(
        "warning: 50.0% of rows (1) are longer than 2048 tokens (measured), LLaMA"
    )
    assert [row["proposals"] for row in read("out.jsonl")] == [row["proposals"] for row in rows]


@pytest.mark.parametrize("target", ["aggregation", "sharegpt"])
def test_fitting_shortens_proposals_and_nothing_else(convert, llama3_tokenizer_dir, target):
    from transformers import AutoTokenizer

    rows = [long_row(str(i), 10 * 2**i) for i in range(9)] + [
        {**long_row("query", 1), "query": "word " * 900}
    ]
    out = convert(
        *("proposals", write("in.jsonl", rows), "--target", target, "--output", "out.jsonl"),
        *("--tokenizer", llama3_tokenizer_dir, "--cutoff-len", 700),
    )
    assert re.fullmatch(
        r"read 10 rows: 9 written to out\.jsonl, 1 rejected \(out\.rejects\.jsonl\)\n"
        r"  1 x cutoff_len: needs \d+ tokens before any of its 2 proposals, the limit is 700\n"
        r"only told, and no reason to reject a row:\n  8 x queries that an earlier row has\n"
        r"fitted to 700 tokens: (\d) proposals shortened in \1 rows \(\d+ tokens, \d+\.\d% of these rows\); "
        r"no query, instruction or target was cut\n",
        out,
    )
    tokenizer = AutoTokenizer.from_pretrained(llama3_tokenizer_dir)
    chat = (
        Path(__file__)
        .parents[2]
        .joinpath("templates/chat/llama3.jinja")
        .read_text(encoding="utf-8")
    )
    lengths = []
    for before, row in zip(rows, read("out.jsonl"), strict=False):
        if target == "aggregation":
            first, second = row["proposals"]
            assert before["proposals"][0].startswith(first)
            assert (second, row["messages"], row["aggregation"]) == (
                "short",
                [{"role": "user", "content": "q"}],
                "A.",
            )
            messages = [*row["messages"], {"role": "assistant", "content": "A."}]
            text = tokenizer.apply_chat_template(
                messages, proposals=row["proposals"], chat_template=chat, tokenize=False
            )
        else:
            system, *rest = row["conversations"]
            assert rest == [{"from": "human", "value": "q"}, {"from": "gpt", "value": "A."}]
            messages = [
                {"role": "system", "content": system["value"]},
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "A."},
            ]
            text = tokenizer.apply_chat_template(messages, chat_template=chat, tokenize=False)
        lengths.append(len(tokenizer(text, add_special_tokens=False)["input_ids"]))
    assert max(lengths) <= 700
    assert max(lengths) > 690  # cut no shorter than need be
    (reject,) = read("out.rejects.jsonl")
    assert (reject["line"], reject["field"], reject["row"]) == (10, "cutoff_len", rows[9])


# dataset_info.json


def test_register_adds_an_entry_and_keeps_all_others_in_order(convert):
    Path("data").mkdir()
    others = {
        "z": {"file_name": "z.json", "columns": {"b": "1", "a": "é"}},
        "a": {"hf_hub_url": "x/y"},
    }
    Path("data/dataset_info.json").write_text(json.dumps(others), encoding="utf-8")
    out = convert(
        "proposals", write("in.jsonl", ROWS), "--output", "data/m.jsonl", "--register", "data"
    )
    assert "registered as 'm' in data/dataset_info.json; train" in out.splitlines()[-1]
    text = Path("data/dataset_info.json").read_text(encoding="utf-8")
    entries = others | {"m": {"file_name": "m.jsonl", "formatting": "aggregation"}}
    assert text == json.dumps(entries, indent=2, ensure_ascii=False) + "\n"


@pytest.mark.parametrize(
    ("flags", "entry"),
    [
        (["--target", "aggregation"], {"file_name": "../out.jsonl", "formatting": "aggregation"}),
        (["--target", "sharegpt"], {"file_name": "../out.jsonl", "formatting": "sharegpt"}),
        (["--target", "sft"], {"file_name": "../out.jsonl", "formatting": "sharegpt"}),
        (["--template", "moa"], {"file_name": "../out.jsonl", "formatting": "aggregation", "aggregation": {"template": "moa"}}),
        (["--target", "sharegpt", "--template", "moa"], {"file_name": "../out.jsonl", "formatting": "sharegpt"}),
    ],
)  # fmt: skip
def test_the_entry_says_how_to_read_the_file(convert, flags, entry):
    Path("data").mkdir()
    convert(
        "proposals",
        write("in.jsonl", ROWS),
        "--output",
        "out.jsonl",
        "--register",
        "data",
        "--name",
        "my set",
        *flags,
    )
    assert json.loads(Path("data/dataset_info.json").read_text()) == {"my set": entry}


def test_register_replaces_an_entry_only_when_asked(convert):
    write("in.jsonl", ROWS)
    convert("proposals", "in.jsonl", "--output", "1.jsonl", "--register", ".", "--name", "x")
    err = convert(
        "proposals", "in.jsonl", "--output", "2.jsonl", "--register", ".", "--name", "x", expect=2
    )
    assert (
        err
        == "error: dataset_info.json has a data set 'x' already; choose another --name or pass --overwrite\n"
    )
    assert not Path("2.jsonl").exists()
    convert(
        "proposals",
        "in.jsonl",
        "--output",
        "2.jsonl",
        "--register",
        ".",
        "--name",
        "x",
        "--overwrite",
    )
    assert json.loads(Path("dataset_info.json").read_text())["x"]["file_name"] == "2.jsonl"


@pytest.mark.parametrize("content", ["[]", "{", "", '"x"', "\0{}", "[" * 100_000, '{"\\ud800": 1}'])
def test_a_damaged_dataset_info_stops_the_run_before_it_starts(convert, content):
    Path("dataset_info.json").write_text(content, encoding="utf-8")
    err = convert(
        "proposals", write("in.jsonl", ROWS), "--output", "out.jsonl", "--register", ".", expect=2
    )
    assert err.startswith("error: dataset_info.json: ")
    assert files() == ["dataset_info.json", "in.jsonl"]
    assert Path("dataset_info.json").read_text(encoding="utf-8") == content


# UltraFeedback


def test_ultrafeedback_from_end_to_end(convert, real):
    out = convert(
        *("ultrafeedback", real.path("ultrafeedback_binarized_pairs.jsonl"), "--target", "sft"),
        *("--output", "sft.jsonl"),
    )
    count, long = real.either(sample=(20, "5.3"), whole=(1000, "0.1"))
    assert out.splitlines() == [
        f"read {count} rows: {count - 1} written to sft.jsonl, 1 rejected (sft.rejects.jsonl)",
        "  1 x reference: missing or empty; no response to train the baseline on",
        "only told, and no reason to reject a row:",
        "  4 x duplicate responses left out",
        "  2 x empty responses left out",
        "in no prompt, as they are no part of a query by their names: source_index",
        out.splitlines()[-1],
    ]
    assert out.splitlines()[-1].startswith(
        f"warning: {long}% of rows (1) are longer than 2048 tokens"
    )
    safe = known_markers().sanitise
    pairs = [row for row in real.rows("ultrafeedback_binarized_pairs.jsonl") if row["chosen"]]
    assert [row["conversations"] for row in read("sft.jsonl")] == [
        [
            {"from": "human", "value": safe(row["prompt"])},
            {"from": "gpt", "value": safe(row["chosen"])},
        ]
        for row in pairs
    ]


def test_rows_from_truthful_qa_are_kept_or_dropped(convert):
    rows = [
        {"source": source, "instruction": "q", "completions": [{"response": "a"}]}
        for source in ("flan", "truthful_qa")
    ]
    write("in.jsonl", rows)
    convert("ultrafeedback", "in.jsonl", "--output", "1.jsonl")
    out = convert("ultrafeedback", "in.jsonl", "--output", "2.jsonl", "--truthfulqa", "drop")
    assert [row["source"] for row in read("1.jsonl")] == ["flan", "truthful_qa"]
    assert [row["source"] for row in read("2.jsonl")] == ["flan"]
    assert "  1 x source: from TruthfulQA (--truthfulqa drop)" in out.splitlines()


# Real proposals of many models


def test_alpaca_eval_proposals(convert, real):
    rows = real.rows("alpaca_eval_proposals.jsonl")
    path = real.path("alpaca_eval_proposals.jsonl")
    out = convert("proposals", path, "--output", "out.jsonl")
    count = real.either(sample=16, whole=605)
    assert out.splitlines()[0] == f"read {count} rows: {count} written to out.jsonl, 0 rejected"
    for row, written in zip(rows, read("out.jsonl"), strict=True):
        kept = [r for r in row["responses"] if r["response"].strip()]
        assert written["messages"] == [{"role": "user", "content": row["instruction"]}]
        assert written["proposals"] == [r["response"] for r in kept]
        assert written["proposal_models"] == [r["model"] for r in kept]
        assert json.loads(written["meta"]) == {"dataset": row["dataset"], "row": row["row"]}
    counts = [len(row["proposals"]) for row in read("out.jsonl")]
    usual = real.either(sample=5, whole=15)
    assert {i: n for i, n in enumerate(counts) if n != usual} == real.either(
        sample={}, whole=dict.fromkeys((131, 209, 247, 504), 14)
    )


def test_queries_alone_are_records_too(convert, real):
    out = convert("proposals", real.path("alpaca_eval_v2.aft.jsonl"), "--output", "out.jsonl")
    count = real.either(sample=16, whole=805)
    assert out.splitlines() == [
        f"read {count} rows: {count} written to out.jsonl, 0 rejected",
        f"  {count} x rows without proposals",
    ]


# What cannot work: one line, exit code 2, nothing written

ERRORS = {
    "no output": ([], "--output is missing (it is optional only with --preview)"),
    "unknown template": (["--template", "papper"], "template: no aggregator template 'papper'; did you mean 'paper'?, or give the path of a .jinja file"),
    "max proposals 0": (["--max-proposals", "0"], "max_proposals: expected a number from 1, got 0"),
    "limit 0": (["--limit", "0"], "limit: expected a number from 1, got 0"),
    "limit negative": (["--limit", "-1"], "limit: expected a number from 1, got -1"),
    "limit too large": (["--limit", "9" * 30], "limit: expected a whole number of at most 64 bits"),
    "cutoff negative": (["--cutoff-len", "-1", "--tokenizer", "folder"], "cutoff_len: expected a number from 1, got -1"),
    "preview negative": (["--preview", "-1"], "preview: expected a number from 0, got -1"),
    "unknown field": (["--column", "proposal=x"], "columns: unknown field 'proposal'; did you mean 'proposals'?"),
    "column without name": (["--column", "proposals"], "column: expected FIELD=NAME, got 'proposals'"),
    "sft mixed": (["--target", "sft", "--mix-plain", "0.2"], "--mix-plain: rows of --target sft have no proposals; leave it out"),
    "sft of some width": (["--target", "sft", "--min-proposals", "1"], "--min-proposals: rows of --target sft have no proposals; leave it out"),
    "name alone": (["--name", "x"], "--name names the entry that --register adds; pass both"),
    "name with a comma": (["--register", ".", "--name", "a,b"], "--name 'a,b': LLaMA-Factory needs a name without commas and outer blanks"),
    "empty name": (["--register", ".", "--name", ""], "--name '': LLaMA-Factory needs a name without commas and outer blanks"),
    "name no UTF-8": (["--register", ".", "--name", "\udcff"], r"dataset_info.json: cannot be written with '\udcff' of out.jsonl in it: 'utf-8' codec can't encode character '\udcff' in position 5: surrogates not allowed"),
    "register nowhere": (["--register", "none"], "--register none: no such folder"),
    "rejects are the output": (["--rejects", "./x/../out.jsonl"], "--rejects and --output would write one file: x/../out.jsonl"),
    "rejects are the input": (["--rejects", "in.jsonl"], "--rejects would replace the input in.jsonl; name another file"),
    "rejects exist": (["--rejects", "thesis.tex"], "thesis.tex exists; pass --overwrite to replace it"),
    "rejects are a folder": (["--rejects", "folder"], "--rejects: folder: not a plain file; name one to write to"),
    "rejects are a device": (["--rejects", "/dev/null"], "--rejects: /dev/null: not a plain file; name one to write to"),
    "no such tokenizer": (["--tokenizer", "folder"], "cannot load the tokenizer 'folder': "),
}  # fmt: skip


@pytest.mark.parametrize(("flags", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_options_that_cannot_work(convert, flags, message):
    write("in.jsonl", ROWS)
    Path("thesis.tex").write_text("years of work")
    Path("folder").mkdir()
    output = [] if message.startswith("--output") else ["--output", "out.jsonl"]
    err = convert("proposals", "in.jsonl", *output, *flags, expect=2)
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert files() == ["folder", "in.jsonl", "thesis.tex"]
    assert Path("thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    "flags",
    [
        ["--template", "moa"],
        ["--template", "paper"],
        ["--max-proposals", "3"],
        ["--min-proposals", "2"],
        ["--shuffle-proposals"],
        ["--mix-plain", "0.1"],
        ["--without-proposals"],
        ["--seed", "1"],
    ],
    ids=" ".join,
)
def test_what_is_said_of_proposals_is_refused_where_there_are_none(convert, flags):
    write("in.jsonl", [ROWS[0] | {"reference": "A."}])
    argv = ("proposals", "in.jsonl", "--output", "out.jsonl", "--target")
    message = f"error: {flags[0]}: rows of --target sft have no proposals; leave it out\n"
    assert convert(*argv, "sft", *flags, expect=2) == message
    convert(*argv, "sft")
    convert(*argv, "aggregation", *flags, "--overwrite")


def test_all_that_is_wrong_is_told_at_once_with_a_line_each(convert):
    argv = ["proposals", write("in.jsonl", ROWS), "--limit", "0", "--target", "sft", "--name", "x"]
    assert convert(*argv, "--template", "moa", "--seed", "1", expect=2).splitlines() == [
        "error: limit: expected a number from 1, got 0",
        "--output is missing (it is optional only with --preview)",
        "--template: rows of --target sft have no proposals; leave it out",
        "--seed: rows of --target sft have no proposals; leave it out",
        "--name names the entry that --register adds; pass both",
    ]


PATHS = {
    "no input": ("none.jsonl", "out.jsonl", "none.jsonl: no such file, and not the OWNER/NAME of a data set on the hub"),
    "input a folder": ("folder", "out.jsonl", "folder: not a folder saved by datasets' save_to_disk: "),
    "input of unknown format": ("in.csv", "out.jsonl", "in.csv: unknown format; expected .jsonl or .json (plain, .gz or .zst) or .parquet"),
    "input name too long": ("x" * 300 + ".jsonl", "out.jsonl", "x" * 300 + ".jsonl: File name too long"),
    "output the input": ("in.jsonl", "in.jsonl", "--output would replace the input in.jsonl; name another file"),
    "output the input by a link": ("link.jsonl", "in.jsonl", "--output would replace the input link.jsonl; name another file"),
    "input the rejects": ("out.rejects.jsonl", "out.jsonl", "--rejects would replace the input out.rejects.jsonl; name another file"),
    "output of unknown format": ("in.jsonl", "out.txt", "out.txt: unknown format; expected .jsonl or .json (plain, .gz or .zst) or .parquet"),
    "output empty": ("in.jsonl", "", "--output: .: not a plain file; name one to write to"),
    "output a folder": ("in.jsonl", "folder.jsonl", "--output: folder.jsonl: not a plain file; name one to write to"),
    "output below a file": ("in.jsonl", "in.jsonl/out.jsonl", "--output: in.jsonl/out.jsonl: cannot be written: "),
    "output name too long": ("in.jsonl", "x" * 300 + ".jsonl", "--output: " + "x" * 300 + ".jsonl: cannot be written: "),
}  # fmt: skip


@pytest.mark.parametrize(("source", "output", "message"), PATHS.values(), ids=PATHS.keys())
def test_paths_that_cannot_work(convert, source, output, message):
    write("in.jsonl", ROWS)
    write("out.rejects.jsonl", ROWS)
    Path("in.csv").touch()
    Path("folder").mkdir()
    Path("folder.jsonl").mkdir()
    Path("link.jsonl").symlink_to("in.jsonl")
    before = files()
    err = convert("proposals", source, "--output", output, "--overwrite", expect=2)
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert files() == before
    assert read("in.jsonl") == ROWS


@pytest.mark.parametrize("output", ["dataset_info.json", "out.jsonl.gz"])
def test_what_llama_factory_would_not_find_is_not_registered(convert, output):
    write("in.jsonl", ROWS)
    err = convert("proposals", "in.jsonl", "--output", output, "--register", ".", expect=2)
    assert (
        err
        == {
            "dataset_info.json": "error: --register and --output would write one file: dataset_info.json; name another\n",
            "out.jsonl.gz": "error: LLaMA-Factory does not read .gz files; write .jsonl to --register it\n",
        }[output]
    )
    assert "--register needs --output" in convert(
        "proposals", "in.jsonl", "--preview", 1, "--register", ".", expect=2
    )
    assert files() == ["in.jsonl"]


def test_columns_are_for_proposals_only(convert):
    err = convert(
        "ultrafeedback",
        write("in.jsonl", ROWS),
        "--column",
        "id=x",
        "--output",
        "out.jsonl",
        expect=2,
    )
    assert err == (
        "error: --column: the layouts of ultrafeedback are known, it takes only ignore=NAME\n"
    )


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "q", "completions": [{"response": "a"}]},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
    ],
)
def test_a_column_of_ultrafeedbacks_rows_can_be_left_out_of_the_query(convert, row):
    source = write("in.jsonl", [{**row, "context": "of water"}])
    told = convert("ultrafeedback", source, "--output", "out.jsonl", expect=1)
    assert "1 x context: may belong to the query" in told
    convert(
        "ultrafeedback",
        source,
        "--output",
        "out.jsonl",
        "--overwrite",
        "--column",
        "ignore=context",
    )
    [written] = read("out.jsonl")
    assert "of water" not in json.dumps(written["messages"])


@pytest.mark.parametrize(
    "template",
    [
        "{{ proposals[9].x }}",
        "{{ 1 // 0 }}{{ proposals }}",
        "{{ proposals.__class__ }}",
        "{% include 'x' %}{{ proposals }}",
    ],
)
def test_a_template_that_fails_is_one_error(convert, template):
    Path("t.jinja").write_text(template)
    flags = ["--target", "sharegpt", "--output", "out.jsonl", "--template", "t.jinja"]
    err = convert("proposals", write("in.jsonl", ROWS), *flags, expect=2)
    assert err.startswith("error: template: 't.jinja' fails: ")
    assert files() == ["in.jsonl", "t.jinja"]


def test_a_template_that_fails_for_one_rows_drafts_costs_that_row(convert):
    Path("t.jinja").write_text("{{ proposals[1] }} or {{ proposals[0] }}")
    rows = [ROWS[0], ROWS[1] | {"proposals": ["5", " "]}]
    flags = ["--target", "sharegpt", "--output", "out.jsonl", "--template", "t.jinja"]
    out = convert("proposals", write("in.jsonl", rows), *flags)
    assert out.startswith("read 2 rows: 1 written to out.jsonl, 1 rejected (out.rejects.jsonl)\n")
    assert "  1 x template: 't.jinja' fails for 1 proposals: " in out
    [row] = read("out.jsonl")
    assert row["conversations"][0]["value"] == "6 or 5"


@pytest.mark.parametrize("target", ["sharegpt", "aggregation"])
def test_a_template_may_have_labels_for_fewer_drafts_than_anyone_could_bring(convert, target):
    labels = "{% for p in proposals %}{{ 'AB'[loop.index0] }}. {{ p }}\n{% endfor %}"
    Path("ab.jinja").write_text(labels)
    rows = [ROWS[1], ROWS[0]]  # of two drafts, and of three
    flags = ["--target", target, "--output", "out.jsonl", "--template", "ab.jinja", "--preview", 2]
    out = convert("proposals", write("in.jsonl", rows), *flags)
    # Records hold no prompt: the plugin makes it, and leaves such a row out.
    written = 1 if target == "sharegpt" else 2
    assert f"read 2 rows: {written} written to out.jsonl, {2 - written} rejected" in out
    assert len(read("out.jsonl")) == written
    assert ("cannot be rendered: template: 'ab.jinja' fails for 3 proposals" in out) == (
        written == 2
    )
    assert "\nA. 30\nB. 31\n" in out


@pytest.mark.parametrize("target", ["sharegpt", "sft"])
def test_targets_and_queries_hold_no_control_token_of_the_tokenizer_and_html_stays(
    convert, llama3_tokenizer_dir, target
):
    text = "<s>bold</s> <|eot_id|>"
    row = {"query": f"q {text}", "proposals": [f"p {text}"], "aggregation": f"a {text}"}
    row |= {"reference": f"a {text}"}
    flags = ["--target", target, "--output", "out.jsonl"]
    convert("proposals", write("in.jsonl", [row]), *flags, "--tokenizer", llama3_tokenizer_dir)
    [turns] = [row["conversations"] for row in read("out.jsonl")]
    assert [turn["value"] for turn in turns[-2:]] == [
        "q <s>bold</s> <\u200b|eot_id|>",
        "a <s>bold</s> <\u200b|eot_id|>",
    ]
    assert target == "sft" or turns[0]["value"].endswith("1. p <s>bold</s> <\u200b|eot_id|>")


def test_a_fitted_record_holds_texts_as_they_were(convert, llama3_tokenizer_dir):
    row = ROWS[0] | {
        "query": "q <|eot_id|>",
        "proposals": ["<|eot_id|> " * 600, "<|eot_id|> short"],
    }
    flags = ["--tokenizer", llama3_tokenizer_dir, "--cutoff-len", 700, "--output", "out.jsonl"]
    convert("proposals", write("in.jsonl", [row]), *flags)
    [record] = read("out.jsonl")
    assert record["messages"][-1]["content"] == "q <|eot_id|>"
    cut, whole = record["proposals"]
    assert whole == "<|eot_id|> short"
    assert 0 < len(cut) < len(row["proposals"][0])
    # Nothing is left of the breaks but where the cut goes through a marker.
    assert row["proposals"][0].startswith(cut.replace("\u200b", ""))
    assert cut.count("\u200b") <= 1


@pytest.mark.parametrize("target", ["sharegpt", "sft"])
def test_earlier_answers_are_told_of_where_stock_llamafactory_would_learn_them(convert, target):
    turns = [{"role": r, "content": r} for r in ("user", "assistant", "user")]
    rows = [ROWS[0] | {"query": turns}, ROWS[0] | {"query": turns[-1:]}]
    out = convert("proposals", write("in.jsonl", rows), "--target", target, "--output", "o.jsonl")
    assert "warning: 1 rows hold earlier answers. Set mask_history: true in" in out
    assert "mask_history" not in convert("proposals", "in.jsonl", "--output", "records.jsonl")


def test_a_file_that_may_not_be_read(convert):
    Path(write("in.jsonl", ROWS)).chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # root may read everything
        err = convert("proposals", "in.jsonl", "--preview", 1, expect=2)
    finally:
        os.seteuid(user)
    assert err == "error: in.jsonl: Permission denied\n"


def test_damage_in_the_middle_leaves_the_old_output(convert):
    write("out.jsonl", [{"old": 1}])
    write("out.rejects.jsonl", [{"old": 2}])
    Path("in.json").write_text(json.dumps([*ROWS, BAD])[:-1])
    err = convert("proposals", "in.json", "--output", "out.jsonl", "--overwrite", expect=2)
    assert err == "error: in.json: damaged JSON after row 2: the array does not end\n"
    assert (read("out.jsonl"), read("out.rejects.jsonl")) == ([{"old": 1}], [{"old": 2}])
    assert files() == ["in.json", "out.jsonl", "out.rejects.jsonl"]


# The process: signals, pipes, a full disk


def start(*argv, **options):
    """Start the command as a process of its own, in the current folder."""
    command = [sys.executable, "-m", "aft_factory.convert", *argv]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen(command, **options)


@contextlib.contextmanager
def in_the_middle(*argv):
    """Start a conversion that has read some rows from a pipe and waits for more."""
    os.mkfifo("in.jsonl")
    process = start(
        "proposals", "in.jsonl", "--output", "out.jsonl", "--overwrite", "--quiet", *argv
    )
    with Path("in.jsonl").open("w") as pipe:
        for _ in range(1000):
            pipe.write(json.dumps(ROWS[0]) + "\n" + json.dumps(BAD) + "\n")
        pipe.flush()
        while not any(name.endswith(".part") for name in files()):
            assert process.poll() is None
            time.sleep(0.01)
        yield process


def test_ctrl_c_leaves_the_old_output_and_no_other_file(folder):
    write("out.jsonl", [{"old": 1}])
    with in_the_middle() as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert process.communicate() == ("", "interrupted; nothing was written\n")
    assert files() == ["in.jsonl", "out.jsonl"]
    assert read("out.jsonl") == [{"old": 1}]


def test_kill_leaves_the_old_output_whole_and_the_next_run_works(folder):
    write("out.jsonl", [{"old": 1}])
    with in_the_middle() as process:
        process.kill()
        assert process.wait(timeout=60) == -signal.SIGKILL
    assert read("out.jsonl") == [{"old": 1}]
    assert (
        main(
            ["proposals", write("2.jsonl", ROWS), "--output", "out.jsonl", "--overwrite", "--quiet"]
        )
        == 0
    )
    assert len(read("out.jsonl")) == 2


def test_killed_at_any_moment_of_writing_the_same_command_ends_it(folder):
    output, rejects, info = "data/out.jsonl", "data/mine.rejects.jsonl", "info/dataset_info.json"

    def fresh():
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        Path("info").mkdir()
        write("in.jsonl", [*ROWS, BAD])
        return folder

    def run():
        flags = ["--rejects", rejects, "--register", "info", "--name", "mine", "--quiet"]
        return main(["proposals", "in.jsonl", "--output", output, *flags])

    assert check_every_kill(fresh, run, output, (output, rejects, info)) >= 3


def test_a_reader_that_has_seen_enough_is_no_error(folder):
    write("in.jsonl", ROWS * 2000)
    Path("data").mkdir()
    process = start(
        "proposals",
        "in.jsonl",
        "--output",
        "data/o.jsonl",
        "--register",
        "data",
        "--preview",
        "4000",
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr.read() == ""
    assert files() == ["data", "data/dataset_info.json", "data/o.jsonl", "in.jsonl"]


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full here")
def test_a_full_standard_output_is_one_error(folder):
    write("in.jsonl", ROWS)
    with Path("/dev/full").open("w") as full:
        process = start("proposals", "in.jsonl", "--output", "out.jsonl", "--quiet", stdout=full)
    assert process.communicate()[1] == "error: [Errno 28] No space left on device\n"
    assert process.returncode == 2
    assert len(read("out.jsonl")) == 2


def test_a_terminal_without_unicode_gets_escapes(folder):
    write("in.jsonl", [{"query": "六?", "proposals": ["é"]}])
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    process = subprocess.run(
        [sys.executable, "-m", "aft_factory.convert", "proposals", "in.jsonl", "--preview", "1", "--quiet"],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert (process.returncode, process.stderr) == (0, "")
    assert "1. \\xe9" in process.stdout
    assert "\\u516d?" in process.stdout
