"""Where outputs cannot be written, that is known before anything is done for them.

Run: pytest tests/stage/test_places.py
"""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from asking_tools import read_lines, write_lines
from kernel_tools import python, read_only

from aft_factory.records.replacing import check_place

ROWS = [{"query": f"What is {i}+1?", "proposals": ["1", "2"], "aggregation": "2"} for i in range(2)]
SCRIPTED = ("--scripted", "--quiet")
JOBS = {
    "run": (*SCRIPTED, "--width", "2", "--layers", "1"),
    "sample": SCRIPTED,
    "rank": SCRIPTED,
    "aggregate": SCRIPTED,
}


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return str(write_lines(tmp_path / "in.jsonl", ROWS))


def call(name, *arguments):
    return importlib.import_module(f"aft_factory.{name}.__main__").main(list(map(str, arguments)))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--output", "file/out.jsonl"], "--output: file/out.jsonl: cannot be written: "),
        (["--output", "/proc/out.jsonl"], "--output: /proc/out.jsonl: cannot be written: /proc: "),
        (["--output", "folder.jsonl"], "--output: folder.jsonl: not a plain file"),
        (["--output", f"{'n' * 243}.jsonl"], "--rejects: nnn"),
        (["--output", "s.jsonl"], "the summary: s.summary.json: not a plain file"),
        (["--output", "r.jsonl"], "--rejects: r.rejects.jsonl: not a plain file"),
        (["--output", "o.jsonl", "--rejects", "file/r.jsonl"], "--rejects: file/r.jsonl: cannot"),
        (["--output", "j.jsonl"], "--journal: j.jsonl.journal: not a plain file"),
        (["--output", "o.jsonl", "--journal", "file/j"], "--journal: file/j: cannot be written"),
    ],
)
@pytest.mark.parametrize("name", JOBS)
def test_a_job_that_could_not_write_asks_nothing(source, name, given, told, capsys, monkeypatch):
    Path("file").touch()
    for folder in ("folder.jsonl", "s.summary.json", "r.rejects.jsonl", "j.jsonl.journal"):
        Path(folder).mkdir()
    before = sorted(os.listdir())
    monkeypatch.setattr("aft_factory.stage.job.Job._answer", None)  # nothing comes to be asked
    assert call(name, source, *given, *JOBS[name]) == 2
    assert told in capsys.readouterr().err
    assert sorted(os.listdir()) == before


def test_a_benchmarks_file_is_tried_too(source, capsys):
    given = ("--task", "alpaca_eval", "--task-output", "file/t.json")
    Path("file").touch()
    assert call("run", source, "--output", "o.jsonl", *given, *JOBS["run"]) == 2
    err = capsys.readouterr().err
    assert "--task-output: file/t.json: cannot be written" in err
    assert "Not a directory" in err


def test_where_nobody_listens_the_work_is_done_all_the_same(source):
    """Of a closed stream, the next file that is opened would take the place."""
    module = [sys.executable, "-m", "aft_factory.run", source, "--output", "o.jsonl", "--scripted"]
    closed = subprocess.run(["sh", "-c", '"$@" >&- 2>&-', "sh", *module], check=False)
    assert closed.returncode == 0
    assert len(read_lines(Path("o.jsonl"))) == len(ROWS)


