"""Data sets on the hub: which names are theirs, what of them is read, and that it is fetched once.

The real `datasets` reads from a small hub of our own, in a process of its own, as it takes the
hub's address when it is imported.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from flaky_server import until
from hub_server import hub_of

from aft_factory.engines.vllm_loading import check_name
from aft_factory.errors import UsageError
from aft_factory.pipeline.steps import check_ready, read_pipeline
from aft_factory.prompts.tokenizer import load_tokenizer
from aft_factory.records.hub import fetched_once, hub_silent, waiting_for
from aft_factory.records.tables import read_rows
from aft_factory.stats.__main__ import main as stats

CARD = b"""---
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train.jsonl}
  - {split: test, path: main/test.jsonl}
- config_name: socratic
  data_files:
  - {split: train, path: socratic/train.jsonl}
---
"""


def lines(*questions: str) -> bytes:
    return b"".join(b'{"question":"%s","answer":"4"}\n' % text.encode() for text in questions)


def tree(*questions: str) -> dict[str, bytes]:
    return {
        "README.md": CARD,
        "main/train.jsonl": lines(*questions),
        "main/test.jsonl": lines("of the test"),
        "socratic/train.jsonl": lines("of the other"),
    }


@pytest.fixture(scope="module")
def hub():
    """A hub with a set of two configurations and two revisions, its name with a dot."""
    with hub_of({"org/math.v2": {"main": tree("one", "two", "three"), "2024": tree("old")}}) as hub:
        yield hub


@pytest.fixture
def python(hub, tmp_path):
    """A process that knows this hub: (its exit code, what it printed, how often files were read)."""

    def run(*argv):
        hub.read.clear()
        done = subprocess.run(
            [sys.executable, *map(str, argv)],
            env=os.environ | hub.environment(str(tmp_path / "home")),
            stdout=subprocess.PIPE,
            text=True,
            timeout=300,
        )
        return done.returncode, done.stdout, hub.read

    return run


READ = """\
from aft_factory.errors import UsageError
from aft_factory.records.tables import read_rows
for name, choice in {choices}:
    try:
        for line in read_rows(name, **choice):
            print(line.place, line.value["question"], sep="; ")
    except UsageError as error:
        print(error.args[0].replace("\\n", " "))
