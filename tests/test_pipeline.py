"""The pipeline: stages in order, each done once, killed and resumed; and `aft`."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
import yaml
from conftest import ROOT, demo_rows

from aft_factory.cli import STAGES
from aft_factory.cli import main as aft
from aft_factory.errors import UsageError
from aft_factory.pipeline import main, read_pipeline
from aft_factory.records import record_from_row

PARSERS = {
    "convert": "aft_factory.convert.arguments",
    **{name: f"aft_factory.{name}" for name in ("sample", "rank", "aggregate", "run", "stats")},
}


def write_pipeline(folder, *stages, **more):
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump({"folder": str(folder), "stages": list(stages)} | more))
    return path


def write_prompts(folder, count=6):
    rows = [{"id": f"p{i}", "query": row["query"]} for i, row in enumerate(demo_rows()[:count])]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


SCRIPTED = (
    {
        "sample": {
            "input": "prompts.jsonl",
            "output": "sampled.jsonl",
            "scripted": True,
            "samples": 4,
        }
    },
    {"rank": {"output": "ranked.jsonl", "scripted": True, "top_k": 2}},
    {"aggregate": {"output": "made.jsonl", "scripted": True}},
    {"convert": {"output": "aft.jsonl", "source": "proposals"}},
)


def test_each_stage_reads_what_the_one_before_wrote(tmp_path, capfd):
    write_prompts(tmp_path)
    path = write_pipeline(tmp_path, *SCRIPTED)
    assert main([str(path)]) == 0
    [first, *_] = made = [record_from_row(row) for row in rows_of(tmp_path / "aft.jsonl")]
    assert len(made) == 6
    assert len(first.proposals) == 2
    assert first.aggregation
    assert {"sampling", "ranking", "aggregating"} <= set(first.meta)
    assert "[4/4] convert: python -m aft_factory.convert proposals" in capfd.readouterr().out


def test_what_is_done_is_not_done_again_until_its_input_or_settings_change(tmp_path, capfd):
    write_prompts(tmp_path)
    path = write_pipeline(tmp_path, *SCRIPTED)
    assert main([str(path)]) == 0
    capfd.readouterr()
    assert main([str(path)]) == 0
    assert capfd.readouterr().out.count("done before") == 4
    stages = json.loads(json.dumps(SCRIPTED))
    stages[1]["rank"]["top_k"] = 3
    assert main([str(write_pipeline(tmp_path, *stages))]) == 0
    assert capfd.readouterr().out.count("done before") == 1
    assert len(rows_of(tmp_path / "aft.jsonl")[0]["proposals"]) == 3


def test_a_stage_that_fails_stops_the_pipeline_and_is_tried_again(tmp_path, capfd):
    write_prompts(tmp_path)
    stages = json.loads(json.dumps(SCRIPTED))
    stages[1]["rank"]["top_k"] = 0
    assert main([str(write_pipeline(tmp_path, *stages))]) == 2
    assert "stopped at stage 2, rank (exit code 2)" in capfd.readouterr().err
    assert main([str(write_pipeline(tmp_path, *SCRIPTED))]) == 0
    assert "[1/4] sample: done before" in capfd.readouterr().out


def test_all_that_is_wrong_with_a_file_is_told_at_once(tmp_path):
    path = write_pipeline(tmp_path, {"smaple": {}}, {"rank": {}}, {"train": {}}, "x", extra=1)
    with pytest.raises(UsageError) as error:
        read_pipeline(path)
    text = str(error.value)
    for words in (
        "unknown key 'extra'",
        "stages[1]: unknown stage 'smaple'; did you mean 'sample'?",
        "stages[2].rank: input is missing",
        "stages[2].rank: output is missing",
        "stages[3].train: config is missing",
        "stages[4]: expected one stage",
    ):
        assert words in text


def test_a_dry_run_tells_the_requests_of_every_stage_and_writes_nothing(tmp_path, capfd):
    write_prompts(tmp_path)
    path = write_pipeline(tmp_path, *SCRIPTED)
    before = sorted(tmp_path.iterdir())
    assert main([str(path), "--dry-run"]) == 0
    out = capfd.readouterr().out
    assert sorted(tmp_path.iterdir()) == before
    totals = [line.split()[1:] for line in out.splitlines() if line.strip().startswith("all")]
    assert totals[0][:2] == ["6", "24"]
    assert totals[0][-1] == f"{24 * 512:,}"
    assert totals[1][:2] == ["6", "6"]
    assert int(totals[1][2].replace(",", "")) > 6 * 2 * 512  # it read two drafts of a row


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples").glob("pipeline_*.yaml")), ids=lambda p: p.stem
)
def test_the_examples_are_commands_that_the_stages_take(path):
    import importlib

    for step in read_pipeline(path):
        if step.stage == "train":
            assert (ROOT / step.settings["config"]).is_file()
            continue
        command = step.command()
        assert command[:3] == [sys.executable, "-m", f"aft_factory.{step.stage}"]
        args = importlib.import_module(PARSERS[step.stage]).build_parser().parse_args(command[3:])
        if step.stage in ("sample", "rank", "aggregate"):
            from aft_factory.command import read_settings

            kind = f"{step.stage.title()}Settings"
            module = importlib.import_module(PARSERS[step.stage])
            below = [("default", {"model": "m"})] if step.stage == "aggregate" else []
            read_settings(args, getattr(module, kind), below)


def test_aft_is_every_stage(capsys):
    assert aft(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in STAGES:
        assert f"  {name} " in shown
        with pytest.raises(SystemExit) as done:
            aft([name, "--help"])
        assert done.value.code == 0
    assert aft(["rnu"]) == 2
    assert "did you mean 'run'?" in capsys.readouterr().err


TRAINING = """\
model_name_or_path: {model}
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset_dir: {folder}
dataset: tiny_aft
template: aft_llama3
cutoff_len: 2048
output_dir: {folder}/adapter
per_device_train_batch_size: 8
max_steps: 3
logging_steps: 1
save_strategy: "no"
report_to: none
use_cpu: true
"""


def asked(journal):
    """How many requests a journal holds."""
    if not journal.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{journal}?mode=ro", uri=True) as database:
            return database.execute("SELECT count(*) FROM replies").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


@pytest.mark.slow
def test_from_prompts_to_answers_with_the_real_engines_killed_twice(
    tmp_path, vllm_server, tiny_llama, tiny_reward_model
):
    write_prompts(tmp_path, 50)
    shutil.copy(tmp_path / "prompts.jsonl", tmp_path / "queries.jsonl")
    lines = (tmp_path / "queries.jsonl").read_text().splitlines()[:4]
    (tmp_path / "queries.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "train.yaml").write_text(TRAINING.format(model=tiny_llama, folder=tmp_path))
    engine = {"dtype": "float32", "enforce_eager": True, "max_model_len": 2048, "max_num_seqs": 16}
    path = write_pipeline(
        tmp_path,
        {"sample": {"input": "prompts.jsonl", "output": "sampled.jsonl", "base_url": [vllm_server],
                    "max_tokens": 16, "in_flight": 40}},
        {"rank": {"output": "ranked.jsonl", "reward_model": str(tiny_reward_model)}},
        {"aggregate": {"output": "made.jsonl", "base_url": [vllm_server], "max_tokens": 16,
                       "in_flight": 8}},
        {"convert": {"output": "tiny_aft.jsonl", "source": "proposals", "register": str(tmp_path),
                     "tokenizer": str(tiny_llama), "cutoff_len": 2048}},
        {"train": {"config": str(tmp_path / "train.yaml")}},
        {"run": {"input": "queries.jsonl", "output": "answers.jsonl", "model": str(tiny_llama),
                 "adapter": str(tmp_path / "adapter"), "width": 2, "layers": 1, "max_tokens": 8,
                 "engine_args": engine}},
    )  # fmt: skip
    command = [sys.executable, "-m", "aft_factory.pipeline", str(path)]
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
    }
    kept = {}
    for name, least in (("sampled", 10), ("made", 10)):
        journal = tmp_path / f"{name}.jsonl.journal"
        process = subprocess.Popen(
            command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 200
        while asked(journal) < least:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / f"{name}.jsonl").exists()
        kept[name] = asked(journal)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

    counts = {"prompts": 50}
    for name in ("sampled", "ranked", "made", "answers"):
        summary = json.loads((tmp_path / f"{name}.summary.json").read_text())
        assert summary["read"] == summary["written"] + summary["rejected"]
        counts[name] = summary["written"]
        assert len(rows_of(tmp_path / f"{name}.jsonl")) == summary["written"]
        if name in ("sampled", "made"):
            session = summary["session"]
            journal = tmp_path / f"{name}.jsonl.journal"
            assert session["requests_asked"] == asked(journal) - kept[name]
    reads = [
        json.loads((tmp_path / f"{n}.summary.json").read_text())["read"] for n in ("ranked", "made")
    ]
    assert reads == [counts["sampled"], counts["ranked"]]
    records = [record_from_row(row) for row in rows_of(tmp_path / "tiny_aft.jsonl")]
    assert len(records) == counts["made"]
    assert all(1 <= len(record.proposals) <= 5 and record.aggregation for record in records)
    for record in records:
        assert record.scores == sorted(record.scores, reverse=True)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    assert counts["answers"] == 4
