"""The smoke scale of examples/reproduce from end to end: gates, kill and resume, tables."""

import csv
import json
import os
import signal
import subprocess
import sys

import pytest
import yaml
from cells import HERE, Cell, read_scale
from flaky_server import until
from reproduce import Reproduction
from verdicts import Gate

SMOKE = [sys.executable, str(HERE / "reproduce.py"), "smoke"]


def table(path):
    with path.open() as stream:
        return list(csv.DictReader(stream))


def run(folder):
    done = subprocess.run([*SMOKE, "--output", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def kill_when(there, folder):
    """Start it, and kill it as a power cut would once a file is there."""
    process = subprocess.Popen(
        [*SMOKE, "--output", str(folder)], start_new_session=True, stdout=subprocess.DEVNULL
    )
    until(lambda: there.exists() or process.poll() is not None, 900)
    assert process.poll() is None, "it ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_smoke_goes_on_where_it_was_killed_and_ends_with_its_tables(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason='lm-eval is not installed: pip install ".[eval]"')
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "out"
    seed = folder / "seed1"
    kill_when(seed / "drafts.jsonl.journal", folder)
    weights = (seed / "sft" / "model.safetensors").stat().st_mtime_ns
    kept = (seed / "evals" / "gate-sft-vote_5" / "results.json").stat().st_mtime_ns
    assert not (seed / "aft_on").exists()

    told = run(folder)
    assert (seed / "sft" / "model.safetensors").stat().st_mtime_ns == weights
    assert (seed / "evals" / "gate-sft-vote_5" / "results.json").stat().st_mtime_ns == kept
    assert "seed 1: gate: sft, vote_5: done before" in told
    # Noise agrees on nothing: that is said, and as this scale's gates only tell, it goes on.
    assert "NOT passed: vote of 5" in told
    assert "there is nothing to aggregate" in told
    assert "NOT passed: there is no question with 3 of 5 drafts right" in told

    # As many rows were trained on as there are: 16 plain ones, and 16 more with and without drafts.
    states = {
        model: json.loads((seed / model / "trainer_state.json").read_text())
        for model in ("sft", "aft_on")
    }
    assert {model: state["global_step"] for model, state in states.items()} == {
        "sft": 2,
        "aft_on": 6,
    }
    # The vote of five is of the drafts that were aggregated, and asks for nothing.
    place = seed / "evals" / "aft_on-vote_5" / "answers.summary.json"
    assert json.loads(place.read_text())["session"]["requests_asked"] == 0

    values = table(folder / "results.csv")
    assert [(row["model"], row["inference"]) for row in values] == [
        (model, how) for model in ("sft", "aft_on") for how in ("plain", "aggregate", "vote_5")
    ]
    assert {row["n"] for row in values} == {"8"}
    claims = table(folder / "claims.csv")
    assert {row["held"] for row in claims} == {"no", "not tested"}
    assert (folder / "results.txt").read_text().rstrip() in told
    assert (folder / "curves.csv").exists()

    again = run(folder)
    asked = [line for line in again.splitlines() if line.startswith("    $")]
    assert all("aft_factory.pipeline" in line for line in asked)  # which find out by themselves
    assert again.count("done before") >= 15
    assert table(folder / "results.csv") == values


def scale_of(tmp_path, **change):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load((HERE / "smoke.yaml").read_text()) | change))
    return read_scale(path)


class Gated(Reproduction):
    """One that is a gate and what comes after it."""

    def cells(self):
        self.done = []
        yield Cell("the gate", gate=lambda: Gate(False, "nothing to aggregate"))
        yield Cell("what comes after", before=lambda: self.done.append("after"))


@pytest.mark.parametrize(("gates", "code", "after"), [("stop", 1, []), ("tell", 0, ["after"])])
def test_a_gate_that_does_not_pass_stops_and_says_so(gates, code, after, tmp_path, capsys):
    reproduction = Gated(scale_of(tmp_path, gates=gates), tmp_path / "out")
    assert reproduction.run() == code
    assert reproduction.done == after
    told = capsys.readouterr()
    assert "NOT passed: nothing to aggregate" in told.out
    assert ("stopped at a gate" in told.err) == (gates == "stop")


class Failing(Reproduction):
    """One whose command fails."""

    def cells(self):
        yield Cell("the command", [sys.executable, "-c", "raise SystemExit(3)"])
        raise AssertionError("it went on")


def test_a_command_that_fails_stops_it_with_its_code(tmp_path, capsys):
    assert Failing(scale_of(tmp_path), tmp_path / "out").run() == 3
    assert (
        "stopped at the command: exit code 3; the same command goes on" in capsys.readouterr().err
    )
