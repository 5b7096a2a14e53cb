"""A pipeline that is interrupted or killed goes on where it was, and no stage outlives it.

Where a test waits, it waits for what a process or a server did and not for the clock.
"""

import asyncio
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT
from flaky_server import serving, until
from test_pipeline import rows_of, write_pipeline, write_prompts

from aft_factory.records.record import record_from_row

PIPELINE = [sys.executable, "-m", "aft_factory.pipeline"]
PROMPTS = 8


def asked(journal, table="replies"):
    """How many requests, or outcomes, a journal holds."""
    if not journal.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{journal}?mode=ro", uri=True) as database:
            return database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    except sqlite3.OperationalError:  # it is just being made
        return 0


def alive(group):
    """Whether a process of the group runs."""
    shown = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True).stdout
    found = [line.split() for line in shown.splitlines()]
    return any(number == str(group) and state[0] != "Z" for number, state in found)


def kill_all(process):
    """Kill a pipeline's group, and wait until its stage is gone too."""
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as stream:
        groups = stream.read().split()  # the stage's and its guard's
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    until(lambda: not any(map(alive, groups)))


def start_and_kill(command, when):
    """Start a pipeline and kill it as soon as `when()`."""
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    until(lambda: when() or process.poll() is not None, 600)
    assert process.poll() is None, "it ended before it could be killed"
    kill_all(process)


class Held:
    """A pipeline of one stage that waits for a server, which holds its answers until `release`."""

    def __init__(self, folder, server, release):
        write_prompts(folder, PROMPTS)
        self.server, self.release = server, release
        self.journal = folder / "sampled.jsonl.journal"
        sample = {"input": "prompts.jsonl", "output": "sampled.jsonl", "base_url": server.url}
        path = write_pipeline(
            folder,
            {"sample": sample | {"samples": 2, "in_flight": 4}},
            {"rank": {"output": "ranked.jsonl", "scripted": True}},
        )
        self.command = [*PIPELINE, str(path)]
        self.log = folder / "log"

    def start(self):
        """Start it, and wait for its requests."""
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, start_new_session=True
            )
        until(lambda: self.server.in_flight == 2)

    def told(self, words):
        return words in self.log.read_text()


@pytest.fixture
def held(tmp_path):
    release = []

    async def answer(path, body):
        while not release:
            await asyncio.sleep(0.01)

    with serving(answer=answer) as server:
        held = Held(tmp_path, server, release)
        yield held
        release.append(True)
        held.process.kill()
        held.process.wait()


def test_the_first_signal_keeps_what_is_in_flight_and_the_same_command_goes_on(held):
    for send in (
        lambda process: process.send_signal(signal.SIGINT),
        lambda process: process.send_signal(signal.SIGTERM),
        lambda process: os.killpg(process.pid, signal.SIGINT),  # as a terminal does
    ):
        held.release.clear()
        before = asked(held.journal)
        held.start()
        send(held.process)
        until(lambda: held.told("stopping: waiting for the requests in flight"))
        assert held.process.poll() is None
        held.release.append(True)
        assert held.process.wait(60) == 130
        assert held.told("stopped at stage 1, sample (interrupted); the same command goes on")
        assert not held.told("--export")  # a flag of the stage, not of the pipeline
        assert asked(held.journal) == before + 2
    held.release.clear()
    held.start()
    held.process.send_signal(signal.SIGINT)
    until(lambda: held.told("stopping: waiting for the requests in flight"))
    held.release.append(True)
    assert held.process.wait(60) == 130
    assert held.told("stopped before stage 2, rank; the same command goes on from here")
    assert asked(held.journal) == len(held.server.log) == PROMPTS
    assert subprocess.run(held.command, check=False).returncode == 0
    assert len(held.server.log) == PROMPTS  # nothing was asked twice


def test_the_second_signal_leaves_what_is_in_flight(held):
    held.start()
    held.process.send_signal(signal.SIGINT)
    until(lambda: held.told("stopping: waiting for the requests in flight"))
    held.process.send_signal(signal.SIGINT)
    assert held.process.wait(60) == 130
    assert asked(held.journal) == 0


def test_a_stage_does_not_outlive_its_pipeline(held):
    held.start()
    held.process.kill()
    held.process.wait()
    until(lambda: held.server.in_flight == 0)
    held.release.append(True)
    assert subprocess.run(held.command, check=False).returncode == 0
    assert len(held.server.log) == PROMPTS


ATTENDED = """
import sys
from aft_factory.pipeline import supervisor
kind, *command = sys.argv[1:]
supervisor.PATIENCE = 1 if kind == "deaf" else supervisor.PATIENCE
with supervisor.Supervisor() as one:
    sys.exit(one.run(command, training=kind != "stage") % 256)
"""
# A leader that ends at once, and a child that takes its time when asked to, but not twice.
PARENT = """\
cd {0}
(trap 'trap - TERM; sleep 0.5; touch told; exit' TERM; touch child; while :; do sleep 0.05; done) &
while ! test -e child; do sleep 0.01; done
echo $$ > leader.new; mv leader.new leader
{1}; wait
"""


@pytest.fixture
def attended(tmp_path):
    """Runs a shell with a child of its own; the process that attends to it, and their group."""
    started = []

    def start(kind, then="true"):
        parent = PARENT if kind != "deaf" else re.sub("trap '.*' TERM", "trap '' TERM", PARENT)
        command = ["sh", "-c", parent.format(tmp_path, then)]
        started.append(subprocess.Popen([sys.executable, "-c", ATTENDED, kind, *command]))
        until(lambda: (tmp_path / "leader").exists())
        return started[0], int((tmp_path / "leader").read_text())

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("kind", ["stage", "training"])
def test_processes_of_a_stage_end_with_a_pipeline_that_is_killed(attended, tmp_path, kind):
    process, group = attended(kind)
    assert alive(group)
    process.kill()
    until(lambda: not alive(group))
    assert (tmp_path / "told").exists() == (kind == "training")


