"""The shards of a job, joined, are what one run would have written."""

import json
import os
import random
import subprocess
import sys

import pytest
from conftest import ROOT

from aft_factory.aggregate.__main__ import main as aggregate
from aft_factory.asking.journal import Journal
from aft_factory.merge.__main__ import main as merge
from aft_factory.rank.__main__ import main as rank
from aft_factory.report.__main__ import main as report
from aft_factory.run.__main__ import main as run
from aft_factory.sample.__main__ import main as sample

RUN = ("--scripted", "--width", "2", "--layers", "1", "--quiet")
PAGE = ("--output", "page.html")


def row(number):
    return {
        "id": str(number),
        "query": f"What is {number}?",
        "proposals": ["one", "one and one"[: number % 9], "a third"],
    }


@pytest.fixture(autouse=True)
def rows(tmp_path, monkeypatch):
    """Rows of which some cannot be used, some are no JSON, and two that are far apart are equal."""
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps(row(i)) for i in range(20)]
    lines[3] = json.dumps({"id": "3", "query": "", "proposals": []})
    lines[7:7] = ["no JSON", "", ""]
    lines += [json.dumps(row(2))]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def shards(count, main=run, flags=RUN):
    """Run all shards, the last one first; their outputs."""
    outputs = [f"part-{index}.jsonl" for index in range(count)]
    for index in reversed(range(count)):
        more = ("--output", outputs[index], "--shard", f"{index}/{count}")
        assert main(["rows.jsonl", *more, *flags]) in (0, 1)
    return outputs


def summary(folder, name):
    """What a summary tells but for how long it took, and in which sessions."""
    found = json.loads((folder / f"{name}.summary.json").read_text())
    asked = sum(session["requests_asked"] for session in found.pop("sessions"))
    for own in ("seconds", "session"):
        del found[own]
    return found, asked


@pytest.mark.parametrize("count", [1, 3, 30])  # there are 22 rows
@pytest.mark.parametrize(
    ("main", "flags"),
    [
        (run, RUN),
        (run, ("--scripted", "--strategy", "best_of_n", "--limit", "9", "--quiet")),
        (sample, ("--scripted", "--chat", "--samples", "2", "--quiet")),
        (rank, ("--scripted", "--top-k", "1", "--quiet")),
        (aggregate, ("--scripted", "--drop", "copy", "--quiet")),
    ],
)
def test_shards_joined_are_what_one_run_writes(rows, main, flags, count):
    code = main(["rows.jsonl", "--output", "one.jsonl", *flags])
    assert merge([*shards(count, main, flags), "--output", "all.jsonl"]) == code
    for one, all_ in (("one.jsonl", "all.jsonl"), ("one.rejects.jsonl", "all.rejects.jsonl")):
        assert (rows / one).read_bytes() == (rows / all_).read_bytes()
    assert summary(rows, "one")[0] == summary(rows, "all")[0]


def last_line(capsys):
    return capsys.readouterr().out.splitlines()[-1]


def test_what_comes_after_a_shard_is_the_merge_and_after_that_a_part_is_inspected(rows, capsys):
    parts = shards(2)
    assert last_line(capsys) == (
        "next: aft merge part-0.jsonl ... --output merged.jsonl, with the outputs of the other "
        "shards (this was 0/2)"
    )
    assert merge([*parts, "--output", "all.jsonl"]) == 0
    assert (told := last_line(capsys)) == "next: aft run --inspect part-0.jsonl"
    assert run(told.split()[3:]) == 0
    # The merged output has no journal, and says whose it is made of.
    problem = "all.jsonl: merged from part-0.jsonl, part-1.jsonl, and each of these has its own"
    for main, words in ((run, ["--inspect", "all.jsonl"]), (report, ["all.jsonl", *PAGE])):
        capsys.readouterr()
        assert main(words) == 2
        assert problem in capsys.readouterr().err
    (rows / "part-0.jsonl").unlink()  # as that of a shard without an answer is not there
    assert merge([*parts, "--output", "all.jsonl", "--overwrite"]) == 0
    assert last_line(capsys) == "next: aft run --inspect part-1.jsonl"


def test_what_comes_after_the_merge_of_another_stage_goes_on_from_the_whole(rows, capsys):
    parts = shards(2, sample, ("--scripted", "--chat", "--samples", "2", "--quiet"))
    assert merge([*parts, "--output", "all.jsonl"]) == 0
    assert last_line(capsys).startswith("next: aft rank all.jsonl ")


@pytest.fixture
def problems(rows):
    """Problems of a benchmark, of which the second shard's first one is none."""
    problems = [{"question": f"{i}?", "answer": f"#### {i}"} for i in range(5)]
    problems[1] = {"query": "of another layout"}
    (rows / "rows.jsonl").write_text("\n".join(map(json.dumps, problems)))
    return rows


def test_a_benchmarks_file_is_joined_too(problems):
    flags = (*RUN, "--task", "gsm8k")
    run(["rows.jsonl", "--output", "one.jsonl", "--task-output", "one.json", *flags])
    parts = shards(2, flags=flags)
    code = merge([*parts, "--output", "all.jsonl", "--task-output", "all.json"])
    assert code == 1  # it lacks an answer, as one run's would
    assert (problems / "one.json").read_bytes() == (problems / "all.json").read_bytes()


def test_a_shard_takes_its_rows_for_what_the_whole_input_is(problems):
    run(["rows.jsonl", "--output", "one.jsonl", *RUN])
    assert merge([*shards(2), "--output", "all.jsonl"]) == 0
    assert summary(problems, "one") == summary(problems, "all")
    assert summary(problems, "all")[0]["rejected"] == 1


