"""The pipeline: stages in order, each done once and again when what it is made from changes."""

import json
import shutil

import pytest
import yaml
from conftest import ROOT, demo_rows
from flaky_server import error, serving

from aft_factory.cli import STAGES
from aft_factory.cli import main as aft
from aft_factory.errors import UsageError
from aft_factory.pipeline import training
from aft_factory.pipeline.__main__ import main
from aft_factory.pipeline.step import COMMANDS
from aft_factory.pipeline.steps import KEYS, read_pipeline
from aft_factory.pipeline.steps import STAGES as STEPS
from aft_factory.records.record import record_from_row


def write_pipeline(folder, *stages, **more):
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump({"folder": str(folder), "stages": list(stages)} | more))
    return path


def write_prompts(folder, count=6):
    rows = [{"id": f"p{i}", "query": row["query"]} for i, row in enumerate(demo_rows()[:count])]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


SAMPLE = {"input": "prompts.jsonl", "output": "sampled.jsonl", "scripted": True, "samples": 4}
SCRIPTED = (
    {"sample": SAMPLE},
    {"rank": {"output": "ranked.jsonl", "scripted": True, "top_k": 2}},
    {"aggregate": {"output": "made.jsonl", "scripted": True}},
    {"convert": {"output": "aft.jsonl", "source": "proposals"}},
)


@pytest.fixture
def scripted(tmp_path):
    """A pipeline of scripted stages, some of whose settings may be changed; its file."""
    write_prompts(tmp_path)

    def changed(**settings):
        stages = json.loads(json.dumps(SCRIPTED))
        for stage in stages:
            [(name, own)] = stage.items()
            own.update(settings.get(name, {}))
        return write_pipeline(tmp_path, *stages)

    return changed


@pytest.fixture
def run(capfd):
    """Runs a pipeline; its exit code, and the numbers of the stages that were not done before."""

    def run(path):
        capfd.readouterr()
        code = main([str(path)])
        run.out, run.err = capfd.readouterr()
        titles = [line for line in run.out.splitlines() if line.startswith("[")]
        run.worked = [int(t[1]) for t in titles if ": python" in t or ": llamafactory" in t]
        return code

    return run


def test_each_stage_reads_what_the_one_before_wrote(tmp_path, scripted, run):
    assert run(scripted()) == 0
    [first, *_] = made = [record_from_row(row) for row in rows_of(tmp_path / "aft.jsonl")]
    assert len(made) == 6
    assert len(first.proposals) == 2
    assert first.aggregation
    assert {"sampling", "ranking", "aggregating"} <= set(first.meta)
    assert "[4/4] convert: python -m aft_factory.convert proposals" in run.out


def test_what_is_done_is_not_done_again_until_its_input_or_settings_change(tmp_path, scripted, run):
    assert run(scripted()) == 0
    assert run.worked == [1, 2, 3, 4]
    assert run(scripted()) == 0
    assert (run.worked, run.out.count("done before")) == ([], 4)
    assert run(scripted(rank={"top_k": 3})) == 0
    assert run.worked == [2, 3, 4]
    assert len(rows_of(tmp_path / "aft.jsonl")[0]["proposals"]) == 3
    write_prompts(tmp_path, 5)
    assert run(scripted(rank={"top_k": 3})) == 0
    assert run.worked == [1, 2, 3, 4]
    (tmp_path / "made.jsonl").unlink()
    assert run(scripted(rank={"top_k": 3})) == 0
    assert run.worked == [3]  # it is what it was, so what is made from it is done


def test_a_prompt_or_file_of_settings_that_was_edited_is_a_change(tmp_path, scripted, run):
    shutil.copy(ROOT / "templates" / "aggregate" / "moa.jinja", tmp_path / "mine.jinja")
    (tmp_path / "sample.yaml").write_text("samples: 4\n")
    path = scripted(
        sample={"config": str(tmp_path / "sample.yaml")},
        aggregate={"template": str(tmp_path / "mine.jinja")},
    )
    assert run(path) == 0
    with (tmp_path / "mine.jinja").open("a") as stream:
        stream.write("Be brief.\n")
    assert run(path) == 0
    assert run.worked == [3, 4]
    (tmp_path / "sample.yaml").write_text("samples: 4\nseed: 43\n")
    assert run(path) == 0
    assert run.worked == [1, 2, 3, 4]


