"""Progress: a bar in a terminal, a line a minute elsewhere, nothing when quiet.

Run: pytest tests/stage/test_progress.py
"""

import io
import re
import sys
import time

import pytest
from tqdm import tqdm

from aft_factory.stage import progress
from aft_factory.stage.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on when told."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def shown(monkeypatch, clock, stream, *, quiet=False):
    """What a bar of 300 steps shows, each of which takes a second and shows itself twice."""
    monkeypatch.setattr(sys, "stderr", stream)
    tqdm._instances.clear()  # a bar of another test that failed as it should may still be there
    with progress_bar(total=300, unit=" rows", desc="convert", quiet=quiet, mininterval=0) as bar:
        for _ in range(300):
            clock[0] += 1
            bar.update()
            bar.set_postfix({"in flight": 3})
    return stream.getvalue()


def test_without_a_terminal_it_is_a_line_a_minute(monkeypatch, clock):
    lines = shown(monkeypatch, clock, io.StringIO()).splitlines(keepends=True)
    assert [line[-1] for line in lines] == ["\n"] * 5
    assert [re.search(r"(\d+)/300 ", line)[1] for line in lines] == [
        "60",
        "120",
        "180",
        "240",
        "300",
    ]
    assert all(line.startswith("convert:") and "in flight=3" in line for line in lines[1:])
    assert "\r" not in "".join(lines)


def test_a_short_one_shows_nothing_without_a_terminal(monkeypatch, clock):
    monkeypatch.setattr(progress, "LINE_EVERY", 1000)
    assert shown(monkeypatch, clock, io.StringIO()) == ""


def test_in_a_terminal_it_is_a_bar(monkeypatch, clock):
    text = shown(monkeypatch, clock, Terminal())
    assert text.count("\r") > 300
    assert text.count("\n") == 1


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_quiet_is_quiet(monkeypatch, clock, stream):
    assert shown(monkeypatch, clock, stream(), quiet=True) == ""


def test_it_goes_through_what_it_is_handed(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY", 0)
    assert list(progress_bar("ab", desc="tokens", quiet=False)) == ["a", "b"]
