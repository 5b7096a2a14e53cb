"""The command `python -m aft_factory.stats`, from end to end. Run: pytest tests/stats/test_stats.py"""

import csv
import json
import math
import random
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import demo_rows
from hypothesis import given
from hypothesis import strategies as st

from aft_factory.prompts.fitting import Fitter
from aft_factory.prompts.prelude import chat_template
from aft_factory.prompts.rendering import load_template
from aft_factory.prompts.selection import PAPER
from aft_factory.prompts.tokenizer import load_tokenizer, resolve_chat_template
from aft_factory.records.record import record_from_row
from aft_factory.records.table_writer import TableWriter
from aft_factory.records.tables import Line
from aft_factory.stats.__main__ import main
from aft_factory.stats.counts import MOST_NAMES, OTHERS, Counts, count_words
from aft_factory.stats.distributions import Distribution
from aft_factory.stats.plot import BINS, histogram
from aft_factory.stats.report import TokenCounts
from aft_factory.stats.settings import StatsSettings

ROWS = [
    {"id": "a", "query": "How many?", "proposals": ["five", "six", "five"], "aggregation": "Six.",
     "scores": [0.5, 1.0, 0.5], "proposal_models": ["m", "m", None], "source": "s", "reference": "6"},
    {"id": "b", "query": "How many?", "proposals": ["6", " "], "scores": [2, 2], "source": "s",
     "meta": {"finish_reasons": ["stop", "length"]}},
    {"id": "b", "query": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}],
     "proposals": ["6", "  x"], "aggregation": "", "meta": {"truncated": False}},
    {"id": "d", "query": "How many?", "proposals": ["6", " "], "scores": [None, 1.0]},
    {"id": "e", "query": "Why?", "aggregation": "日本 because"},
]  # fmt: skip
BAD = [{"query": "x", "proposals": "none"}, {"query": ""}, {"query": "x", "proposals": "no list"}]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def stats(folder, capsys):
    """Run the command in the folder; return stdout, or stderr where it is to fail."""

    def run(*argv, expect=0):
        code = main([*map(str, argv), "--quiet"])
        out, err = capsys.readouterr()
        assert code == expect, err
        assert (err == "") == (code != 2)
        return out if code != 2 else err

    return run


@pytest.fixture
def numbers(stats):
    """Run the command and return what it writes as JSON."""

    def run(*argv):
        stats(*argv, "--json", "out.json", "--overwrite")
        return json.loads(Path("out.json").read_text())

    return run


