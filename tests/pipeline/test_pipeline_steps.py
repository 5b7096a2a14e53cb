"""The steps of a pipeline: what its file may say, and the flags it becomes. Runs nothing."""

from dataclasses import replace

import pytest
import yaml
from conftest import ROOT

from aft_factory.errors import UsageError
from aft_factory.pipeline.step import COMMANDS
from aft_factory.pipeline.steps import check_ready, read_pipeline

EXAMPLES = sorted((ROOT / "examples").glob("pipeline_*.yaml"))


@pytest.fixture
def read(tmp_path):
    """Reads a pipeline of these stages."""

    def read(*stages, **more):
        path = tmp_path / "pipeline.yaml"
        content = {"folder": "made", "stages": list(stages)}
        path.write_text(yaml.safe_dump(content | more, sort_keys=False))
        return read_pipeline(path)

    return read


@pytest.fixture
def refused(read, tmp_path):
    """Reads a pipeline that is wrong; all that is wrong with it, less the name of the file."""

    def problems(*stages, **more):
        with pytest.raises(UsageError) as error:
            read(*stages, **more)
        return str(error.value).replace(f"{tmp_path / 'pipeline.yaml'}: ", "").splitlines()

    return problems


@pytest.fixture
def flags(read):
    """From the settings of a stage to its flags, without that of the output."""

    def flags(stage, settings):
        base = {"input": "in.jsonl", "output": "out.jsonl"}
        base |= {"model": "m"} if stage in ("sample", "run") else {}
        [step] = read({stage: base | settings})
        words = step.command()[3:]
        command = COMMANDS[stage]
        said = command.read(vars(command.parser().parse_args(words)))
        assert replace(said, by_flag=()) == replace(step.read, by_flag=())
        given = ["proposals", step.input, f"--output={step.settings['output']}", "--model=m"]
        return [word for word in words if word not in given], step.read

    return flags


def test_all_that_is_wrong_with_a_file_is_told_at_once(refused):
    assert refused({"smaple": {}}, {"rank": {}}, {"train": {}}, "x", extra=1) == [
        "unknown key 'extra'; known: allow_failed, folder, stages",
        "stages[1]: unknown stage 'smaple'; did you mean 'sample'?",
        "stages[2].rank: input is missing",
        "stages[2].rank: output is missing",
        "stages[3].train: config is missing: a YAML file of LLaMA-Factory's",
        "stages[4]: expected one stage and its settings, got 'x'",
    ]


def test_settings_of_every_stage_are_checked_by_its_own_classes_and_at_once(refused, tmp_path):
    (tmp_path / "train.yaml").write_text("output_dir: saves/x\n")
    assert refused(
        {"convert": {"input": "x.jsonl", "output": "a.jsonl", "source": "ultra", "limt": 3}},
        {"sample": {"output": "b.jsonl", "modle": "m", "top_p": "high"}},
        {"rank": {"output": "c.jsonl", "top_k": 0}},
        {"aggregate": {"output": "d.jsonl", "drop": ["copies"], "template": "papre"}},
        {"stats": {"sample": "many", "dry_run": True}},
        {"train": {"config": str(tmp_path / "train.yaml"), "epochs": 3}},
        {"run": {"output": "e.jsonl", "strategy": "best", "model": "m"}},
    ) == [
        "stages[1].convert: source: expected one of ultrafeedback, proposals, got 'ultra'",
        "stages[1].convert: unknown key 'limt'; did you mean 'limit'?",
        "stages[2].sample: unknown key 'modle'; did you mean 'model'?",
        "stages[2].sample: top_p: expected a number, got 'high'",
        "stages[3].rank: top_k: expected a number from 1, got 0",
        "stages[4].aggregate: drop: unknown gate 'copies'; did you mean 'copy'?",
        "stages[4].aggregate: no aggregator template 'papre'; did you mean 'paper'?, "
        "or give the path of a .jinja file",
        "stages[5].stats: sample: expected a whole number, got 'many'",
        "stages[5].stats: unknown key 'dry_run'; known: chat_template, column, data_revision, "
        "data_subset, input, json, limit, plot, quiet, sample, shard, split, template, tokenizer, "
        "tokenizer_revision, trust_remote_code",
        "stages[6].train: unknown key 'epochs'; known: config, input",
        "stages[7].run: strategy: unknown 'best'; did you mean 'best_of_n'?",
    ]