def test_a_prompt_of_ours_that_was_edited_is_a_change(tmp_path, scripted, run, monkeypatch):
    templates = tmp_path / "templates"
    shutil.copytree(ROOT / "templates", templates)
    monkeypatch.setattr("aft_factory.pipeline.done.TEMPLATES", templates)
    assert run(scripted()) == 0
    with (templates / "propose" / "inst_1k_v4.jinja").open("a") as stream:
        stream.write("\n")
    assert run(scripted()) == 0
    assert run.worked == [1]


def test_a_model_that_was_made_anew_is_a_change_and_what_lies_in_a_cache_is_not(
    tmp_path, scripted, run
):
    model, cache = tmp_path / "model", tmp_path / "cache"
    for folder in (model, cache):
        (folder / "inner").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    path = scripted(sample={"model": str(model), "engine_args": {"download_dir": str(cache)}})
    assert run(path) == 0
    (cache / "inner" / "more").touch()
    assert (run(path), run.worked) == (0, [])
    (model / "inner" / "weights").touch()
    assert (run(path), run.worked) == (0, [1])


def test_a_file_that_was_mended_is_used_and_is_not_made_anew_over_the_change(
    tmp_path, scripted, run
):
    assert run(scripted()) == 0
    sampled, journal = tmp_path / "sampled.jsonl", tmp_path / "sampled.jsonl.journal"
    made = sampled.read_text()
    mended = made.replace('"proposals":["', '"proposals":["Mended. ', 1)
    sampled.write_text(mended)
    assert (run(scripted()), run.worked) == (0, [2, 3, 4])  # it is what they are made from now
    write_prompts(tmp_path, 7)
    asked = journal.read_bytes()
    refused = (
        f"error: stages[1].sample: {sampled} was changed since it was made, and is to be made "
        "anew, as its settings or what it was made from have changed; move it away first. It can "
        "stay in use as the `input` of the next stage"
    )
    assert main([str(scripted()), "--dry-run"]) == 2
    assert run(scripted()) == 2
    assert run.err == f"{refused}\n"
    assert (sampled.read_text(), journal.read_bytes()) == (mended, asked)
    sampled.rename(tmp_path / "mended.jsonl")
    assert (run(scripted()), run.worked) == (0, [1, 2, 3, 4])
    assert len(rows_of(sampled)) == 7


def test_a_change_to_a_later_file_stops_it_before_that_is_made_anew(tmp_path, scripted, run):
    assert run(scripted()) == 0
    with (tmp_path / "ranked.jsonl").open("a") as stream:
        stream.write("\n")
    write_prompts(tmp_path, 5)
    assert (run(scripted()), run.worked) == (2, [1])
    assert "stages[2].rank: " in run.err
    assert len(rows_of(tmp_path / "sampled.jsonl")) == 5


def test_a_stage_that_fails_stops_the_pipeline_and_is_tried_again(tmp_path, scripted, run):
    path = scripted(convert={"register": str(tmp_path / "data")})
    assert run(path) == 2
    assert "stopped at stage 4, convert (exit code 2)" in run.err
    (tmp_path / "data").mkdir()
    assert run(path) == 0
    assert run.worked == [4]


def test_nothing_starts_while_a_later_stage_is_wrong(tmp_path, scripted, run):
    assert run(scripted(rank={"top_k": 0}, convert={"limt": 1})) == 2
    assert "stages[2].rank: top_k" in run.err
    assert "stages[4].convert: unknown key 'limt'; did you mean 'limit'?" in run.err
    assert not (tmp_path / "sampled.jsonl").exists()