@pytest.mark.parametrize("kind", ["stage", "training"])
def test_processes_of_a_stage_end_with_a_stage_that_is_killed(attended, tmp_path, kind):
    process, group = attended(kind, then="kill -9 $$")
    assert process.wait(60) == -signal.SIGKILL % 256
    assert not alive(group)
    assert (tmp_path / "told").exists() == (kind == "training")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_all_processes_of_a_training_are_asked_to_end_and_waited_for(attended, tmp_path, number):
    process, group = attended("training")
    process.send_signal(number)
    assert process.wait(60) == -signal.SIGTERM % 256
    assert not alive(group)
    assert (tmp_path / "told").exists()


def test_a_training_that_heeds_no_signal_does_not_outlive_its_pipeline(attended):
    process, group = attended("deaf")
    process.kill()
    until(lambda: not alive(group))


def test_what_a_training_leaves_behind_is_killed_if_it_heeds_no_signal(attended):
    process, group = attended("deaf", then="kill -9 $$")
    assert process.wait(60) == -signal.SIGKILL % 256
    until(lambda: not alive(group))


def test_a_second_signal_kills_a_training(attended, tmp_path):
    waiting = "trap 'touch heard' TERM; touch waits; wait; wait; sleep 60"
    process, group = attended("deaf", then=waiting)
    until((tmp_path / "waits").exists)
    process.send_signal(signal.SIGINT)
    until((tmp_path / "heard").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGKILL % 256
    until(lambda: not alive(group))


@pytest.mark.slow
def test_a_training_that_was_killed_goes_on_from_its_last_whole_checkpoint(
    tmp_path, tiny_llama, monkeypatch
):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    settings = yaml.safe_load((ROOT / "examples" / "tiny_aft.yaml").read_text())
    settings |= {"model_name_or_path": str(tiny_llama), "dataset_dir": str(tmp_path)}
    settings |= {"per_device_train_batch_size": 1, "max_steps": 120, "save_steps": 20}
    adapter = tmp_path / "adapter"
    settings |= {"output_dir": str(adapter), "dataset": "rows"}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(settings))
    path = write_pipeline(
        tmp_path,
        {
            "convert": {
                "input": str(ROOT / "examples" / "data" / "gsm8k_solutions.jsonl"),
                "output": "rows.jsonl",
                "limit": 10,
                "register": str(tmp_path),
            }
        },
        {"train": {"config": str(tmp_path / "train.yaml")}},
    )
    command = [*PIPELINE, str(path)]
    start_and_kill(command, lambda: (adapter / "checkpoint-40").exists())
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.search(r"Resuming training from checkpoint .* global step (\d+)", done.stderr)
    assert int(found[1]) in (20, 40)
    assert json.loads((adapter / "trainer_state.json").read_text())["global_step"] == 120
    assert (adapter / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_from_50_prompts_to_answers_with_the_real_engines_killed_thrice(tmp_path, monkeypatch):
    from tiny_model import main as make_model

    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for kind, folder in (("llama3", "data/tiny/model"), ("reward", "data/tiny/reward")):
        assert make_model([kind, folder]) == 0
    path = tmp_path / "examples" / "pipeline_tiny.yaml"
    for name, value in re.findall(r"(\w+)=(\w+)", re.search("export (.+)", path.read_text())[1]):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    command = [*PIPELINE, "examples/pipeline_tiny.yaml"]
    data = tmp_path / "data" / "tiny"

    kept = {}
    for name, table in (("sampled", "replies"), ("ranked", "outcomes"), ("aggregated", "replies")):
        journal = data / f"{name}.jsonl.journal"
        start_and_kill(command, lambda at=journal, of=table: asked(at, of) >= 8)
        assert not (data / f"{name}.jsonl").exists()
        kept[name] = asked(journal, table)
        assert 8 <= kept[name] < 50
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("done before") == 2

    names = ("sampled", "ranked", "aggregated", "answers")
    summaries = {name: json.loads((data / f"{name}.summary.json").read_text()) for name in names}
    read = {name: summary["read"] for name, summary in summaries.items()}
    written = {name: summary["written"] for name, summary in summaries.items()}
    for name, summary in summaries.items():
        assert read[name] == written[name] + summary["rejected"]
        assert len(rows_of(data / f"{name}.jsonl")) == written[name]
    for name in ("sampled", "aggregated"):
        now = asked(data / f"{name}.jsonl.journal")
        assert summaries[name]["session"]["requests_asked"] == now - kept[name]
    assert read == {
        "sampled": 50,
        "ranked": written["sampled"],
        "aggregated": written["ranked"],
        "answers": 8,
    }
    records = [record_from_row(row) for row in rows_of(data / "tiny_aft.jsonl")]
    stats = json.loads((data / "tiny_aft.stats.json").read_text())
    trained = re.search(r"Num examples = ([\d,]+)", done.stdout + done.stderr)
    assert len(records) == written["aggregated"] > 25
    assert stats["rows"]["usable"] == int(trained[1]) == len(records)
    for record in records:
        assert 1 <= len(record.proposals) <= 5
        assert record.aggregation
        assert record.scores == sorted(record.scores, reverse=True)
    assert (data / "adapter" / "adapter_model.safetensors").exists()
    assert all(row["response"] for row in rows_of(data / "answers.jsonl"))

    again = subprocess.run(command, capture_output=True, text=True, check=False)
    stages = yaml.safe_load(path.read_text())["stages"]
    assert (again.returncode, again.stdout.count("done before")) == (0, len(stages))
