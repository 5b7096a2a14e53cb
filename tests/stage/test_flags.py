"""The command line: what is wrong is told in one line, and `--help` has what most need first.

Run: pytest tests/stage/test_flags.py
"""

import importlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from conftest import ROOT

from aft_factory import __version__, cli
from aft_factory.inference.strategies import STRATEGIES
from aft_factory.records.tables import is_table
from aft_factory.stage.declaring import COMMON, argument, setting
from aft_factory.stage.flags import Parser, add_flags, usage_of, with_argument


@dataclass(frozen=True)
class Job:
    input: str | None = argument(None, "rows")
    models: list[str] = setting([], "some")
    codes: list[str] = setting([], "one at a time", form="repeated")
    rate: float = setting(0.5, "a number")
    width: int | None = setting(None, "how many", short="-K", group=COMMON)
    way: Literal["up", "down"] = setting("up", "one of two")
    on: str | None = setting(None, "where, or here", bare="here")
    fast: bool = setting(False, "on or off")
    where: Path | None = setting(None, "a file", group="files")


def parse(*argv):
    parser = Parser("job", "", "", usage_of(Job))
    add_flags(parser, Job)
    return vars(parser.parse_args(argv))


def told(capsys, *argv):
    """What a command says on stderr before it ends with 2."""
    with pytest.raises(SystemExit, match="2"):
        sys.exit(cli.main(argv))
    return capsys.readouterr().err


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"query": "How many?"}\n')
    return "rows.jsonl"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--widht", "3"], "unknown flag --widht; did you mean '--width'?"),
        (["--widht=3"], "unknown flag --widht; did you mean '--width'?"),
        (["--base_url", "x"], "unknown flag --base_url; did you mean '--base-url'?"),
        (["--zzz"], "unknown flag --zzz; --help lists those known"),
        (["--k", "3"], "unknown flag --k; did you mean '-K'?"),
        (
            ["--aggregator-prompt", "x"],
            "unknown flag --aggregator-prompt; did you mean '--template'?",
        ),
        (
            ["--input", "x"],
            "unknown flag --input; INPUT stands without a flag: aft run INPUT [FLAGS]",
        ),
        (
            ["--column", "query=a", "proposals=b"],
            "repeat --column for each: --column query=a --column proposals=b",
        ),
        (["--top-p", "high"], "argument --top-p: invalid float value: 'high'"),
        (["more.jsonl"], "one word too many: 'more.jsonl'; usage: aft run INPUT [FLAGS]"),
    ],
)
def test_a_wrong_word_is_told_in_one_line(rows, capsys, argv, message):
    line = f"error: {message} (aft run --help tells more)\n"
    assert told(capsys, "run", rows, "--output", "o.jsonl", *argv) == line


NEEDED = {  # by command, what it does not begin without, where that is not its rows
    "convert": ["proposals", "rows.jsonl"],
    "push": ["rows.jsonl", "me/x", "--license", "other"],
    "analyze": ["curves", "saves", "--output", "o.png"],
    "report": ["eval", "--output", "o.html"],
}


def test_a_wrong_flag_of_every_command_is_told_in_one_line(rows, capsys):
    for name in cli.STAGES:
        words = NEEDED.get(name, [rows])
        err = told(capsys, name, *words, "--zzz")
        assert (err.startswith("error: unknown flag --zzz"), err.count("\n")) == (True, 1)


@pytest.mark.parametrize("words", [("convert", "proposals"), ("stats",)])
def test_a_flag_of_commands_that_ask_a_model_is_told_as_such(rows, capsys, words):
    err = told(capsys, *words, rows, "--in-flight", "2")
    assert err.startswith("error: unknown flag --in-flight; it is for commands that ask a model (")


@pytest.mark.parametrize("words", [("push", "me/x", "--license", "other"), ("eval", "gsm8k")])
def test_what_is_published_or_evaluated_has_no_shards(rows, capsys, words):
    assert told(capsys, words[0], rows, *words[1:], "--shard", "0/2").startswith(
        "error: unknown flag --shard; did you mean '--shar"
        if words[0] == "push"
        else "error: unknown flag --shard; "
    )