def write(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def test_every_number_of_a_small_file(numbers):
    found = numbers(write("rows.jsonl", [*ROWS, *BAD]))
    assert found["rows"] == {
        "read": 8,
        "usable": 5,
        "unusable": 3,
        "unusable_by_field": {
            "proposals": {"rows": 2, "first": "expected a list, got str 'none'"},
            "query": {"rows": 1, "first": "the query is empty"},
        },
    }
    assert found["proposals_per_row"] == {"0": 1, "2": 3, "3": 1}
    assert found["duplicates"] == {"ids": 1, "queries": 2, "queries_and_proposals": 1}
    assert found["rows_with_equal_proposals"] == 1
    assert found["empty"] == {
        "proposals": 2,
        "rows_without_proposals": 1,
        "aggregations": 3,
        "references": 4,
    }
    assert found["sources"] == {"": 3, "s": 2}
    assert found["proposal_models"] == {"m": 2, "": 1}
    assert found["truncated"] == {"rows_that_tell": 2, "rows": 1}
    scores = found["scores"]
    assert (scores["count"], scores["min"], scores["p50"], scores["max"]) == (6, 0.5, 1, 2)
    assert scores["mean"] == pytest.approx(7 / 6)
    assert scores["missing"] == 1
    # One known score makes no best one.
    assert [scores[key] for key in ("rows", "best_is_first", "best_is_tied")] == [2, 1, 1]
    quantiles = {"p5": 0, "p25": 0, "p50": 1, "p75": 2, "p95": 2, "p99": 2}
    assert found["words"]["aggregation"] == {"count": 3, "min": 0, **quantiles, "max": 2, "mean": 1}
    # 14 bytes of UTF-8 in 10 characters.
    assert found["characters"]["aggregation"]["max"] == 10
    assert found["tokens"]["aggregation"]["max"] == 4
    assert found["tokens"]["how"] == "estimated: bytes of UTF-8 / 4"


def test_the_text_says_the_same(stats):
    text = stats(write("rows.jsonl", [*ROWS, *BAD]))
    assert text.startswith(
        "8 rows read, 5 usable, 3 unusable\n"
        "  2 x proposals: expected a list, got str 'none'\n"
        "  1 x query: the query is empty\n"
        "proposals per row: 0 in 1, 2 in 3, 3 in 1 rows\n"
    )
    for line in (
        "rows longer: 0.0% than 2048, 0.0% than 4096, 0.0% than 8192 tokens",
        "rows that repeat an earlier one's: id 1, query 2, query and proposals 1",
        "rows with equal proposals inside: 1",
        "empty or missing: 2 proposals, 3 aggregations, 4 references; rows without a proposal: 1",
        "of 2 rows with two scores or more: best first 50.0%, best tied 50.0%",
        "sources: '' 3, 's' 2",
        "models of proposals: 'm' 2, '' 1",
        "rows with a cut-off answer: 1 of 2 that tell",
    ):
        assert line in text.splitlines()


def test_columns_in_no_prompt_are_told_and_wide_numbers_stand_apart(stats, numbers):
    rows = [
        {"query": "a", "proposals": ["b" * 12_345_679], "topic": "x", "note": " ", "tools": "[]"}
    ]
    assert numbers(write("rows.jsonl", rows))["in_no_prompt"] == ["topic"]
    text = stats(write("rows.jsonl", [*rows, {"query": "b", "proposals": ["b"]}]))
    assert "in no prompt, as they are no part of a query by their names: topic" in text
    [line, *_] = [line for line in text.splitlines() if "1.23457e+07" in line]
    assert len(line.split()) == 10  # the name and nine numbers


@pytest.mark.parametrize("name", ["r.json", "r.jsonl.gz", "r.jsonl.zst", "r.parquet"])
def test_any_format_gives_the_same_numbers(numbers, name):
    plain = numbers(write("rows.jsonl", demo_rows()))
    with TableWriter(Path(name)) as table:
        for row in demo_rows():
            table.write(row)
    assert numbers(name) | {"file": ""} == plain | {"file": ""}


def test_other_columns_can_be_named(numbers):
    rows = write("rows.jsonl", [{"query": "a", "drafts": ["1", "2"]}])
    assert numbers(rows, "--column", "proposals=drafts")["proposals_per_row"] == {"2": 1}


@pytest.mark.parametrize(
    ("meta", "told"),
    [
        ({}, {}),
        ({"truncated": [False, True]}, {"rows_that_tell": 1, "rows": 1}),
        ({"finish_reason": "stop"}, {"rows_that_tell": 1, "rows": 0}),
        ({"sampling": {"finish_reasons": ["stop", "length"]}}, {"rows_that_tell": 1, "rows": 1}),
        ({"sampling": {"finish_reasons": ["stop", "MAX_TOKENS"]}}, {"rows_that_tell": 1, "rows": 1}),
        ({"sampling": {"finish_reasons": ["stop"], "problems": ["no closing fence"]}},
         {"rows_that_tell": 1, "rows": 0}),
        ({"aggregating": {"finish_reason": "stop", "gates": []}}, {"rows_that_tell": 1, "rows": 0}),
        ({"aggregating": {"gates": ["truncated"]}}, {"rows_that_tell": 1, "rows": 1}),
        ({"aggregating": {"gates": []}}, {"rows_that_tell": 1, "rows": 0}),
        ({"sampling": "none"}, {}),
    ],
)  # fmt: skip
def test_cut_off_answers_are_known_from_meta(meta, told):
    counts = Counts()
    counts.read_line(Line("file", 1, {"query": "a", "meta": meta}))
    assert counts.to_dict()["truncated"] == told


def test_a_file_without_proposals_gets_a_hint(stats):
    assert "--column proposals=NAME" in stats(write("rows.jsonl", [{"query": "a"}]))


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["missing.jsonl"], "missing.jsonl: no such file"),
        (["rows.jsonl", "--limit", "0"], "limit: expected a number from 1, got 0"),
        (["rows.jsonl", "--sample", "-1"], "sample: expected a number from 0, got -1"),
        (
            ["rows.jsonl", "--json", "rows.jsonl", "--overwrite"],
            "--json would replace the input rows.jsonl",
        ),
        (["rows.jsonl", "--json", "old.json"], "old.json exists; pass --overwrite"),
        (["rows.jsonl", "--plot", "a.pdf"], "expected a name that ends in .png"),
        (["rows.jsonl", "--plot", "a.png", "--json", "a.csv"], "would write one file"),
        (["rows.jsonl", "--column", "x"], "expected FIELD=NAME"),
        (["rows.jsonl", "--tokenizer", "./nowhere"], "cannot load the tokenizer './nowhere'"),
    ],
)
def test_what_cannot_be_meant_is_refused(stats, argv, problem):
    write("rows.jsonl", ROWS)
    Path("old.json").write_text("old")
    error = stats(*argv, expect=2)
    assert problem in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert Path("old.json").read_text() == "old"