"""


def test_name_subset_split_and_revision_say_what_is_read(python):
    choices = [
        {"subset": "main"},
        {"subset": "socratic"},
        {"subset": "main", "split": "test"},
        {"subset": "main", "revision": "2024"},
    ]
    _, said, _ = python("-c", READ.format(choices=[("org/math.v2", one) for one in choices]))
    assert said.splitlines() == [
        "org/math.v2[main, train]:1; one",
        "org/math.v2[main, train]:2; two",
        "org/math.v2[main, train]:3; three",
        "org/math.v2[socratic, train]:1; of the other",
        "org/math.v2[main, test]:1; of the test",
        "org/math.v2[main, train]:1; old",
    ]


def test_what_the_hub_does_not_have_is_told_with_what_chooses(python):
    cases = [
        ("org/math.v2", {}, "pick one among the available configs: ['main', 'socratic']"),
        ("org/math.v2", {"subset": "man"}, "'man' not found. Available: ['main', 'socratic']"),
        ("org/math.v2", {"subset": "main", "split": "dev"}, "Available splits: ['train', 'test']"),
        ("org/math.v2", {"subset": "main", "revision": "1"}, "Revision '1' doesn't exist"),
        ("org/math.v3", {}, "Dataset 'org/math.v3' doesn't exist on the Hub"),
    ]
    choices = [(name, choice) for name, choice, _ in cases]
    _, said, _ = python("-c", READ.format(choices=choices))
    for told, (name, _, words) in zip(said.splitlines(), cases, strict=True):
        start = f"{name}: no such file, and the hub does not give it "
        assert told.startswith(f"{start}(--data-subset, --split and --data-revision choose): ")
        assert words in told


def test_a_job_fetches_its_input_once(python, tmp_path):
    flags = ["--task", "gsm8k", "--data-subset", "main", "--scripted"]
    code, said, read = python(
        "-m", "aft_factory.run", "org/math.v2", "--output", tmp_path / "out.jsonl", *flags
    )
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
    assert code == 0, said
    assert [row["question"] for row in rows] == ["one", "two", "three"]
    assert read["main/train.jsonl"] == 1


def test_stages_and_pipelines_take_a_subset_and_a_revision(python, tmp_path):
    stage = {
        "input": "org/math.v2",
        "data_subset": "main",
        "data_revision": "2024",
        "output": f"{tmp_path}/out.jsonl",
        "scripted": True,
    }
    (tmp_path / "p.yaml").write_text(json.dumps({"stages": [{"sample": stage}]}))
    code, said, read = python("-m", "aft_factory.pipeline", tmp_path / "p.yaml")
    assert code == 0, said
    [row] = map(json.loads, (tmp_path / "out.jsonl").open())
    assert row["messages"][0]["content"] == "old"
    assert read["main/train.jsonl"] == 1


@pytest.fixture
def stream(monkeypatch):
    """Stands in for what `datasets` streams: hands out rows; tells how many were taken."""
    import datasets

    taken = []

    def given(*rows):
        def load():
            for row in rows:
                taken.append(row)
                if isinstance(row, Exception):
                    raise row
                yield row

        monkeypatch.setattr("aft_factory.records.hub.hub_silent", lambda *_: None)
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: {"train": load()})
        return taken

    return given


def values(name="org/name"):
    return (line.value for line in read_rows(name))


def test_rows_are_fetched_as_they_are_read_and_once_within_a_command(stream):
    taken = stream({"a": 1}, {"a": 2}, {"a": 3})
    with fetched_once():
        first, second = values(), values()
        assert next(first) == next(second) == {"a": 1}
        assert taken == [{"a": 1}]
        assert next(second) == {"a": 2}
        assert list(first) == [{"a": 2}, {"a": 3}]
        assert list(second) == [{"a": 3}]
        assert list(values()) == [{"a": 1}, {"a": 2}, {"a": 3}]
        assert len(taken) == 3
        assert list(values("org/other")) == list(values())
        assert len(taken) == 6
    with fetched_once():
        assert list(values()) == [{"a": 1}, {"a": 2}, {"a": 3}]
        assert len(taken) == 9


def test_a_command_within_a_command_shares_what_is_fetched(stream):
    taken = stream({"a": 1})
    with fetched_once():
        with fetched_once():
            assert list(values()) == [{"a": 1}]
        assert list(values()) == [{"a": 1}]
    assert len(taken) == 1


def test_a_connection_that_breaks_is_no_end(stream):
    taken = stream({"a": 1}, ConnectionError("reset"))
    with fetched_once():
        for _ in range(2):
            rows = values()
            assert next(rows) == {"a": 1}
            with pytest.raises(UsageError, match=r"org/name: .* reset"):
                next(rows)
    assert len(taken) == 2


def test_a_folder_without_room_for_the_rows_is_named(stream):
    stream({"a": "x" * 10_000})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with fetched_once():
        rows = values()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            with pytest.raises(UsageError, match="File too large; TMPDIR names another folder"):
                next(rows)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        with pytest.raises(UsageError, match="TMPDIR"):  # the row is lost: nobody goes on behind it
            next(values())


@pytest.mark.parametrize("name", ["org/data.v2", "org/gpt-4.1", "o.r-g/a_b", "a/b.csv"])
def test_a_name_with_a_dot_may_be_on_the_hub(stream, name):
    stream({"a": 1})
    assert list(values(name)) == [{"a": 1}]


@pytest.mark.parametrize(
    "name",
    [
        *(f"org/rows{end}" for end in (".jsonl", ".JSON", ".ndjson", ".parquet", ".gz", ".zst")),
        *("rows", "data.v2", "a/b/c", "./rows", "/rows", "../rows", "~/rows", "a/b c", "a/", "/b"),
    ],
)
def test_a_name_of_a_file_is_not_looked_for_on_the_hub(stream, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    taken = stream({"a": 1})
    with pytest.raises(UsageError, match=r"no such file, and not the OWNER/NAME of a data set"):
        list(values(name))
    assert taken == []


def test_a_folder_that_is_called_as_an_owner_takes_no_name_from_the_hub(
    stream, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    stream({"a": 1})
    Path("my").mkdir()
    assert list(values("my/rows")) == [{"a": 1}]
    check_name("my/model")
    with pytest.raises(UsageError, match=r"'my/own/model': no such folder here"):
        load_tokenizer("my/own/model")  # which no name on a hub is


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch):
    asked = []

    def unreachable(url, **_):
        asked.append(url)
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    hub_silent.cache_clear()
    words = r"'your/model': no such folder, and the hub cannot be"
    for _ in range(2):  # whatever is loaded of it
        with pytest.raises(UsageError, match=words):
            load_tokenizer("your/model")
    assert len(asked) == 1
    with pytest.raises(
        UsageError, match=r"^your/rows: no such file, and the hub cannot be reached"
    ):
        list(read_rows("your/rows"))
    assert "/datasets/your/rows/" in asked[1]
    hub_silent.cache_clear()


def test_what_takes_long_is_told(monkeypatch, caplog):
    monkeypatch.setattr("aft_factory.records.hub.PATIENCE", 0.01)
    with waiting_for("the moon"):
        until(lambda: caplog.messages)
    assert caplog.messages == ["still waiting for the moon"]
    monkeypatch.setattr("aft_factory.records.hub.PATIENCE", 60)
    with waiting_for("the sun"):
        pass
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("flag", ["--data-subset", "--data-revision"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_of_the_hub_is_refused_for_what_lies_here(tmp_path, capsys, flag, kind):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"query": "q"}\n') if kind == "file" else path.mkdir()
    assert stats([str(path), flag, "main"]) == 2
    problem = f"{path}: no data set on the hub, to which {flag} main belongs"
    assert capsys.readouterr().err == f"error: {problem}\n"


def test_a_pipeline_refuses_it_before_its_first_stage(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"query": "q"}\n')
    stage = f"{{input: {path}, output: {tmp_path}/x.jsonl, data_subset: main, scripted: true}}"
    (tmp_path / "p.yaml").write_text(f"stages:\n  - sample: {stage}\n")
    with pytest.raises(UsageError, match="no data set on the hub, to which --data-subset main"):
        check_ready(read_pipeline(tmp_path / "p.yaml"))
