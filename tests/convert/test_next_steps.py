"""Where one is and what comes next: every command ends with the next one, to be copied.

Run: pytest tests/convert/test_next_steps.py
"""

import json
import shlex
from pathlib import Path

import pytest
import yaml
from asking_tools import read_lines, write_lines
from conftest import ROOT, demo_rows

from aft_factory import cli
from aft_factory.prompts.tokenizer import load_tokenizer
from aft_factory.stage.following import PIPELINE

ROWS = [{k: row[k] for k in ("query", "proposals", "aggregation")} for row in demo_rows()[:4]]
OWN = [
    {"ask": row["query"], "drafts": row["proposals"], "best": row["aggregation"]} for row in ROWS
]
ASK, DRAFTS, BEST = (
    ("--column", name) for name in ("query=ask", "proposals=drafts", "aggregation=best")
)


@pytest.fixture
def aft(tmp_path, monkeypatch, capsys):
    """Run a command line in an empty folder; returns (code, lines of stdout or of stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        scripted = ("--scripted",) if words[0] in ("sample", "rank", "aggregate", "run") else ()
        code = cli.main([*words, *scripted, "--quiet"])
        printed = capsys.readouterr()
        return code, (printed.err if code == 2 else printed.out).splitlines()

    return run


def without(rows, *names):
    return [{key: row[key] for key in row if key not in names} for row in rows]


def test_following_the_last_lines_leads_from_queries_to_a_data_set_for_training(aft):
    write_lines(Path("queries.jsonl"), without(ROWS, "proposals", "aggregation"))
    words = ["convert", "proposals", "queries.jsonl", "--output", "records.jsonl"]
    stages = []
    while words:
        code, lines = aft(*words)
        stages.append(words[0])
        assert code == 0
        ours = lines[-1].startswith("next: aft ")
        words = shlex.split(lines[-1].removeprefix("next: aft ")) if ours else []
    assert stages == ["convert", "sample", "rank", "aggregate", "convert"]
    assert lines[-2] == (
        "registered as 'my_aft' in dataset_info.json; train with dataset_dir: ., dataset: my_aft, "
        "template: aft_llama3 (or aft_ before another template)"
    )
    assert len(read_lines(Path("my_aft.jsonl"))) == 4
    assert list(json.loads(Path("dataset_info.json").read_text())) == ["my_aft"]


def test_files_of_a_folder_stay_in_it(aft):
    Path("data").mkdir()
    write_lines(Path("data/in.jsonl"), ROWS)
    assert aft("rank", "data/in.jsonl", "--output", "data/r.jsonl")[1][-1] == (
        "next: aft aggregate data/r.jsonl --output data/aggregated.jsonl"
    )
    assert aft("aggregate", "data/in.jsonl", "--output", "data/a b.jsonl")[1][-1] == (
        "next: aft convert proposals 'data/a b.jsonl' --output data/my_aft.jsonl --register data"
    )


def test_a_run_tells_how_to_read_its_answers(aft):
    write_lines(Path("in.jsonl"), without(ROWS, "proposals", "aggregation"))
    code, lines = aft("run", "in.jsonl", "--output", "out.jsonl")
    assert (code, lines[-1]) == (0, "next: aft run --inspect out.jsonl")


def test_in_a_pipeline_it_is_the_pipeline_that_does_what_comes_next(aft, monkeypatch):
    write_lines(Path("in.jsonl"), ROWS)
    monkeypatch.setenv(PIPELINE, "1")
    for words in (("rank", "in.jsonl"), ("convert", "proposals", "in.jsonl")):
        code, lines = aft(*words, "--output", f"{words[0]}.jsonl")
        assert (code, [line for line in lines if "next" in line]) == (0, [])


def test_records_without_aggregation_are_not_trainable_yet(aft):
    write_lines(Path("in.jsonl"), [*without(ROWS[:3], "aggregation"), ROWS[3]])
    assert aft("convert", "proposals", "in.jsonl", "--output", "out.jsonl")[1][-2:] == [
        "3 rows without aggregation, not trainable yet",
        "next: aft aggregate out.jsonl --output aggregated.jsonl",
    ]


def test_a_training_file_that_is_not_registered_tells_how(aft):
    Path("d").mkdir()
    write_lines(Path("in.jsonl"), ROWS)
    assert aft("convert", "proposals", "in.jsonl", "--output", "d/x.jsonl")[1][-1] == (
        "next: the same command with --register d --overwrite makes it a data set of LLaMA-Factory's"
    )
    words = ("convert", "proposals", "in.jsonl", "--output", "d/x.jsonl", "--register", "d")
    assert aft(*words, "--overwrite")[1][-2:] == [
        "registered as 'x' in d/dataset_info.json; train with dataset_dir: d, dataset: x, "
        "template: aft_llama3 (or aft_ before another template)",
        "next: llamafactory-cli train examples/aft_llama.yaml dataset_dir=d dataset=x "
        "template=aft_llama3",
    ]


def test_the_baselines_file_is_trained_by_the_baselines_settings(aft):
    write_lines(Path("in.jsonl"), [row | {"reference": "It is six."} for row in ROWS])
    words = ("convert", "proposals", "in.jsonl", "--output", "x.jsonl", "--register", ".")
    assert aft(*words, "--target", "sft")[1][-1] == (
        "next: llamafactory-cli train examples/sft_llama.yaml dataset_dir=. dataset=x "
        "template=aft_llama3"
    )


def test_the_training_is_that_of_the_tokenizer_where_it_is_known(
    aft, tiny_mistral, llama3_tokenizer_dir, tmp_path
):
    write_lines(Path("in.jsonl"), ROWS)
    own = load_tokenizer(str(tiny_mistral))
    own.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    own.save_pretrained(tmp_path / "own")
    words = ("convert", "proposals", "in.jsonl", "--output", "x.jsonl", "--register", ".")
    for tokenizer, *told in (
        (tiny_mistral, "aft_mistral", "aft_mistral.yaml dataset_dir=. dataset=x template=aft_mistral"),
        (llama3_tokenizer_dir, "aft_llama3", "aft_llama.yaml dataset_dir=. dataset=x template=aft_llama3"),
        (tmp_path / "own", "aft_T, T being that of your model"),
    ):  # fmt: skip
        code, lines = aft(*words, "--overwrite", "--tokenizer", str(tokenizer))
        place, *train = lines[-len(told) :]
        assert (code, place) == (
            0,
            "registered as 'x' in dataset_info.json; train with dataset_dir: ., dataset: x, "
            f"template: {told[0]}",
        )
        assert train == [f"next: llamafactory-cli train examples/{line}" for line in told[1:]]


@pytest.mark.parametrize(
    ("flags", "templates", "train"),
    [
        (
            ["--template", "moa"],
            "aft_llama3_moa (or aft_ before another template)",
            "aft_llama.yaml dataset_dir=. dataset=x template=aft_llama3_moa",
        ),
        (
            ["--chat-template", "mistral"],
            "aft_mistral",
            "aft_mistral.yaml dataset_dir=. dataset=x template=aft_mistral",
        ),
        (
            ["--template", "my own.jinja"],
            "'aft_llama3:my own.jinja' (or aft_ before another template)",
            "aft_llama.yaml dataset_dir=. dataset=x 'template=aft_llama3:my own.jinja'",
        ),
    ],
)
def test_the_templates_to_train_with_are_those_of_the_rows(aft, flags, templates, train):
    Path("my own.jinja").write_text("{% for p in proposals %}{{ p }}\n{% endfor %}")
    write_lines(Path("in.jsonl"), ROWS)
    words = ("convert", "proposals", "in.jsonl", "--output", "x.jsonl", "--register", ".")
    told, command = aft(*words, *flags)[1][-2:]
    assert told.endswith(f"dataset: x, template: {templates}")
    assert command == f"next: llamafactory-cli train examples/{train}"
    file = ROOT / "examples" / train.split()[0]
    assert yaml.safe_load(file.read_text())["template"] in command


def test_where_no_row_has_proposals_the_columns_are_listed(aft):
    write_lines(Path("in.jsonl"), OWN)
    code, lines = aft("convert", "proposals", "in.jsonl", "--output", "out.jsonl", *ASK)
    assert (code, Path("out.jsonl").exists()) == (2, False)
    assert lines == [
        "error: none of the 4 rows has proposals; the first has the columns: ask, drafts, best. "
        "Name theirs (--column proposals=NAME), or sample some: "
        "aft sample in.jsonl --output sampled.jsonl --column=query=ask"
    ]
    # What it says works, both ways.
    code, lines = aft(*shlex.split(lines[0].partition(": aft ")[2]))
    assert (code, lines[0]) == (0, "read 4 rows: 4 written to sampled.jsonl, 0 rejected")
    assert aft("convert", "proposals", "in.jsonl", "--output", "o.jsonl", *ASK, *DRAFTS)[0] == 0
    # One row with proposals is enough.
    write_lines(Path("in.jsonl"), [*OWN, {"ask": "?", "proposals": ["a"]}])
    assert aft("convert", "proposals", "in.jsonl", "--output", "p.jsonl", *ASK)[0] == 0


def test_rows_that_hold_nothing_but_a_query_are_records(aft):
    write_lines(Path("in.jsonl"), without(ROWS, "proposals", "aggregation"))
    code, lines = aft("convert", "proposals", "in.jsonl", "--output", "out.jsonl")
    assert (code, lines) == (
        0,
        [
            "read 4 rows: 4 written to out.jsonl, 0 rejected",
            "  4 x rows without proposals",
            "next: aft sample out.jsonl --output sampled.jsonl",
        ],
    )


@pytest.mark.parametrize("flags", [["--register", "."], ["--target", "sharegpt"]])
def test_where_no_row_has_an_aggregation_to_train_on_the_columns_are_listed(aft, flags):
    write_lines(Path("in.jsonl"), OWN)
    words = ("convert", "proposals", "in.jsonl", "--output", "out.jsonl", *ASK, *DRAFTS, *flags)
    code, lines = aft(*words)
    assert (code, Path("out.jsonl").exists(), Path("dataset_info.json").exists()) == (
        2,
        False,
        False,
    )
    assert lines == [
        "error: none of the 4 rows has an aggregation to train on; the first has the columns: ask, "
        "drafts, best. Name theirs (--column aggregation=NAME), or make them: aft aggregate in.jsonl "
        "--output aggregated.jsonl --column=query=ask --column=proposals=drafts"
    ]
    assert aft(*shlex.split(lines[0].partition(": aft ")[2]))[0] == 0
    assert aft(*words, *BEST)[0] == 0
    # Other rejects are told as such.
    write_lines(Path("in.jsonl"), [*without(OWN, "best"), {"no": 1}])
    code, lines = aft(*words[:4], "o.jsonl", *words[5:])
    assert (code, lines[0][:40]) == (1, "read 5 rows: 0 written, 5 rejected (o.re")


def test_a_source_that_never_has_aggregations_says_so(aft):
    row = {
        "instruction": "How many?",
        "completions": [{"response": "5", "model": "m", "overall_score": 4.0, "annotations": {}}],
    }
    write_lines(Path("in.jsonl"), [row])
    code, lines = aft(
        "convert", "ultrafeedback", "in.jsonl", "--output", "u.jsonl", "--register", "."
    )
    assert (code, lines) == (
        2,
        [
            "error: none of the 1 rows has an aggregation to train on, as ultrafeedback has none: "
            "convert without --register to records first, then make them: aft aggregate u.jsonl "
            "--output aggregated.jsonl"
        ],
    )


@pytest.mark.parametrize("command", ["rank", "aggregate"])
def test_a_row_without_proposals_lists_its_columns(aft, command):
    write_lines(Path("in.jsonl"), OWN)
    code, lines = aft(command, "in.jsonl", "--output", "out.jsonl", *ASK)
    assert (code, lines[1]) == (
        1,
        "  4 x proposals: missing or blank; sample some first, or name their column "
        "(--column proposals=NAME) of: ask, drafts, best",
    )
    assert aft(command, "in.jsonl", "--output", "out.jsonl", *ASK, *DRAFTS)[0] == 0


@pytest.mark.parametrize("command", ["sample", "rank", "aggregate", "run", "stats"])
def test_columns_can_be_named_in_every_command(aft, command):
    write_lines(Path("in.jsonl"), OWN)
    output = () if command == "stats" else ("--output", "out.jsonl")
    code, lines = aft(command, "in.jsonl", *output, *ASK, *DRAFTS, *BEST)
    assert (code, lines[0][:12]) == (0, "4 rows read," if command == "stats" else "read 4 rows:")


def test_a_column_named_the_wrong_way_round_is_turned(aft):
    write_lines(Path("in.jsonl"), OWN)
    code, lines = aft("stats", "in.jsonl", "--column", "ask=query")
    assert (code, lines) == (2, ["error: column: the field comes first: query=ask"])


def test_columns_are_named_one_by_one(aft):
    write_lines(Path("in.jsonl"), OWN)
    told = "error: column: repeat --column for each: --column query=ask --column proposals=drafts"
    assert aft("stats", "in.jsonl", "--column", "query=ask,proposals=drafts") == (2, [told])
    write_lines(Path("comma.jsonl"), [{"a,b": "How many?", "drafts": ["1"]}])  # names as they are
    code, _ = aft("stats", "comma.jsonl", "--column", "query=a,b", *DRAFTS)
    assert code == 0


@pytest.mark.parametrize("command", ["convert", "aggregate"])
def test_a_column_that_the_user_left_out_is_not_told_as_left_out_by_us(aft, command, caplog):
    rows = [row | {"context": "In a barn.", "note": "x"} for row in ROWS]
    write_lines(Path("in.jsonl"), rows)
    words = ("proposals", "in.jsonl") if command == "convert" else ("in.jsonl",)
    _, lines = aft(command, *words, "--output", "out.jsonl", "--column", "ignore=context")
    [told] = [line for line in [*lines, *caplog.messages] if line.startswith("in no prompt")]
    assert (told.endswith("by their names: note"), "context" in told) == (True, False)


def test_rejects_are_counted_by_kind_apart_from_what_is_only_told(aft):
    good = {"query": "How many?", "proposals": ["1"], "aggregation": "One."}
    rows = [
        *(good | {"proposals": value} for value in ("none", "", 7)),
        *(good, good, {"query": "Why?", "aggregation": "So."}),
    ]
    write_lines(Path("in.jsonl"), rows)
    _, lines = aft("convert", "proposals", "in.jsonl", "--output", "out.jsonl")
    at = lines.index("only told, and no reason to reject a row:")
    rejected = int(lines[0].partition(" written to out.jsonl, ")[2].partition(" ")[0])
    assert sum(int(line.split(" x ")[0]) for line in lines[1:at]) == rejected > 0
    assert any("rows without proposals" in line for line in lines[at:])


@pytest.mark.parametrize(
    ("task", "columns"),
    [
        ("alpaca_eval", "instruction"),
        ("mt_bench", "question_id, turns"),
        ("gsm8k", "question, answer"),
        ("ifeval", "key, prompt"),
    ],
)
def test_an_error_of_a_task_names_its_columns_and_the_rows(aft, task, columns):
    write_lines(Path("in.jsonl"), OWN)
    code, lines = aft("run", "in.jsonl", "--output", "out.jsonl", "--task", task)
    assert code == 1
    assert lines[1].endswith(f"; {task} reads {columns}; the row has: ask, drafts, best")
    # Where it has them all, the error is of what is in them.
    row = {key: [] for key in columns.split(", ")}
    write_lines(Path("in.jsonl"), [row])
    lines = aft("run", "in.jsonl", "--output", "o.jsonl", "--task", task)[1]
    assert "reads" not in lines[1]


@pytest.mark.parametrize(
    ("lacks", "words"),
    [
        (["proposals", "aggregation"], "aft sample in.jsonl --output sampled.jsonl"),
        (["aggregation"], "aft aggregate in.jsonl --output aggregated.jsonl"),
        ([], "aft convert proposals in.jsonl --output train.jsonl --register ."),
    ],
)
def test_stats_tells_the_next_command_by_what_the_rows_lack(aft, lacks, words):
    write_lines(Path("in.jsonl"), without(ROWS, *lacks))
    assert aft("stats", "in.jsonl")[1][-1] == f"next: {words}"