@pytest.mark.parametrize(
    "words", [("eval", "gsm8k", "--shard"), ("serve", "--limit"), ("template", "x", "--limit")]
)
def test_a_flag_that_is_not_only_of_those_is_told_otherwise(capsys, words):
    assert "that ask a model" not in told(capsys, *words, "3")


def test_a_part_of_a_flag_is_not_taken_for_it(rows, capsys):
    words = ("aggregate", rows, "--output", "o.jsonl", "--scripted", "--keep")
    assert "unknown flag --keep; did you mean '--keep-thoughts'?" in told(capsys, *words)


def test_a_file_where_a_source_is_named_tells_the_usual_one(rows, capsys):
    assert f"did you mean: aft convert proposals {rows} (" in told(capsys, "convert", rows)
    assert "did you mean" not in told(capsys, "convert", "missing.jsonl")


def test_k_and_l_are_width_and_layers(rows, capsys):
    assert parse("-K", "3") == {"width": 3}
    assert cli.main(["run", rows, "--output", "o.jsonl", "--scripted", "-K", "3", "-L", "1"]) == 0
    used = json.loads(Path("o.summary.json").read_text())["settings"]
    assert (used["width"], used["layers"]) == (3, 1)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--width", "3", "--width", "5"], "-K/--width: given twice, as 3 and as 5"),
        (["-K", "3", "--width=5"], "-K/--width: given twice, as 3 and as 5"),
        (["--where", "a", "--where", "b"], "--where: given twice, as a and as b"),
        (["--way", "up", "--way", "down"], "--way: given twice, as up and as down"),
        (["--fast", "--no-fast"], "--fast/--no-fast: given twice, as True and as False"),
    ],
)
def test_a_flag_that_is_given_two_values_is_refused(capsys, argv, message):
    with pytest.raises(SystemExit, match="2"):
        parse(*argv)
    assert f"error: argument {message} (" in capsys.readouterr().err


def test_a_flag_may_be_said_again_and_lists_grow():
    assert parse("-K", "3", "--width", "3", "--no-fast", "--no-fast", "--way", "up") == {
        "width": 3,
        "fast": False,
        "way": "up",
    }
    words = ("--models", "a", "b", "--models", "c", "--codes", "x", "--codes", "y")
    assert parse(*words) == {"models": ["a", "b", "c"], "codes": ["x", "y"]}


def test_an_input_that_a_list_flag_has_taken_is_given_back():
    given = parse("--models", "a", "b", "x.jsonl", "-K", "1")
    assert with_argument(given, "input", is_table, Job) == {
        "models": ["a", "b"],
        "input": "x.jsonl",
        "width": 1,
    }


def test_a_flag_that_needs_no_value_has_one_of_its_own_and_gives_an_input_back():
    assert parse("--on") == {"on": "here"}
    assert parse("--on", "there") == {"on": "there"}
    given = {"on": "here", "input": "x.jsonl"}
    assert with_argument(parse("--on", "x.jsonl"), "input", is_table, Job) == given
    assert with_argument(parse("x.jsonl", "--on"), "input", is_table, Job) == given


@pytest.mark.parametrize(
    "argv",
    [
        ("--models", "x.jsonl"),  # it is all there is
        ("--models", "a", "b"),
        ("--models", "a", "http://host/x.json"),
        ("y.jsonl", "--models", "a", "x.jsonl"),  # there is an input
        ("--codes", "a", "--codes", "x.jsonl"),  # which takes one at a time
    ],
)
def test_nothing_else_is_taken_for_an_input(argv):
    assert with_argument(parse(*argv), "input", is_table, Job) == parse(*argv)


def test_an_input_behind_base_url_is_run(rows, capsys):
    url = "http://127.0.0.1:1/v1"
    flags = ["--output", "o.jsonl", "--dry-run", "--quiet"]
    assert cli.main(["run", "--base-url", url, rows, *flags]) == 0
    assert capsys.readouterr().out.startswith("1 rows, 0 of them unusable")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--base-url", "rows.jsonl"], "got 'rows.jsonl'"),
        (
            ["--base-url", "me/rows"],
            "got 'me/rows'; is it the INPUT, or a BENCHMARK? name that first",
        ),
    ],
)
def test_what_is_no_url_is_told(rows, capsys, words, message):
    err = told(capsys, "run", "--output", "o.jsonl", *words)
    assert err == f"error: base_url: expected a URL such as http://host:8000/v1, {message}\n"