def test_shards_killed_at_random_and_given_again_are_joined_as_if_none_had_been(rows):
    run(["rows.jsonl", "--output", "one.jsonl", *RUN])
    chance, kills, parts = random.Random(5), 0, []
    for index in range(3):
        parts.append(f"part-{index}.jsonl")
        given = ["rows.jsonl", "--output", parts[-1], "--shard", f"{index}/3", *RUN]
        while killed_after(chance.randrange(1, 12), given):
            kills += 1
    assert kills > 2
    assert merge([*parts, "--output", "all.jsonl"]) == 0
    assert (rows / "one.jsonl").read_bytes() == (rows / "all.jsonl").read_bytes()
    one, all_ = summary(rows, "one"), summary(rows, "all")
    assert one[0] == all_[0]
    # What was asked twice is the row that is there twice, in shards of its own.
    assert one[1] <= all_[1] <= one[1] + 2


def killed_after(replies, given):
    """Run a command that dies before it has kept so many replies, if it gets there."""
    if (pid := os.fork()) == 0:
        real, left = Journal.keep, [replies]

        def keep(*args):
            left[0] -= 1
            if left[0] == 0:
                os._exit(77)
            real(*args)

        Journal.keep = keep
        os._exit(run(given))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 77


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ("part-0.jsonl", "1 of 2 parts are missing: the output of shard 1/2"),
        ("part-0.jsonl part-1.jsonl again.jsonl", "again.jsonl are both shard 1/2"),
        ("part-0.jsonl other.jsonl", "other.jsonl is of other settings than part-0.jsonl: temp"),
        ("part-0.jsonl third.jsonl", "third.jsonl is shard 2/3, part-0.jsonl 0/2"),
        ("part-0.jsonl ranked.jsonl", "ranked.jsonl is of other settings than part-0.jsonl"),
        ("part-0.jsonl whole.jsonl", "whole.jsonl: the output of a whole job"),
        ("part-0.jsonl rows.jsonl", "rows.jsonl: no part of a job"),
        ("part-0.jsonl begun.jsonl", "begun.jsonl: shard 1/2 is not done"),
    ],
)
def test_what_is_not_all_parts_of_one_job_is_refused_by_name(rows, capsys, parts, problem):
    shards(2)
    more = {
        "again": (run, "1/2", RUN),
        "other": (run, "1/2", (*RUN, "--temperature", "0.1")),
        "third": (run, "2/3", RUN),
        "ranked": (rank, "1/2", ("--scripted", "--quiet")),
    }
    for name, (main, shard, flags) in more.items():
        if name in parts:
            main(["rows.jsonl", "--output", f"{name}.jsonl", "--shard", shard, *flags])
    run(["rows.jsonl", "--output", "whole.jsonl", *RUN])
    killed_after(5, ["rows.jsonl", "--output", "begun.jsonl", "--shard", "1/2", *RUN])
    assert merge([*parts.split(), "--output", "all.jsonl"]) == 2
    assert problem in capsys.readouterr().err
    assert not (rows / "all.jsonl").exists()


def test_rows_that_have_changed_since_are_refused_by_their_place(rows, capsys):
    parts = shards(2)
    text = (rows / "rows.jsonl").read_text()
    (rows / "rows.jsonl").write_text(text.replace("What is 4?", "What was 4?"))
    assert merge([*parts, "--output", "all.jsonl"]) == 2
    assert "part-0.jsonl: shard 0/2 is not done" in (told := capsys.readouterr().err)
    assert "rows.jsonl:5" in told


def test_the_input_may_have_another_name_by_then(rows, capsys):
    parts = shards(2)
    (rows / "rows.jsonl").rename(rows / "moved.jsonl")
    assert merge([*parts, "--output", "all.jsonl"]) == 2
    assert "--input" in capsys.readouterr().err
    assert merge([*parts, "--output", "all.jsonl", "--input", "moved.jsonl"]) == 0


def test_an_output_of_a_glob_takes_rejects_along_which_are_no_parts(rows):
    shards(2)
    names = sorted(path.name for path in rows.glob("part-*.jsonl"))
    assert "part-1.rejects.jsonl" in names
    assert merge([*names, "--output", "all.jsonl"]) == 0


@pytest.mark.parametrize("text", ["2/2", "3", "1/0", "-1/2", "a/b", "0/2/3"])
def test_what_is_no_shard_is_refused(rows, capsys, text):
    assert run(["rows.jsonl", "--output", "out.jsonl", f"--shard={text}", *RUN]) == 2
    assert "shard: expected I/N" in capsys.readouterr().err


def test_the_slurm_script_runs_a_shard_once_and_its_parts_are_joined(rows):
    run(["rows.jsonl", "--output", "one.jsonl", *RUN])
    (rows / "bin").mkdir()
    aft = rows / "bin" / "aft"
    aft.write_text(f'#!/bin/sh\necho >> asked\nexec {sys.executable} -m aft_factory.cli "$@"\n')
    aft.chmod(0o755)
    env = {**os.environ, "PATH": f"{rows}/bin:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    for index in (0, 1, 0):  # the first is given again
        env["SLURM_ARRAY_TASK_ID"] = str(index)
        script = [ROOT / "examples" / "cluster" / "shards.sbatch", "2", "rows.jsonl", *RUN]
        subprocess.run(["bash", *script], check=True, env=env)
    assert (rows / "asked").read_text() == "\n\n"
    parts = map(str, sorted(rows.glob("parts/*.jsonl")))
    assert merge([*parts, "--output", "all.jsonl"]) == 0
    assert (rows / "one.jsonl").read_bytes() == (rows / "all.jsonl").read_bytes()
