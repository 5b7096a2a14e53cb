"""Files whose names are not UTF-8, as old disks and archives have them.

Run: pytest tests/records/test_names.py
"""

import json
import os
from pathlib import Path

import pytest
from asking_tools import write_lines
from kernel_tools import python

from aft_factory.engines.identity import fingerprint
from aft_factory.records.files import readable
from aft_factory.stage.console import guarded

LATIN = os.fsdecode(b"caf\xe9")
SHOWN = r"caf\udce9"
ROWS = [{"query": "What is 1+1?", "proposals": ["1", "2"], "aggregation": "2"}, {"bad": 1}]
ASKS = ("--scripted", "--quiet")


@pytest.fixture
def folder(tmp_path):
    """A folder of such a name, with rows and an aggregator prompt in it."""
    folder = tmp_path / LATIN
    folder.mkdir()
    write_lines(folder / f"{LATIN}.jsonl", ROWS)
    (folder / f"{LATIN}.jinja").write_text("{% for p in proposals %}{{ p }}\n{% endfor %}")
    return folder


def call(name, *arguments):
    done = python("-m", f"aft_factory.{name}", *map(str, arguments))
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize(
    ("name", "suffix"),
    [(name, "jsonl") for name in ("run", "sample", "rank", "aggregate")] + [("run", "parquet")],
)
def test_jobs_read_write_and_resume_them(folder, name, suffix):
    output = folder / f"{name}-{LATIN}.{suffix}"
    more = ["--template", folder / f"{LATIN}.jinja"] if name in ("run", "aggregate") else []
    more += ["--width", "2", "--layers", "1"] if name == "run" else []
    for again in ([], ["--overwrite"], ["--overwrite", "--export"]):
        given = [folder / f"{LATIN}.jsonl", "--output", output, *ASKS, *more, *again]
        done = call(name, *given)
        assert done.returncode == 0, done.stderr
        assert f"1 written to {folder.parent}/{SHOWN}/{name}-{SHOWN}.{suffix}" in done.stdout
    stem = output.name.removesuffix(".jsonl")
    summary = json.loads((folder / f"{stem}.summary.json").read_text(encoding="utf-8"))
    assert summary["input"] == f"{folder.parent}/{SHOWN}/{SHOWN}.jsonl"
    assert len(summary["sessions"]) == 2
    [reject] = (folder / f"{stem}.rejects.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(reject)["file"] == summary["input"]
    read = call("stats", output, "--json", folder / f"{LATIN}.json")
    assert read.returncode == 0
    numbers = json.loads((folder / f"{LATIN}.json").read_text(encoding="utf-8"))
    assert numbers["file"].endswith(f"{name}-{SHOWN}.{suffix}")


def test_a_journal_of_such_a_name_is_shown(folder):
    output = folder / "out.jsonl"
    flags = ["--width", "2", "--layers", "1", "--journal", folder / LATIN]
    call("run", folder / f"{LATIN}.jsonl", "--output", output, *ASKS, *flags)
    done = call("run", "--inspect", folder / LATIN, "nobody")
    assert f"{SHOWN}/{SHOWN}: no query 'nobody'" in done.stderr


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_convert_stats_and_push_take_them(folder, suffix):
    output = folder / f"c{LATIN}.{suffix}"
    given = ["--output", output, "--template", folder / f"{LATIN}.jinja", "--preview", "1"]
    assert call("convert", "proposals", folder / f"{LATIN}.jsonl", *given).returncode == 0
    given = ["--json", folder / f"{LATIN}.json", "--plot", folder / f"{LATIN}.png"]
    assert call("stats", output, *given).returncode == 0
    given = ["--license", "mit", "--dry-run", folder / f"p{LATIN}"]
    assert call("push", output, "me/x", *given).returncode == 0
    assert list((folder / f"p{LATIN}" / "data").glob("*.parquet"))


def test_a_pipeline_takes_them(folder, monkeypatch):
    pipeline = folder / f"{LATIN}.yaml"
    pipeline.write_text(
        "folder: out\nstages:\n"
        f"- sample: {{input: {folder.parent}/in.jsonl, output: s.jsonl, scripted: true}}\n"
        "- stats: {}\n"
    )
    write_lines(folder.parent / "in.jsonl", ROWS[:1])
    monkeypatch.chdir(folder)
    assert call("pipeline", pipeline).returncode == 0
    assert "done before" in call("pipeline", pipeline).stdout


def test_what_llamafactory_could_not_find_is_not_registered(folder):
    source = folder / f"{LATIN}.jsonl"
    for output, name in ((f"{LATIN}x.jsonl", "x"), ("x.jsonl", LATIN)):
        given = ["--output", folder / output, "--register", folder, "--name", name]
        done = call("convert", "proposals", source, *given)
        assert done.returncode == 2
        assert f"{SHOWN}/dataset_info.json: cannot be written with" in done.stderr
        assert not (folder / output).exists()
    given = ["--output", folder / "x.jsonl", "--register", folder]
    assert call("convert", "proposals", source, *given).returncode == 0
    [entry] = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8")).values()
    assert entry["file_name"] == "x.jsonl"


def test_a_tokenizer_of_such_a_name_is_refused_by_name(folder):
    given = ["--output", folder / "x.jsonl", "--tokenizer", folder]
    done = call("convert", "proposals", folder / f"{LATIN}.jsonl", *given)
    assert done.returncode == 2
    assert "error: cannot load the tokenizer" in done.stderr
    assert SHOWN in done.stderr


def test_a_model_in_such_a_folder_has_a_name_for_journals(folder):
    (folder / f"tokenizer{LATIN}").touch()
    assert fingerprint(str(folder)).startswith(f"{folder.parent}/{SHOWN}#")


def test_a_name_is_written_as_it_is_printed(capsys):
    assert readable(f"{LATIN}.jsonl") == rf"{SHOWN}.jsonl"
    assert readable("café.jsonl") == "café.jsonl"
    guarded(lambda: Path(LATIN).read_bytes())
    assert rf"error: {SHOWN}: No such file" in capsys.readouterr().err
