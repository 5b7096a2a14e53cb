"""The files of a job appear in an order in which no kill leaves a state that nobody can go on from."""

import json
import shutil

from asking_tools import write_lines
from kill_tools import check_every_kill

from aft_factory.run.__main__ import main

ROWS = [{"instruction": f"Name {i} birds.", "dataset": "koala"} for i in range(4)]
FILES = ("out.jsonl", "rejects/mine.jsonl", "task/mine.json")


def test_killed_at_any_moment_of_writing_the_same_command_ends_it(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "work"
    flags = ["--task", "alpaca_eval", "--task-output", FILES[2], "--rejects", FILES[1]]
    command = ["in.jsonl", "--output", FILES[0], *flags, "--scripted", "--width", "2"]

    def fresh():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        monkeypatch.chdir(folder)
        write_lines(folder / "in.jsonl", [*ROWS, {"nothing": 1}])
        return folder

    def run():
        return main([*command, "--layers", "1", "--quiet"])

    places = check_every_kill(fresh, run, FILES[0], FILES)
    assert places >= len(FILES) + 1  # the summary's, too
    summary = json.loads((folder / "out.summary.json").read_text())
    assert (summary["written"], summary["rejected"]) == (4, 1)


def test_files_of_others_beside_the_output_are_refused(tmp_path, capsys):
    source = write_lines(tmp_path / "in.jsonl", ROWS)
    others = tmp_path / "others.json"
    others.write_text("years of work")
    for flag in ("--rejects", "--task-output"):
        output = tmp_path / "out.jsonl"
        argv = [str(source), "--output", str(output), "--task", "alpaca_eval", "--scripted"]
        assert main([*argv, flag, str(others), "--quiet"]) == 2
        assert f"{others} exists; pass --overwrite" in capsys.readouterr().err
        assert others.read_text() == "years of work"
        assert not output.exists()