def test_of_several_places_the_first_is_told(source, capsys):
    Path("file").touch()
    assert call("run", source, "--output", "file/o.jsonl", *JOBS["run"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_convert_stats_and_push_try_theirs_first(source, capsys):
    Path("file").touch()
    for given, told in {
        ("convert", "proposals", source, "--output", "file/c.jsonl"): "--output: file/c.jsonl",
        ("convert", "proposals", source, "--output", "c.jsonl", "--rejects", "file/r"): "--rejects",
        ("convert", "proposals", source, "--output", "c.jsonl", "--register", "file"): "--register",
        ("stats", source, "--json", "file/s.json"): "--json: file/s.json: cannot be written",
        ("stats", source, "--plot", "file/s.png"): "--plot: file/s.png: cannot be written",
        ("push", source, "me/x", "--license", "mit", "--dry-run", "file/p"): "file/p: Not a dir",
    }.items():
        assert call(*given) == 2
        printed = capsys.readouterr()
        assert told in printed.err
        assert printed.out == ""
    Path("s.svg").mkdir()
    assert call("stats", source, "--plot", "s.png") == 2
    assert "--plot: s.svg: not a plain file" in capsys.readouterr().err
    Path("s.svg").rmdir()
    Path("dataset_info.json").mkdir()
    assert call("convert", "proposals", source, "--output", "c.jsonl", "--register", ".") == 2
    assert "--register: dataset_info.json: not a plain file" in capsys.readouterr().err
    assert sorted(os.listdir()) == ["dataset_info.json", "file", "in.jsonl"]


def test_a_pipeline_tries_the_places_of_all_its_steps_before_the_first(source, capsys):
    Path("file").touch()
    Path("training.yaml").write_text("output_dir: file/saves\n")
    Path("p.yaml").write_text(
        "folder: out\nstages:\n"
        f"- sample: {{input: {source}, output: s.jsonl, scripted: true}}\n"
        "- rank: {output: r.jsonl, journal: /proc/j, scripted: true}\n"
        f"- convert: {{output: c.jsonl, register: {Path.cwd()}/file}}\n"
    )
    assert call("pipeline", "p.yaml") == 2
    err = capsys.readouterr().err
    assert "stages[2].rank: /proc/j: cannot be written: /proc" in err
    assert f"stages[3].convert: {Path.cwd()}/file/dataset_info.json: cannot be written" in err
    assert not Path("out").exists()


def test_what_a_pipeline_has_done_need_not_be_written_again(source, capsys, tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    (folder / "p.yaml").write_text(
        f"folder: {folder}\nstages:\n- sample: {{input: {source}, output: s.jsonl, scripted: true}}"
    )
    assert call("pipeline", folder / "p.yaml") == 0
    with read_only(folder) as there:
        done = there("-m", "aft_factory.pipeline", str(folder / "p.yaml"))
        assert (done.returncode, done.stdout) == (0, "[1/1] sample: done before\n")
        changed = write_lines(tmp_path / "in.jsonl", ROWS[:1])
        assert str(changed) == source
        done = there("-m", "aft_factory.pipeline", str(folder / "p.yaml"))
        assert (done.returncode, "Read-only file system" in done.stderr) == (2, True)


def test_a_training_tries_its_folder(tmp_path):
    from aft_factory.pipeline.training import TrainStep

    (tmp_path / "t.yaml").write_text(f"output_dir: {tmp_path}/file/saves\n")
    (tmp_path / "file").touch()
    step, problems = TrainStep(1, "train", {"config": str(tmp_path / "t.yaml")}).checked()
    assert problems == []
    for place in step.written():
        with pytest.raises(ValueError, match="cannot be written"):
            check_place(place)


def test_a_full_disk_is_found_too(source, tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    (folder / "large").write_bytes(bytes(8192))
    with read_only(folder, size="8k", writable=True) as there:
        given = ["--output", str(folder / "out.jsonl"), "--journal", str(tmp_path / "j")]
        done = there("-m", "aft_factory.run", source, *given, *JOBS["run"])
    assert done.returncode == 2
    assert f"--output: {folder}/out.jsonl: cannot be written" in done.stderr
    assert "No space left on device" in done.stderr


def test_without_permission_nothing_is_asked(source, tmp_path):
    (tmp_path / "open").mkdir(mode=0o555)
    (tmp_path / "closed").mkdir(mode=0)
    for output in ("open/out.jsonl", "closed/out.jsonl"):
        given = [source, "--output", str(tmp_path / output), *JOBS["run"]]
        done = python("-m", "aft_factory.run", *given, heeds=True)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert f"--output: {tmp_path}/{output}: cannot be written: " in done.stderr
        assert "Permission denied" in done.stderr
    code = "from aft_factory.engines.identity import fingerprint as f; import sys; "
    code += "print([f(path) == path for path in sys.argv[1:]])"
    paths = [f"{tmp_path}/closed", f"{tmp_path}/closed/model"]  # as a server may call its own
    assert python("-c", code, *paths, heeds=True).stdout == "[True, True]\n"


def test_a_place_whose_folders_are_still_to_be_made_is_one(source, tmp_path):
    assert call("run", source, "--output", "a/b/c/o.jsonl", *JOBS["run"]) == 0
    assert len(read_lines(tmp_path / "a" / "b" / "c" / "o.jsonl")) == 2
    check_place(tmp_path / "d" / "e" / "f")
    assert not (tmp_path / "d").exists()


def test_a_link_is_followed_to_where_it_leads(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "out.jsonl").symlink_to(tmp_path / "file" / "out.jsonl")
    with pytest.raises(ValueError, match=f"cannot be written: {tmp_path}/file: Not a directory"):
        check_place(tmp_path / "out.jsonl")


@pytest.mark.parametrize("command", ["run", "sample", "aggregate"])
def test_rows_from_a_pipe_which_are_read_once_are_refused_before_it_is_opened(
    command, tmp_path, capsys
):
    pipe = tmp_path / "in.jsonl"
    os.mkfifo(pipe)  # nobody writes to it: whoever opens it waits for ever
    main = importlib.import_module(f"aft_factory.{command}.__main__").main
    assert main([str(pipe), "--output", str(tmp_path / "out.jsonl"), "--scripted"]) == 2
    assert f"{pipe}: expected a file, as rows are read more than once" in capsys.readouterr().err