def test_stats_are_counted_anew_when_their_input_changes(tmp_path, scripted, run):
    stages = yaml.safe_load(scripted().read_text())["stages"]
    path = write_pipeline(
        tmp_path, *stages, {"stats": {"json": "stats.json", "plot": "lengths.png"}}, {"stats": {}}
    )
    assert run(path) == 0
    assert run.worked == [1, 2, 3, 4, 5, 6]
    write_prompts(tmp_path, 5)
    assert run(path) == 0
    assert run.worked == [1, 2, 3, 4, 5, 6]
    assert json.loads((tmp_path / "stats.json").read_text())["rows"]["read"] == 5
    (tmp_path / "lengths.png").unlink()
    assert run(path) == 0
    assert run.worked == [5]


def test_every_file_of_a_plot_is_to_be_there(tmp_path, scripted, run):
    stages = yaml.safe_load(scripted().read_text())["stages"]
    path = write_pipeline(tmp_path, stages[0], {"stats": {"plot": "lengths.png"}})
    assert run(path) == 0
    for suffix in ("svg", "csv"):
        (tmp_path / f"lengths.{suffix}").unlink()
        assert (run(path), run.worked) == (0, [2])


@pytest.mark.parametrize("wrong", [None, {"file_name": "other.jsonl"}, {}], ids=repr)
def test_a_registered_data_set_whose_entry_is_gone_or_changed_is_not_done(
    tmp_path, scripted, run, wrong
):
    info = tmp_path / "dataset_info.json"
    path = scripted(convert={"register": str(tmp_path), "template": "moa"})
    assert run(path) == 0
    made = json.loads(info.read_text())
    assert made == {
        "aft": {
            "file_name": "aft.jsonl",
            "formatting": "aggregation",
            "aggregation": {"template": "moa"},
        }
    }
    assert (run(path), run.worked) == (0, [])
    if wrong is None:
        info.unlink()
    else:
        info.write_text(json.dumps({"other": {}} | ({"aft": wrong} if wrong else {})))
    assert (run(path), run.worked) == (0, [4])
    assert json.loads(info.read_text())["aft"] == made["aft"]
    assert (run(path), run.worked) == (0, [])
    info.write_text(json.dumps(made | {"other": {}}))  # what is not its own is nothing to it
    assert (run(path), run.worked) == (0, [])


@pytest.fixture
def failing(tmp_path, run):
    """A pipeline of sample and rank on a server that fails the queries in `failing.bad`.

    `failing(**more)` runs it with more in its file, and returns its exit code.
    """
    write_prompts(tmp_path)
    queries = [row["query"] for row in demo_rows()[:6]]

    def answer(path, body):
        bad = any(queries[i] in body["prompt"] for i in failing.bad)
        return error(500, "out of memory") if bad else None

    def failing(sample=(), **more):
        settings = {"input": "prompts.jsonl", "output": "sampled.jsonl", "base_url": server.url}
        settings |= {"retries": 0} | dict(sample)
        rank = {"output": "ranked.jsonl", "scripted": True}
        failing.path = write_pipeline(tmp_path, {"sample": settings}, {"rank": rank}, **more)
        before = len(server.requests)
        code = run(failing.path)
        failing.asked = len(server.requests) - before
        return code

    failing.bad = ()
    with serving(answer=answer) as server:
        yield failing


def test_rows_that_the_engine_failed_stop_it_before_the_next_stage(tmp_path, failing, run):
    failing.bad = (1, 2, 4, 5)
    for _ in range(2):
        assert (failing(), run.worked) == (1, [1])
        assert "stopped after stage 1, sample: 4 of 6 rows have no answer, as the engine" in run.err
        assert "out of memory); the same command asks again\n" in run.err
        assert f"raise allow_failed (a share of the rows, now 0) in {failing.path}" in run.err
        assert not (tmp_path / "ranked.jsonl").exists()
    failing.bad = ()
    assert (failing(), run.worked, failing.asked) == (0, [1, 2], 4)
    assert len(rows_of(tmp_path / "ranked.jsonl")) == 6
    assert (failing(), run.worked) == (0, [])