def test_no_usable_row_ends_with_1(stats):
    assert stats(write("rows.jsonl", BAD), expect=1).startswith("3 rows read, 0 usable, 3 unusable")


def test_a_line_that_is_no_json_is_counted(stats):
    Path("rows.jsonl").write_text('{"query": "a"}\n{oops\n')
    assert "1 x row: not JSON" in stats("rows.jsonl")


def test_names_from_data_cannot_write_to_the_terminal(stats):
    text = stats(write("rows.jsonl", [{"query": "a", "source": "\x1b[2J\nrows with"}]))
    assert "sources: '\\x1b[2J\\nrows with' 1" in text.splitlines()


@given(st.text() | st.text("a \t\n\x0b\x0c\r\x1c\x1f\x00"))
def test_words_are_what_stands_between_blanks(text):
    assert count_words(text) == len(text.split())


@given(st.lists(st.integers(0, 50) | st.floats(-5, 5), min_size=1))
def test_quantiles_are_those_of_the_sorted_values(values):
    distribution = Distribution()
    for value in values:
        distribution.add(value)
    found, ordered = distribution.summary(), sorted(values)
    assert found["count"] == len(values)
    assert (found["min"], found["max"]) == (ordered[0], ordered[-1])
    assert found["mean"] == pytest.approx(statistics.fmean(values), abs=1e-9)
    for percent in (5, 25, 50, 75, 95, 99):
        rank = max(1, math.ceil(percent / 100 * len(values)))
        assert found[f"p{percent}"] == ordered[rank - 1]
    assert distribution.over(3) == sum(v > 3 for v in values) / len(values)


