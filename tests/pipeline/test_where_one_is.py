"""A pipeline tells what is left to pay and what it made; its stages tell no next command.

Run: pytest tests/pipeline/test_where_one_is.py
"""

import json
from pathlib import Path

import pytest
from asking_tools import write_lines

from aft_factory.pipeline.__main__ import main
from aft_factory.sample.__main__ import main as sample


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    """The file of a pipeline, beside its queries."""
    monkeypatch.chdir(tmp_path)
    write_lines(Path("queries.jsonl"), [{"query": f"What is {i}?"} for i in range(6)])
    stages = [
        {"sample": {"input": "./queries.jsonl", "output": "s.jsonl", "scripted": True}},
        {"aggregate": {"output": "a.jsonl", "scripted": True}},
        {"convert": {"output": "train.jsonl", "register": "made"}},
    ]
    path = Path("p.yaml")
    path.write_text(json.dumps({"folder": "made", "stages": stages}))  # JSON is YAML
    return str(path)


def test_a_dry_run_reckons_with_what_a_stage_has_in_its_journal(pipeline, capfd):
    begun = ["./queries.jsonl", "--output", "made/s.jsonl", "--scripted", "--quiet"]
    assert sample([*begun, "--limit", "4"]) == 0
    Path("made/s.jsonl").unlink()  # as where the stage was killed
    capfd.readouterr()
    assert main([pipeline, "--dry-run"]) == 0
    told = [line for line in capfd.readouterr().out.splitlines() if "left to pay" in line]
    assert [line.partition(" requests")[0] for line in told] == ["left to pay: 2"]
    assert told[0].endswith("4 of 6 rows are done in made/s.jsonl.journal")

    assert main([pipeline]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert "requests: 2 asked, 4 from the journal" in lines
    assert [line for line in lines if line.startswith("next:")] == []
    assert lines[-1] == (
        "registered as 'train' in made/dataset_info.json; train with dataset_dir: made, "
        "dataset: train, template: aft_llama3 (or aft_ before another template)"
    )
    assert main([pipeline, "--dry-run"]) == 0
    assert capfd.readouterr().out.count("done before") == 3


def test_a_file_beside_the_pipeline_that_is_looked_for_in_its_folder_is_pointed_out(
    pipeline, capsys
):
    path = Path(pipeline)
    path.write_text(path.read_text().replace("./queries", "queries"))
    assert main([pipeline]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: stages[1].sample: input made/queries.jsonl: no such file")
    assert err.endswith("; a bare name is one in `folder`: ./queries.jsonl is there\n")
    path.write_text(path.read_text().replace("queries", "nowhere"))
    assert main([pipeline]) == 2
    assert "bare name" not in capsys.readouterr().err