@pytest.mark.parametrize(
    ("stage", "settings", "expected"),
    [
        ("aggregate", {"drop": ["copy", "empty"]}, ["--drop", "copy", "empty"]),
        ("aggregate", {"drop": []}, []),
        ("aggregate", {"base_url": "http://a/v1"}, ["--base-url", "http://a/v1"]),
        ("aggregate", {"pseudo": True}, ["--pseudo"]),
        ("aggregate", {"pseudo": False}, ["--no-pseudo"]),
        ("aggregate", {"temperature": 0}, ["--temperature=0.0"]),
        ("aggregate", {"engine_args": {}}, []),
        ("aggregate", {"engine_args": {"dtype": "half"}}, ["--engine-args=dtype=half"]),
        ("aggregate", {"engine_args": ["a=1", "b=2"]}, ["--engine-args=a=1", "--engine-args=b=2"]),
        ("run", {"proposer_system": "-x"}, ["--proposer-system=-x"]),
        ("convert", {"shuffle_proposals": False}, []),
        ("convert", {"column": "id=name"}, ["--column=id=name"]),
        (
            "convert",
            {"column": ["id=no", "proposals=7"]},
            ["--column=id=no", "--column=proposals=7"],
        ),
        ("convert", {"column": {"id": "no"}}, ["--column=id=no"]),
    ],
    ids=str,
)
def test_a_setting_becomes_the_flag_that_says_it(flags, stage, settings, expected):
    assert flags(stage, settings)[0] == expected


@pytest.mark.parametrize(
    "value",
    [
        *("1234567", "no", "null", "", "a b", "x: y", "'", "1e-05", "2024-01-01", "é\n"),
        *(1e-05, 7, 0.5, True, None, [1, "2"], {"rope": {"type": "yarn", "factor": "4"}}),
    ],
    ids=repr,
)
def test_a_value_of_a_dict_keeps_its_type(flags, value):
    _, settings = flags("run", {"engine_args": {"revision": value}})
    assert settings.engine_args == {"revision": value}


@pytest.mark.parametrize(
    ("stage", "settings", "problem"),
    [
        ("run", {"top_k": None}, "top_k: expected a value, got nothing; leave the line out"),
        ("run", {"chat_template": False}, "chat_template: expected a text, got False; put it in q"),
        ("run", {"model": 7}, "model: expected a text, got 7; put it in quotes"),
        ("run", {"scripted": "yes"}, "scripted: expected true or false, got 'yes'"),
        ("run", {"width": True}, "width: expected a whole number, got True"),
        ("run", {"width": 2.5}, "width: expected a whole number, got 2.5"),
        ("run", {"base_url": [["x"]]}, "base_url: expected texts, got [['x']]"),
        ("run", {"engine_args": ["dtype"]}, "engine_args: expected KEY=VALUE, got 'dtype'"),
        ("convert", {"column": {"query": 1}}, "column: expected a text, got 1"),
        ("convert", {"mix_plain": 2}, "mix_plain: expected a share from 0 to 1, got 2.0"),
        ("rank", {"help": True}, "unknown key 'help'"),
        ("rank", {"export": True}, "unknown key 'export'"),
    ],
    ids=str,
)
def test_a_value_that_no_flag_can_say_is_refused(refused, stage, settings, problem):
    base = {"input": "in.jsonl", "output": "out.jsonl"}
    base |= {"model": "m"} if stage == "run" else {}
    [line] = refused({stage: base | settings})
    assert line.startswith(f"stages[1].{stage}: {problem}")


def test_a_list_that_a_file_of_settings_fills_cannot_be_emptied_beside_it(refused, tmp_path):
    config = tmp_path / "aggregate.yaml"
    config.write_text("drop: [copy]\n")
    settings = {"input": "x.jsonl", "output": "y.jsonl", "config": str(config), "drop": []}
    [line] = refused({"aggregate": settings})
    assert line == f"stages[1].aggregate: drop: cannot be emptied here; take it out of {config}"


def test_a_bare_file_name_is_a_file_in_the_folder_and_a_path_or_folder_is_as_it_stands(read):
    settings = {"input": "x.jsonl", "output": "./y.jsonl", "rejects": "r.jsonl", "register": "data"}
    [step] = read({"convert": settings}, folder="data")
    assert dict(step.settings) == {
        "input": "data/x.jsonl",
        "output": "./y.jsonl",
        "rejects": "data/r.jsonl",
        "register": "data",
    }


def test_the_folder_is_a_path(refused):
    stage = {"rank": {"input": "x.jsonl", "output": "y.jsonl"}}
    assert refused(stage, folder=5) == ["folder: expected a path, got 5"]


