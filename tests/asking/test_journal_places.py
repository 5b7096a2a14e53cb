"""Journals where file systems lack something. Run: pytest tests/asking/test_journal_places.py"""

import fcntl
import json
import sqlite3

import pytest
from asking_tools import read_lines, write_lines
from kernel_tools import python, read_only

from aft_factory.asking.journal import Journal
from aft_factory.errors import UsageError
from aft_factory.run.__main__ import main

FLAGS = ("--scripted", "--quiet", "--width", "2", "--layers", "1")
SLOWER = "its file system has no shared memory: replies are written more slowly"


@pytest.fixture
def job(tmp_path):
    """The arguments of a run."""
    source = write_lines(tmp_path / "in.jsonl", [{"query": f"What is {i}+1?"} for i in range(3)])
    return [str(source), "--output", str(tmp_path / "out.jsonl"), *FLAGS]


def run(*arguments, **more):
    return python("-m", "aft_factory.run", *arguments, **more)


def mode(path):
    with sqlite3.connect(path) as db:
        [[found]] = db.execute("PRAGMA journal_mode")
    db.close()
    return found


def test_without_locks_a_journal_is_refused_before_anything_is_asked(tmp_path, job):
    done = run(*job, lacks=["flock"])
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "out.jsonl.journal: its file system cannot lock files (No locks available)" in (
        done.stderr
    )
    assert "name a --journal on a local disk" in done.stderr
    assert not (tmp_path / "out.jsonl.journal").exists()


def test_without_shared_memory_a_run_goes_on_without_wal_and_says_so(tmp_path, job):
    done = run(*job, lacks=["mmap"])
    assert (done.returncode, SLOWER in done.stderr) == (0, True)
    assert mode(tmp_path / "out.jsonl.journal") == "delete"
    assert len(read_lines(tmp_path / "out.jsonl")) == 3
    again = run(*job, "--overwrite", lacks=["mmap"])
    assert again.returncode == 0
    summary = json.loads((tmp_path / "out.summary.json").read_text())
    assert summary["session"]["requests_asked"] == 0
    exported = run(*job, "--overwrite", "--export", lacks=["mmap"])
    assert exported.returncode == 0
    assert SLOWER not in exported.stderr


def test_a_journal_with_wal_is_used_where_there_is_none_and_the_other_way_round(tmp_path, job):
    journal = tmp_path / "out.jsonl.journal"
    assert main(job) == 0
    for lacks, expected in ((["mmap"], "delete"), ([], "wal"), (["mmap"], "delete")):
        assert run(*job, "--overwrite", "--export", lacks=lacks).returncode == 0
        assert run(*job, "--overwrite", lacks=lacks).returncode == 0
        assert mode(journal) == expected
    with Journal(journal, read_only=True) as opened:
        assert [session["requests_asked"] for session in opened.sessions()][1:] == [0, 0, 0]


def test_what_a_killed_run_left_in_the_wal_is_there_without_shared_memory(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from aft_factory.asking.journal import Journal\n"
        "with Journal(Path(sys.argv[1])) as journal:\n"
        "    journal.begin_run('a'); print(len(journal.sessions()), flush=True)\n"
        "    sys.argv[2:] and os._exit(9)"
    )
    path = str(tmp_path / "j")
    assert python("-c", code, path, "killed").stdout == "1\n"
    assert (tmp_path / "j-wal").stat().st_size
    assert python("-c", code, path, lacks=["mmap"]).stdout == "2\n"


def test_a_journal_that_nobody_can_write_is_read(tmp_path, job):
    folder = tmp_path / "disk"
    folder.mkdir()
    assert main([*job[:2], str(folder / "out.jsonl"), *FLAGS]) == 0
    with read_only(folder) as there:
        job = [*job, "--journal", str(folder / "out.jsonl.journal")]
        exported = there("-m", "aft_factory.run", *job, "--export")
        assert (exported.returncode, exported.stderr) == (0, "")
        assert len(read_lines(tmp_path / "out.jsonl")) == 3
        done = there("-m", "aft_factory.run", *job, "--overwrite")
        assert done.returncode == 2
        assert f"--journal: {folder}/out.jsonl.journal: cannot be written: " in done.stderr
        assert "Read-only file system" in done.stderr


def test_what_stands_in_a_wal_alone_is_never_left_out(tmp_path):
    """As of a run that is under way where this one cannot see its memory."""
    with Journal(tmp_path / "j") as journal:
        journal.begin_run("a")
        wal, file = (tmp_path / "j-wal").read_bytes(), (tmp_path / "j").read_bytes()
    folder = tmp_path / "disk"
    folder.mkdir()
    (folder / "j").write_bytes(file)
    (folder / "j-wal").write_bytes(wal)
    code = "from pathlib import Path; import sys; from aft_factory.asking.journal import Journal\n"
    code += "print(Journal(Path(sys.argv[1]), read_only=True).sessions())"
    with read_only(folder) as there:
        assert "SQLite cannot use a journal here" in there("-c", code, str(folder / "j")).stderr


def test_the_lock_is_a_file_beside_as_over_a_network_it_would_clash_with_sqlites(tmp_path):
    with Journal(tmp_path / "j"):
        with (tmp_path / "j").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert (tmp_path / "j-lock").exists()
        (tmp_path / "link").symlink_to(tmp_path / "j")
        with pytest.raises(UsageError, match="another run is using this journal"):
            Journal(tmp_path / "link")
    assert not (tmp_path / "j-lock").exists()


def test_who_waits_at_a_lock_that_is_removed_takes_the_next(tmp_path, monkeypatch):
    from aft_factory.asking import journal_file

    taken = []

    def removed_at_first(path):
        taken.append(real(path))
        if len(taken) == 1:
            path.unlink()
        return taken[-1]

    real = journal_file.locked
    monkeypatch.setattr(journal_file, "locked", removed_at_first)
    with Journal(tmp_path / "j"), pytest.raises(UsageError, match="another run"):
        Journal(tmp_path / "j")
    assert len(taken) == 2


def test_a_database_of_others_is_left_as_it_is_without_shared_memory(tmp_path):
    with sqlite3.connect(tmp_path / "j", isolation_level=None) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE others (a)")
    db.close()
    before = (tmp_path / "j").read_bytes()
    code = "import sys; from pathlib import Path; from aft_factory.asking.journal import Journal\n"
    done = python("-c", f"{code}Journal(Path(sys.argv[1]))", str(tmp_path / "j"), lacks=["mmap"])
    assert "a database, but no journal of aft-factory" in done.stderr
    assert (tmp_path / "j").read_bytes() == before


def test_another_program_that_keeps_the_journal_is_told_of(tmp_path, monkeypatch):
    from aft_factory.asking import journal_file

    monkeypatch.setattr(journal_file, "LONGEST_WAIT", 0.1)
    db = sqlite3.connect(tmp_path / "j", isolation_level=None)
    db.execute("BEGIN EXCLUSIVE")
    with pytest.raises(UsageError, match="SQLite cannot use a journal here: database is locked"):
        Journal(tmp_path / "j")
    db.close()