@given(
    st.dictionaries(st.sampled_from(["query", "proposals", "scores", "meta", "source", "id", "aggregation"]),
        st.recursive(st.none() | st.text() | st.integers() | st.floats(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=6))
)  # fmt: skip
def test_every_row_is_usable_or_has_a_reason(row):
    counts = Counts()
    counts.read_line(Line("file", 1, row))
    numbers = counts.to_dict()["rows"]
    assert numbers["usable"] + numbers["unusable"] == 1
    assert (
        sum(field["rows"] for field in numbers["unusable_by_field"].values()) == 1 - counts.usable
    )
    assert json.dumps(counts.to_dict(), allow_nan=False)


def test_scores_that_are_not_finite_are_missing():
    counts = Counts()
    counts._add_scores([math.nan, 1.0, math.inf, 3.0, -math.inf, None])
    row = {"query": "q", "proposals": ["a", "b"], "scores": [math.nan, 2.0]}
    assert counts.read_line(Line("file", 1, row)) is not None
    scores = counts.to_dict()["scores"]
    assert (scores["count"], scores["min"], scores["max"]) == (3, 1.0, 3.0)
    assert (scores["missing"], scores["rows"], scores["best_is_first"]) == (5, 1, 0)


def test_a_source_per_row_does_not_fill_the_memory():
    counts = Counts()
    for i in range(MOST_NAMES + 50):
        counts.read_line(Line("file", i, {"query": "a", "source": f"s{i}"}))
    assert len(counts.sources) == MOST_NAMES + 1
    assert counts.sources[OTHERS] == 50


# With a tokenizer


def measured(tokenizer, rows):
    """The tokens of rows as training counts them, and of their proposals, one by one."""
    chat = resolve_chat_template("auto", tokenizer)
    fitter = Fitter(tokenizer, chat, None, load_template("paper"))
    records = [record_from_row(row) for row in rows]
    rows = [(r.messages, r.proposals, r.aggregation) for r in records]
    whole = [fitter.fit_all([row])[0].tokens for row in rows]
    texts = [text for record in records for text in record.proposals]
    return whole, [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts]


def test_a_thought_that_was_kept_is_part_of_a_training_row(numbers, llama3_tokenizer_dir):
    rows = [ROWS[0], ROWS[0] | {"id": "c", "aggregation_thought": "five and one " * 100}]
    for flags in ([], ["--tokenizer", llama3_tokenizer_dir]):
        found = numbers(write("rows.jsonl", rows), *flags)["tokens"]
        assert found["row"]["max"] - found["row"]["min"] > 300
        assert found["aggregation"]["max"] == found["aggregation"]["min"]


def test_token_lengths_are_those_of_training(numbers, llama3_tokenizer_dir):
    rows = demo_rows()
    found = numbers(write("rows.jsonl", rows), "--tokenizer", llama3_tokenizer_dir)["tokens"]
    whole, parts = measured(load_tokenizer(str(llama3_tokenizer_dir)), rows)
    assert found["how"] == f"counted in all rows by {llama3_tokenizer_dir}"
    for name, values in (("row", whole), ("proposal", parts)):
        assert found[name]["count"] == len(values)
        assert (found[name]["min"], found[name]["max"]) == (min(values), max(values))
        assert found[name]["mean"] == pytest.approx(statistics.fmean(values))
    assert found["over"]["2048"] == sum(n > 2048 for n in whole) / len(whole)


def test_a_row_that_the_chat_template_refuses_is_counted_and_told(
    stats, llama3_tokenizer_dir, tmp_path
):
    refuses = "{% if 'bad' in messages[-1].content %}{{ raise_exception('I will not') }}{% endif %}"
    template = tmp_path / "chat.jinja"
    template.write_text(refuses + chat_template("llama3"))
    rows = [{"query": query, "proposals": ["a"], "aggregation": "b"} for query in ("good", "bad")]
    flags = ("--tokenizer", llama3_tokenizer_dir, "--chat-template", template)
    told = stats(write("rows.jsonl", rows), *flags, "--json", "out.json")
    found = json.loads(Path("out.json").read_text())["tokens"]
    assert (found["row"]["count"], found["refused"]) == (1, 1)
    assert "1 rows have no whole: refused by the chat template: I will not" in told


def test_a_marker_in_a_proposal_counts_as_the_text_it_is_trained_as(numbers, llama3_tokenizer_dir):
    row = {"query": "a", "proposals": ["<|eot_id|>"], "aggregation": "b"}
    found = numbers(write("rows.jsonl", [row]), "--tokenizer", llama3_tokenizer_dir)["tokens"]
    assert found["proposal"]["min"] > 1


def test_all_rows_give_the_numbers_of_a_sample_that_holds_all(numbers, llama3_tokenizer_dir):
    rows = write("rows.jsonl", demo_rows() * 2)
    flags = ("--tokenizer", llama3_tokenizer_dir, "--sample")
    assert numbers(rows, *flags, 0)["tokens"] == numbers(rows, *flags, 10**6)["tokens"]


def test_a_sample_is_drawn_by_ids_and_not_by_places(numbers, llama3_tokenizer_dir):
    rows = [row | {"id": f"row-{i}"} for i, row in enumerate(demo_rows())]
    flags = ("--tokenizer", llama3_tokenizer_dir, "--sample", 10)
    one = numbers(write("rows.jsonl", rows), *flags)
    random.Random(1).shuffle(rows)
    other = numbers(write("other.jsonl", rows), *flags)
    assert one["tokens"] == other["tokens"]
    assert one["tokens"]["rows"] == 10
    assert one["tokens"]["how"].startswith(f"counted in 10 of {len(rows)} rows by ")
    assert one["characters"]["query"]["count"] == len(rows)


def test_a_sample_has_the_mean_of_all_within_its_error(llama3_tokenizer_dir):
    tokenizer = load_tokenizer(str(llama3_tokenizer_dir))
    fitter = Fitter(tokenizer, "{{ messages[-1].content }}", None, load_template("paper"))
    tokens = TokenCounts(fitter, PAPER, 200)
    lengths = [1 + i % 100 for i in range(2000)]
    for i, n in enumerate(lengths):
        tokens.add(record_from_row({"id": str(i), "query": "1 " * n}))
    for chunk in tokens.rest():
        tokens.measure(chunk)
    assert tokens.rows == 200
    whole = statistics.fmean(2 * n for n in lengths)
    assert tokens.lengths.parts["query"].summary()["mean"] == pytest.approx(whole, rel=0.15)


# Plot


def test_a_plot_is_png_svg_and_csv_that_add_up(stats):
    stats(write("rows.jsonl", demo_rows()), "--plot", "lengths.png")
    assert Path("lengths.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in Path("lengths.svg").read_text(encoding="utf-8")
    table = list(csv.DictReader(Path("lengths.csv").read_text().splitlines()))
    count = {}
    for row in table:
        count[row["part"]] = count.get(row["part"], 0) + int(row["count"])
    rows = demo_rows()
    proposals = sum(len(row["proposals"]) for row in rows)
    assert count == {
        "query": len(rows), "proposal": proposals, "aggregation": len(rows), "row": len(rows)
    }  # fmt: skip


def test_equal_numbers_give_equal_plots(stats):
    rows = write("rows.jsonl", ROWS)
    stats(rows, "--plot", "a.png")
    stats(rows, "--plot", "b.png")
    for kind in ("png", "svg", "csv"):
        assert Path(f"a.{kind}").read_bytes() == Path(f"b.{kind}").read_bytes()


def test_one_huge_row_does_not_squeeze_the_histogram():
    parts = {"row": Distribution()}
    for length in [*range(1000), 10**9]:
        parts["row"].add(length)
    width, bins = histogram(parts)
    assert width < 20
    assert sum(bins["row"]) == 1001
    assert len(bins["row"]) == BINS


def test_without_matplotlib_the_plot_says_what_to_install(stats, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    error = stats(write("rows.jsonl", ROWS), "--plot", "a.png", expect=2)
    assert error == "error: --plot needs matplotlib; install it with: pip install matplotlib\n"


# Real data


def test_real_alpaca_eval_proposals(numbers, real):
    rows = real.rows("alpaca_eval_proposals.jsonl")
    found = numbers(real.path("alpaca_eval_proposals.jsonl"))
    assert found["rows"]["usable"] == len(rows)
    assert sum(int(n) * count for n, count in found["proposals_per_row"].items()) == sum(
        len(row.get("proposals") or row.get("responses") or []) for row in rows
    )


def test_a_shard_is_told_of_as_such(stats, numbers):
    rows = write("rows.jsonl", [*ROWS, *BAD])
    assert stats(rows, "--shard", "1/3").startswith("3 rows of shard 1/3 read, 2 usable, 1 unus")
    found = numbers(rows, "--shard", "1/3")
    assert (found["shard"], found["rows"]["read"]) == ("1/3", 3)
    assert found["tokens"] == numbers(write("shard.jsonl", [ROWS[1], ROWS[4]]))["tokens"]
    assert numbers(rows)["shard"] is None


def test_what_merging_needs_is_among_what_is_left():
    settings = StatsSettings(input="rows.jsonl", json=Path("part.json"), shard="0/2")
    assert settings.leaves().traces == [Path("part.json.shard")]
    assert not replace(settings, shard=None).leaves().traces