def test_it_goes_on_without_the_share_that_is_allowed_and_makes_all_anew_when_the_rest_has_come(
    tmp_path, failing, run
):
    failing.bad = (2, 3)
    assert (failing(allow_failed=0.3), run.worked) == (1, [1])
    assert (failing(allow_failed=1 / 3), run.worked) == (0, [1, 2])
    assert run.err == "--scripted: no model is asked, the scores are made up\n"
    assert "[1/2] sample: 2 of 6 rows have no answer, as the engine failed (the first: " in run.out
    assert len(rows_of(tmp_path / "ranked.jsonl")) == 4
    assert (failing(allow_failed=1), run.worked) == (0, [1])  # what it made is what it was made of
    sampled = tmp_path / "sampled.jsonl"
    made = sampled.read_text()
    sampled.write_text(f"{made}\n")
    assert failing(allow_failed=1) == 2
    assert f"{sampled} was changed since it was made" in run.err
    sampled.write_text(made)
    failing.bad = ()
    assert (failing(allow_failed=1), run.worked, failing.asked) == (0, [1, 2], 2)
    assert len(rows_of(tmp_path / "ranked.jsonl")) == 6
    assert (failing(), run.worked) == (0, [])


def test_the_share_that_is_allowed_may_be_missing_in_a_benchmarks_file_too(tmp_path, run):
    rows = [{"key": i, "prompt": f"Write {i}.", "instruction_id_list": []} for i in range(4)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = {"input": "in.jsonl", "output": "out.jsonl", "task_output": "scored.jsonl"}
    answers |= {"task": "ifeval", "width": 1, "layers": 1, "retries": 0}
    bad = ["Write 2."]

    def fail(path, body):
        return error(500, "out of memory") if bad and bad[0] in str(body["messages"]) else None

    with serving(answer=fail) as server:
        stages = ({"run": answers | {"base_url": server.url}}, {"stats": {}})
        assert (run(write_pipeline(tmp_path, *stages)), run.worked) == (1, [1])
        assert "scored.jsonl: 1 of 4 rows have no answer; where that will do, allow" in run.err
        allowing = write_pipeline(tmp_path, *stages, allow_failed=0.25)
        assert (run(allowing), run.worked) == (0, [1, 2])
        assert ["rejected" in row for row in rows_of(tmp_path / "scored.jsonl")].count(True) == 1
        bad.clear()
        assert (run(allowing), run.worked) == (0, [1, 2])
    assert all(row["response"] for row in rows_of(tmp_path / "scored.jsonl"))


@pytest.mark.parametrize("stage", [{"sample": SAMPLE}, {"train": {"config": "x.yaml"}}], ids=repr)
def test_allow_failed_inside_a_stage_is_sent_to_the_top_of_the_file(tmp_path, stage):
    [(name, settings)] = stage.items()
    path = write_pipeline(tmp_path, {name: settings | {"allow_failed": 0.5}})
    with pytest.raises(UsageError) as refused:
        read_pipeline(path)
    assert refused.value.args[0] == (
        f"{path}: stages[1].{name}: allow_failed holds for all stages; put it at the top of the "
        "file, beside `stages`"
    )


def test_rows_that_the_last_stage_lacks_are_an_exit_code_too(tmp_path, failing, run):
    failing.bad = (0,)
    assert failing() == 1
    last = yaml.safe_load(failing.path.read_text())["stages"][:1]
    assert (run(write_pipeline(tmp_path, *last)), run.worked) == (1, [1])


def test_rows_that_will_never_have_an_answer_do_not_stop_it(tmp_path, scripted, run):
    write_prompts(tmp_path)
    with (tmp_path / "prompts.jsonl").open("a") as stream:
        stream.write('{"query": ""}\nno row\n')
    assert run(scripted()) == 0
    assert (run.worked, len(rows_of(tmp_path / "aft.jsonl"))) == ([1, 2, 3, 4], 6)


@pytest.mark.parametrize("sample", [{}, {"strict": True}])
def test_a_stage_that_left_less_than_before_is_not_done(tmp_path, failing, run, sample):
    """Neither if the pipeline counts what is missing, nor if the stage itself fails for it."""
    assert failing(sample) == 0
    for name in ("sampled.jsonl", "sampled.jsonl.journal"):
        (tmp_path / name).unlink()
    failing.bad = (0,)
    for _ in range(2):
        assert (failing(sample), run.worked) == (1, [1])


# Training, by a program that stands in for LLaMA-Factory's


@pytest.fixture
def train(tmp_path, monkeypatch, run):
    """Runs a pipeline of one training; what the program was called with beyond its file."""
    program = tmp_path / "bin" / "fake-cli"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nshift 2\necho "$@" > {tmp_path}/called\n. {tmp_path}/do\n')
    program.chmod(0o755)
    monkeypatch.setattr(training, "CLI", "fake-cli")
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    output = tmp_path / "saves" / "aft"
    (tmp_path / "rows.jsonl").write_text("{}\n")
    info = {"mine": {"file_name": "rows.jsonl"}, "other": {"file_name": "other.jsonl"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))

    def train(does="touch $out/adapter_model.safetensors", text="", **settings):
        settings = {"dataset_dir": str(tmp_path), "dataset": "mine", "output_dir": str(output)} | (
            settings
        )
        (tmp_path / "train.yaml").write_text(yaml.safe_dump(settings) + text)
        (tmp_path / "do").write_text(f"out={output}\nmkdir -p $out\n{does}\n")
        (tmp_path / "called").unlink(missing_ok=True)
        train.code = run(write_pipeline(tmp_path, {"train": {"config": f"{tmp_path}/train.yaml"}}))
        called = tmp_path / "called"
        return called.read_text().strip() if called.exists() else None

    train.output = output
    return train


KILLED = (
    "mkdir -p $out/checkpoint-100 $out/checkpoint-200;"
    "echo {} > $out/checkpoint-100/trainer_state.json; kill -9 $$"  # amid the second checkpoint
)


def test_a_training_is_done_as_long_as_its_settings_data_and_weights_are_there(train, tmp_path):
    assert train() == ""
    assert train() is None
    assert train(text="# a remark\n") is None
    (tmp_path / "rows.jsonl").write_text("{}\n{}\n")
    assert train() == ""
    shutil.rmtree(train.output)
    assert train() == ""
    (train.output / "adapter_model.safetensors").unlink()
    assert train() == ""
    (tmp_path / "other.jsonl").write_text("{}\n")
    assert train() is None
    assert train.code == 0


def test_a_killed_training_resumes_under_the_same_settings(train):
    train(KILLED, overwrite_output_dir=True)
    assert train.code == 128 + 9
    assert train(overwrite_output_dir=True) == "overwrite_output_dir=false"
    assert [path.name for path in train.output.glob("checkpoint-*")] == ["checkpoint-100"]
    assert train(overwrite_output_dir=True) is None


def test_a_training_killed_after_its_weights_were_written_trains_again(train):
    train("touch $out/adapter_model.safetensors; kill -9 $$")
    assert train() == "overwrite_output_dir=true"  # or LLaMA-Factory would refuse the folder
    assert train() is None


@pytest.mark.parametrize("does", [KILLED, "touch $out/adapter_model.safetensors"])
def test_what_other_settings_trained_is_moved_aside(train, run, does):
    train(does)
    kept = list(train.output.iterdir())
    assert train(learning_rate=1.0) == ""
    assert [path.name for path in train.output.iterdir()] == ["adapter_model.safetensors"]
    aside = train.output.with_name("aft.old")
    assert [path.name for path in aside.iterdir()] == [path.name for path in kept]
    assert f"it is in {aside} now" in run.out
    assert train(learning_rate=2.0) == ""
    assert train.output.with_name("aft.old1").exists()


def test_a_training_that_no_pipeline_began_is_not_touched(train, run):
    (train.output / "checkpoint-5").mkdir(parents=True)
    assert train() is None
    assert train.code == 2
    assert f"{train.output}: a training that no pipeline began is in it; move it away" in run.err
    assert train(resume_from_checkpoint=str(train.output / "checkpoint-5")) == ""


@pytest.mark.parametrize(
    ("made", "resumed"), [(["checkpoint-4", "checkpoint-12"], "checkpoint-12"), ([], None)]
)
def test_llamafactory_takes_what_the_pipeline_adds(tmp_path, made, resumed):
    from llamafactory.hparams import get_train_args

    from aft_factory.pipeline.training import prepare

    settings = yaml.safe_load((ROOT / "examples" / "aft_llama.yaml").read_text())
    settings |= {"use_cpu": True, "bf16": False, "overwrite_output_dir": True}
    settings["output_dir"] = str(tmp_path / "saves")
    assert prepare(settings, "state") == []
    for name in made:
        (tmp_path / "saves" / name).mkdir(parents=True)
        (tmp_path / "saves" / name / "trainer_state.json").write_text("{}")
    (tmp_path / "saves").mkdir(exist_ok=True)
    (tmp_path / "saves" / "adapter_model.safetensors").touch()
    [added] = prepare(settings, "state")
    key, _, value = added.partition("=")
    _, _, training, _, _ = get_train_args(settings | {key: value == "true"})
    folder = training.resume_from_checkpoint
    assert folder == (resumed and str(tmp_path / "saves" / resumed))


# The dry run


def totals(out):
    """The last line of each table: requests, samples, and tokens read and written."""
    lines = [line.replace(",", "").split()[1:] for line in out.splitlines()]
    return [
        [int(number) for number in (*line[:3], line[4])]
        for line, text in zip(lines, out.splitlines(), strict=True)
        if text.strip().startswith("all ")
    ]


def test_a_dry_run_tells_what_every_stage_would_ask_and_writes_nothing(tmp_path, scripted, capfd):
    path = scripted(aggregate={"max_tokens": 100})
    before = sorted(tmp_path.iterdir())
    assert main([str(path), "--dry-run"]) == 0
    out = capfd.readouterr().out
    assert sorted(tmp_path.iterdir()) == before
    sampled, aggregated = totals(out)
    assert (sampled[:2], sampled[3]) == ([6, 24], 24 * 512)
    assert (aggregated[:2], aggregated[3]) == ([6, 6], 6 * 100)
    assert aggregated[2] > 6 * 2 * 512  # it read two drafts of a row
    queries = sum(len(row["query"]) for row in demo_rows()[:6])
    tokens = 6 * 4 * 512 + 4 * queries // 4
    assert f"24 pairs to score, {tokens:,} tokens to read" in out


def test_a_dry_run_reckons_with_limits_and_files_of_settings(tmp_path, capfd):
    write_prompts(tmp_path)
    (tmp_path / "sample.yaml").write_text("samples: 3\ndraft_tokens: 64\nlimit: 4\n")
    sample = {"input": "prompts.jsonl", "output": "s.jsonl", "scripted": True}
    path = write_pipeline(
        tmp_path,
        {"sample": sample | {"config": str(tmp_path / "sample.yaml")}},
        {"rank": {"output": "r.jsonl", "scripted": True, "top_k": 2, "limit": 3}},
        {"aggregate": {"output": "a.jsonl", "scripted": True, "draft_tokens": 10}},
        {"convert": {"output": "c.jsonl", "limit": 2}},
        {"run": {"output": "x.jsonl", "scripted": True, "width": 2, "layers": 1}},
    )
    assert main([str(path), "--dry-run"]) == 0
    out = capfd.readouterr().out
    sampled, aggregated, ran = totals(out)
    assert (sampled[:2], sampled[3]) == ([4, 12], 12 * 64)
    assert "9 pairs to score" in out
    assert (aggregated[:2], aggregated[3]) == ([3, 3], 3 * 10)
    assert "2 rows, 0 of them unusable" in out
    assert ran[:2] == [4, 6]


def test_a_dry_run_takes_what_is_done_and_leaves_what_is_stale(tmp_path, scripted, run, capfd):
    assert run(scripted()) == 0
    assert main([str(scripted(aggregate={"max_tokens": 7})), "--dry-run"]) == 0
    out = capfd.readouterr().out
    assert out.count("done before") == 2
    [aggregated] = totals(out)
    assert aggregated[3] == 6 * 7
    write_prompts(tmp_path, 3)
    assert main([str(scripted()), "--dry-run"]) == 0
    assert [total[0] for total in totals(capfd.readouterr().out)] == [3, 3]


def test_a_dry_run_of_what_is_on_the_hub_reads_none_of_it(tmp_path, capfd):
    convert = {"source": "ultrafeedback", "input": "openbmb/UltraFeedback", "output": "x.jsonl"}
    path = write_pipeline(tmp_path, {"convert": convert})
    assert main([str(path), "--dry-run"]) == 2
    assert (
        "stages[1].convert: openbmb/UltraFeedback is on the hub, and a dry run would read all of "
        "it; name a local copy as input, or set a limit"
    ) in capfd.readouterr().err


def test_a_dry_run_names_an_input_that_nobody_makes(tmp_path, scripted, capfd):
    stages = yaml.safe_load(scripted().read_text())["stages"]
    queries = {"run": {"input": "queries.jsonl", "output": "x.jsonl", "scripted": True}}
    assert main([str(write_pipeline(tmp_path, *stages, queries)), "--dry-run"]) == 2
    message = f"stages[5].run: input {tmp_path / 'queries.jsonl'}: no such file"
    assert message in capfd.readouterr().err


def test_a_dry_run_ends_where_no_row_can_be_used_and_says_why(tmp_path, scripted, capfd):
    sample, rank, *_ = yaml.safe_load(scripted().read_text())["stages"]
    rank["rank"]["input"] = sample["sample"].pop("input")
    assert main([str(write_pipeline(tmp_path, rank, sample)), "--dry-run"]) == 1
    out = capfd.readouterr().out
    assert "6 rows, 6 of them unusable (the first: proposals: missing or blank; sample some" in out
    assert "[2]" not in out


def test_so_it_does_where_a_conversion_is_left_without_rows(tmp_path, capfd):
    write_prompts(tmp_path)
    sft = {"convert": {"input": "prompts.jsonl", "output": "sft.jsonl", "target": "sft"}}
    sft["convert"]["source"] = "proposals"
    assert main([str(write_pipeline(tmp_path, sft, {"stats": {}})), "--dry-run"]) == 2
    out, err = capfd.readouterr()
    assert "6 rows, 6 of them unusable (the first: " in out
    assert err == "error: stages[1].convert: no row can be used; nothing comes after it\n"
    (tmp_path / "prompts.jsonl").write_text("")  # nothing is lost where nothing is
    assert main([str(write_pipeline(tmp_path, sft)), "--dry-run"]) == 0


def test_a_dry_run_tells_that_rows_are_not_trainable_yet(tmp_path, scripted, capfd):
    sample, _, aggregate, convert = yaml.safe_load(scripted().read_text())["stages"]
    assert main([str(write_pipeline(tmp_path, sample, convert, aggregate)), "--dry-run"]) == 0
    assert "6 rows without aggregation, not trainable yet" in capfd.readouterr().out
    assert main([str(write_pipeline(tmp_path, sample, aggregate, convert)), "--dry-run"]) == 0
    assert "not trainable" not in capfd.readouterr().out


def test_the_help_tells_the_keys_of_the_file(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"\n  {key}: " in shown or f"\n  {key}:  " in shown for key in KEYS)
    assert f"one of {', '.join(STEPS)}\n" in shown


def test_a_file_that_is_not_there_is_told_so(tmp_path, capsys):
    assert main([str(tmp_path / "mine.yaml")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'mine.yaml'}: no such file\n"


ULTRAFEEDBACK = {
    "source": "evol_instruct",
    "instruction": "How many pails?",
    "models": ["a", "b"],
    "completions": [
        {"model": name, "response": f"Six, says {name}.", "overall_score": 4.0} for name in "abcd"
    ],
}


def dry_run_of_example(name, tmp_path, monkeypatch, **inputs):
    """Dry-run an example on other inputs, without the models it names."""
    content = yaml.safe_load((ROOT / "examples" / name).read_text())
    content["folder"] = str(tmp_path)
    for stage in content["stages"]:
        [(kind, settings)] = stage.items()
        if settings.get("input") in inputs:
            settings["input"] = inputs[settings["input"]]
        if kind in COMMANDS and COMMANDS[kind].asks:
            settings["scripted"] = True  # no FLOPs, which would take the model's configuration
    path = tmp_path / name
    path.write_text(yaml.safe_dump(content))
    monkeypatch.chdir(ROOT)
    return main([str(path), "--dry-run"])


def test_the_off_policy_example_dry_runs_on_ultrafeedback(tmp_path, monkeypatch, capfd):
    rows = [ULTRAFEEDBACK | {"instruction": f"How many, {i}?"} for i in range(7)]
    source = tmp_path / "uf.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = {"openbmb/UltraFeedback": str(source)}
    assert dry_run_of_example("pipeline_off_policy.yaml", tmp_path, monkeypatch, **names) == 0
    out = capfd.readouterr().out
    assert out.count("7 rows, 0 of them unusable") == 3
    [aggregated] = totals(out)
    assert (aggregated[:2], aggregated[3]) == ([7, 7], 7 * 512)


def test_the_augmented_example_runs_on_what_the_off_policy_one_makes(tmp_path, monkeypatch, capfd):
    content = yaml.safe_load((ROOT / "examples" / "pipeline_augmented.yaml").read_text())
    convert = content["stages"][0]["convert"]
    del convert["tokenizer"], convert["cutoff_len"]
    rows = [row | {"id": f"r{i}"} for i, row in enumerate(demo_rows())]
    (tmp_path / "data").mkdir()
    source = tmp_path / "data" / convert["input"]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "augmented.yaml").write_text(yaml.safe_dump(content))
    assert main(["augmented.yaml"]) == 0
    made = rows_of(tmp_path / "data" / "aft_augmented.jsonl")
    added = [row for row in made if row["id"].endswith("#plain")]
    assert len(rows) / 10 < len(added) == len(made) - len(rows) < len(rows) / 3
    assert {len(row["proposals"]) for row in made if row not in added} == {2, 3, 4}
    assert list(json.loads((tmp_path / "data" / "dataset_info.json").read_text())) == [
        "aft_augmented"
    ]


def test_the_on_policy_example_dry_runs_on_prompts(tmp_path, monkeypatch, capfd):
    write_prompts(tmp_path)
    names = {"data/queries.jsonl": str(tmp_path / "prompts.jsonl")}
    assert dry_run_of_example("pipeline_on_policy_llama.yaml", tmp_path, monkeypatch, **names) == 0
    out = capfd.readouterr().out
    sampled, aggregated, answered = totals(out)
    assert (sampled[:2], sampled[3]) == ([6, 60], 60 * 512)
    assert "60 pairs to score" in out
    assert aggregated[:2] == [6, 6]
    assert answered[:2] == [6 * 3, 6 * 11]  # K = 5, L = 2


def test_aft_is_every_stage(capsys):
    assert aft(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in STAGES:
        assert f"  {name} " in shown
        try:
            code = aft([name, "--help"])  # of a command of several, as of `aft` itself
        except SystemExit as done:
            code = done.code
        assert code == 0
        assert f"usage: aft {name}" in capsys.readouterr().out
    assert aft(["rnu"]) == 2
    assert "did you mean 'run'?" in capsys.readouterr().err


def test_an_interrupt_while_a_stage_is_loaded_is_no_traceback(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("aft_factory.cli.importlib.import_module", interrupted)
    assert aft(["pipeline", "x.yaml"]) == 130
    assert capsys.readouterr().err == "interrupted; nothing has begun\n"