@pytest.mark.parametrize("share", [True, -0.1, 1.1, "some", None, float("nan")], ids=repr)
def test_what_may_fail_is_a_share(refused, share):
    stage = {"rank": {"input": "x.jsonl", "output": "y.jsonl"}}
    [line] = refused(stage, allow_failed=share)
    assert line == f"allow_failed: expected a share from 0 to 1, got {share!r}"


def test_two_stages_cannot_write_one_file(refused):
    assert refused(
        {"convert": {"input": "x.jsonl", "output": "y.jsonl"}},
        {"rank": {"output": "z.jsonl"}},
        {"convert": {"output": "made/y.jsonl"}},
    ) == [
        "stages[3].convert: made/y.jsonl is written by stages[1].convert already; name another file"
    ]


def test_two_stages_cannot_share_rejects_either_and_those_of_other_formats_do_not(refused):
    assert refused(
        {"rank": {"input": "x.jsonl", "output": "a.jsonl"}},
        {"aggregate": {"output": "b.jsonl", "rejects": "made/a.rejects.jsonl"}},
        {"convert": {"output": "b.json", "rejects": "c.jsonl"}},
        {"rank": {"output": "b.parquet", "rejects": "d.jsonl"}},
    ) == [
        "stages[2].aggregate: made/a.rejects.jsonl is written by stages[1].rank already; "
        "name another file"
    ]


def test_two_stages_cannot_register_one_data_set(refused):
    convert = {"input": "x.jsonl", "register": "data"}
    assert refused(
        {"convert": convert | {"output": "a.jsonl"}},
        {"convert": convert | {"output": "b.jsonl"}},
        {"convert": convert | {"output": "c.jsonl", "name": "a"}},
    ) == [
        "stages[3].convert: the data set 'a' of data/dataset_info.json is written by "
        "stages[1].convert already; name another file"
    ]


def test_what_a_stage_leaves_is_all_of_its_files(read, tmp_path):
    (tmp_path / "run.yaml").write_text("journal: kept.journal\ntask: gsm8k\n")
    steps = read(
        {"convert": {"input": "x.jsonl", "output": "a.jsonl", "register": "data"}},
        {
            "run": {
                "output": "b.jsonl",
                "model": "m",
                "config": str(tmp_path / "run.yaml"),
                "task_output": "c.jsonl",
            }
        },
        {"stats": {"json": "d.json", "plot": "e.png"}},
    )
    assert [list(step.leaves.places().values()) for step in steps] == [
        ["made/a.jsonl", "made/a.rejects.jsonl", "the data set 'a' of data/dataset_info.json"],
        [
            "made/b.jsonl",
            "made/c.jsonl",
            "made/b.rejects.jsonl",
            "kept.journal",
            "made/b.summary.json",
        ],
        ["made/d.json", "made/e.png", "made/e.svg", "made/e.csv"],
    ]


def test_what_no_stage_makes_is_to_be_there_before_the_first_one_starts(read, tmp_path):
    (tmp_path / "train.yaml").write_text(f"output_dir: {tmp_path / 'saves'}\n")
    (tmp_path / "x.jsonl").write_text("{}\n")
    steps = read(
        {"rank": {"input": str(tmp_path / "x.jsonl"), "output": "y.jsonl", "rejects": "r.jsonl"}},
        {"rank": {"input": "r.jsonl", "output": "again.jsonl"}},
        {"rank": {"input": "again.rejects.jsonl", "output": "third.jsonl"}},
        {"run": {"input": "queries.jsonl", "output": "z.jsonl", "model": "m"}},
        {"run": {"input": "not/there.jsonl", "output": "zz.jsonl", "model": "m"}},
    )
    with pytest.raises(UsageError) as error:
        check_ready(steps)
    assert [line.partition(": no such file")[0] for line in str(error.value).splitlines()] == [
        "stages[4].run: input made/queries.jsonl",
        "stages[5].run: input not/there.jsonl",
    ]


def test_llamafactory_is_to_be_there_before_the_first_stage_starts(read, tmp_path, monkeypatch):
    monkeypatch.setattr("aft_factory.pipeline.training.CLI", "no-such-cli")
    (tmp_path / "train.yaml").write_text(f"output_dir: {tmp_path / 'saves'}\n")
    with pytest.raises(UsageError, match=r"stages\[1\].train: needs no-such-cli; install it"):
        check_ready(read({"train": {"config": str(tmp_path / "train.yaml")}}))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_the_examples_are_commands_that_the_stages_take(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for step in read_pipeline(path):
        assert str(step).split()[0] == ("llamafactory-cli" if step.stage == "train" else "python")