def test_without_an_input_the_command_line_is_shown(rows, capsys):
    err = told(capsys, "run", "--scripted")
    assert err == "error: name the INPUT: aft run INPUT --output OUTPUT ...\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "train.yaml",
            (ROOT / "examples/aft_llama.yaml").read_text(),
            "looks like a file for llamafactory-cli; expected settings of `aft run`",
        ),
        (
            "all.yaml",
            (ROOT / "examples/pipeline_tiny.yaml").read_text(),
            "looks like a pipeline; expected settings of `aft run`: give it to `aft pipeline`",
        ),
        ("x.jsonl", "{}\n{}\n", "looks like a file of rows; expected lines of `key: value`"),
        ("x.yaml", "a: [\n\n", "cannot be read as YAML: while parsing"),
        (
            "x.yaml",
            "input: rows.jsonl\noutput: o.jsonl\nwidth: 3\n",
            "input, output: not for a file of settings; give it on the command line: INPUT, --output",
        ),
        ("x.yaml", "qwert: 1\n", "unknown key 'qwert'; --help lists those known"),
    ],
)
def test_a_wrong_config_is_told_in_one_line(rows, capsys, name, content, message):
    Path(name).write_text(content)
    err = told(capsys, "run", rows, "--output", "o.jsonl", "--scripted", "--config", name)
    assert (err.startswith(f"error: {name}: {message}"), err.count("\n")) == (True, 1)


@pytest.mark.parametrize(
    ("words", "config", "final"),
    [
        ([], "", 1024),  # the preset's own
        (["--max-tokens", "100"], "", 100),
        ([], "max_tokens: 100\n", 100),
        (["--max-tokens", "100", "--final-max-tokens", "50"], "", 50),
        (["--max-tokens", "100"], "final_max_tokens: 50\n", 50),
    ],
)
def test_what_is_said_of_max_tokens_holds_for_a_presets_final_layer(rows, words, config, final):
    Path("run.yaml").write_text(config)
    command = importlib.import_module("aft_factory.run.__main__").COMMAND
    line = [rows, "--preset", "mt_bench", "--scripted", "--config", "run.yaml", *words]
    settings = command.read(vars(command.parser().parse_args(line)))
    assert settings.final().max_tokens == final
    assert settings.final_top_p == 1.0  # which is the preset's, and stays


def test_help_has_the_ten_that_most_need_first(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["run", "--help"])
    text = capsys.readouterr().out
    titles = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert titles[:4] == ["positional arguments", "options", COMMON, "files"]
    first = text.split(f"{COMMON}:")[1].split("\n\n")[0]
    assert re.findall(r"^  (?:-\w \w, )?(--[\w-]+)", first, re.MULTILINE) == [
        *("--output", "--dry-run", "--preset", "--model", "--base-url", "--temperature"),
        *("--max-tokens", "--strategy", "--width", "--layers"),
    ]
    words = " ".join(text.split())
    for name, value in STRATEGIES["propose_and_aggregate"].options.items():
        assert re.search(rf"--{name} [KL] [^-]*\(default: {value}; of others: their own\)", words)
    assert text.startswith("usage: aft run INPUT [FLAGS]\n\n")
    assert "--temperature X " in text  # and not TEMPERATURE


def test_help_spells_commands_in_one_way(capsys):
    for name in cli.STAGES:
        with pytest.raises(SystemExit, match="0"):
            sys.exit(cli.main([name, "--help"]))
        text = capsys.readouterr().out
        assert text.startswith(f"usage: aft {name} ")
        assert "python -m" not in text


def test_aft_tells_its_version_and_helps(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"aft-factory {__version__}\n"
    assert cli.main(["help"]) == 0
    assert capsys.readouterr().out.startswith("usage: aft STAGE")
    with pytest.raises(SystemExit, match="0"):
        cli.main(["help", "stats"])
    assert capsys.readouterr().out.startswith("usage: aft stats FILE")
    assert told(capsys, "help", "statz") == "error: no stage 'statz'; did you mean 'stats'?\n"
