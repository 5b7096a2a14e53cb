"""The journal: what a run leaves in it, whatever ends the run. Run: pytest tests/asking/test_journal.py"""

import sqlite3
import time

import pytest

from aft_factory.asking.journal import Journal, Place
from aft_factory.asking.journal_file import VERSION
from aft_factory.engines.sampling import Completion, Reply, Request, Sampling
from aft_factory.errors import UsageError

REPLY = Reply.of((Completion("a"),), 1, 0, 1)


def keep(journal, name):
    request = Request(name, 1, Sampling(), 1)
    journal.keep(request.key("m"), Place(name, 0, 0, 0), "m", request, REPLY)
    return request.key("m")


def sessions(path):
    """What another process would find now, so also what is left if the writer is killed now."""
    with Journal(path, read_only=True) as journal:
        return journal.sessions()


def test_what_a_session_took_is_known_however_it_ended(tmp_path):
    with Journal(tmp_path / "j") as journal:
        journal.begin_run("settings", began=time.time() - 100)
        [begun] = sessions(tmp_path / "j")
        assert (begun["requests_asked"], begun["seconds"]) == (0, pytest.approx(100, abs=60))
        keep(journal, "one")
        time.sleep(0.01)
        journal.keep_outcome(b"o", {}, query="one", done=True)
        [ended] = sessions(tmp_path / "j")
        assert ended["requests_asked"] == 1
        assert ended["seconds"] > begun["seconds"]


def test_sessions_are_those_of_the_last_run_and_its_settings(tmp_path):
    for settings, names in (("a", ["1", "2"]), ("b", ["3"]), ("a", ["1", "4"]), ("a", [])):
        with Journal(tmp_path / "j") as journal:
            journal.begin_run(settings)
            for name in names:
                if journal.find(Request(name, 1, Sampling(), 1).key("m")) is None:
                    keep(journal, name)
    assert [session["requests_asked"] for session in sessions(tmp_path / "j")] == [2, 1, 0]


def test_a_reply_belongs_to_every_run_that_used_it(tmp_path):
    with Journal(tmp_path / "j") as journal:
        journal.begin_run("a")
        key = keep(journal, "q")
        journal.begin_run("b")
        assert journal.runs_of("q") == [1]
        journal.find(key)
        assert journal.runs_of("q") == [1, 2]
        assert len(list(journal.replies("q", 1))) == len(list(journal.replies("q", 2))) == 1
        journal.begin_run("a")  # goes on with the first
        assert journal.runs_of("q") == [2, 1]


def test_a_run_shows_what_it_took_from_another_and_nothing_else_of_it(tmp_path):
    with Journal(tmp_path / "j") as journal:
        journal.begin_run("a")
        taken, left = keep(journal, "taken"), keep(journal, "left")
        journal.begin_run("b")
        own = keep(journal, "own")
        for key in (taken, own):
            journal.find(key)

        def keys(run):
            return {request["key"] for _, request, _ in journal.replies(run=run)}

        assert (keys(1), keys(2), keys(None)) == ({taken, left}, {taken, own}, {taken, left, own})


def test_what_a_run_asked_itself_is_replayed_without_a_write(tmp_path):
    for _ in range(2):
        with Journal(tmp_path / "j") as journal:
            journal.begin_run("a")
            key = keep(journal, "q")
            before = journal._db.total_changes
            assert journal.find(key) == REPLY
            assert journal._db.total_changes == before


def test_a_journal_of_another_version_is_refused_and_left_as_it_is(tmp_path):
    with Journal(tmp_path / "j") as journal:
        journal.begin_run("a")
    with sqlite3.connect(tmp_path / "j") as db:
        db.execute(f"PRAGMA user_version = {VERSION - 1}")
    db.close()
    before = (tmp_path / "j").read_bytes()
    for read_only in (False, True):
        with pytest.raises(UsageError, match="another version of aft-factory wrote this journal"):
            Journal(tmp_path / "j", read_only=read_only)
    assert (tmp_path / "j").read_bytes() == before


def test_no_secret_among_the_settings_of_a_request_is_kept(tmp_path):
    path = tmp_path / "j"
    with Journal(path) as journal:
        request = Request("q", 1, Sampling(extra={"hf_token": "hf_abcdef", "min_p": 0.1}), 0)
        journal.keep(request.key("m"), Place("q", 0, 0, 0), "m", request, REPLY)
    assert b"hf_abcdef" not in path.read_bytes()
    assert b'"min_p":0.1' in path.read_bytes()


def test_one_writer_at_a_time(tmp_path):
    with Journal(tmp_path / "j"), pytest.raises(ValueError, match="another run is using this"):
        Journal(tmp_path / "j")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written: "):
        Journal(tmp_path / "file" / "j")


def test_a_full_disk_is_told_as_that_and_what_was_answered_is_kept(tmp_path):
    answered = []

    def fill():
        with Journal(tmp_path / "j") as journal:
            journal._db.execute("PRAGMA max_page_count = 40")
            while True:
                answered.append(keep(journal, str(len(answered)) * 99))

    with pytest.raises(UsageError, match="j: its disk is full; make room"):
        fill()
    with Journal(tmp_path / "j", read_only=True) as journal:
        assert {request["key"] for _, request, _ in journal.replies()} == set(answered)
    assert answered
