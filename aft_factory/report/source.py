"""What a page is made of: a run of a journal, query by query, beside the rows it was asked.

Reads a journal, and rows one at a time; knows no page.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from aft_factory.asking.journal import Journal
from aft_factory.errors import RecordError, UsageError
from aft_factory.evaluate.asking import read_request
from aft_factory.evaluate.settings import EvalSettings
from aft_factory.inference.outcome import Outcome
from aft_factory.inference.queries import Query
from aft_factory.inference.runner import Runner
from aft_factory.inference.tasks import detect_task
from aft_factory.records.tables import Line
from aft_factory.report.grading import EvalGrading, Grading, RunGrading
from aft_factory.run.answering import reading
from aft_factory.run.inspection import journal_of
from aft_factory.run.replaying import Kept, plain_query
from aft_factory.run.settings import RunSettings
from aft_factory.stage.kept import NOT_BEGUN, command_of, kept_settings
from aft_factory.stage.output import read_summary

COMMANDS: dict[str, type[RunSettings]] = {"RunSettings": RunSettings, "EvalSettings": EvalSettings}


UNKNOWN = Grading("the row is not known, and so no reference")


@dataclass(frozen=True, slots=True)
class Entry:
    """A query of the run.

    Attributes:
        query: What was asked.
        key: Of its outcome.
        outcome: How it ended; None if it has not.
        replies: What the journal has of it, and of other rows of its id.
        grading: How its answer is told.
    """

    query: Query
    key: bytes
    outcome: Outcome | None
    replies: list[Kept]
    grading: Grading


@dataclass(slots=True)
class Source:
    """A run of a journal.

    Attributes:
        name: Of the output or journal that was named.
        journal: It, open.
        settings: Of the run.
        summary: Of its output, where there is one.
        rows: Where the rows are; None if only the journal is known.
        fingerprint: Of the run.
        unread: Rows that cannot be read.
        not_begun: Rows of which the journal has nothing.
        elsewhere: Queries of the run that are not among the rows.
        run: Its number in the journal.
    """

    name: str
    journal: Journal
    settings: RunSettings
    summary: dict[str, Any]
    rows: str | None
    fingerprint: str
    unread: int = 0
    not_begun: int = 0
    elsewhere: int = 0
    run: int = field(init=False)
    _seen: set[str] = field(default_factory=set)
    _grade: Callable[[Query], Grading] = lambda _: UNKNOWN

    def __post_init__(self) -> None:
        self.run = self.journal.run_of(self.fingerprint)

    def entries(self) -> Iterator[Entry]:
        """Go through the queries of the run: of the rows, then the journal's others."""
        if self.rows is not None:
            yield from self._of_rows(self.settings.lines(self.rows))
        for name in self.journal.ids():
            if name not in self._seen:
                for entry in self._of_journal(name):
                    self.elsewhere += self.rows is not None
                    yield entry

    def _of_rows(self, lines: Iterator[Line]) -> Iterator[Entry]:
        first = next(lines, None)
        if first is None:
            return
        read = self._reader(first.value)
        for line in chain([first], lines):
            try:
                if line.problem is not None:
                    raise RecordError("row", line.problem)
                query = read(line.value)
            except RecordError:
                self.unread += 1
                continue
            self._seen.add(query.id)
            entry = self._entry(query)
            if entry is None:
                self.not_begun += 1
            else:
                yield entry

    def _reader(self, first: Any) -> Callable[[Any], Query]:
        if isinstance(self.settings, EvalSettings):
            self._grade = EvalGrading(self.settings, Path(str(self.rows)).parent)
            return read_request
        task = self.settings.task or detect_task(first)
        self._grade = RunGrading(self.settings, task)
        return reading(self.settings, task)

    def _entry(self, query: Query) -> Entry | None:
        """Return what the journal has of a row; None if that is nothing."""
        journal, run = self.journal, self.run
        key = Runner.outcome_key(query, self.fingerprint)
        content = journal.outcome(key)
        replies = list(journal.replies(query.id, run))
        if content is None and not query.proposals:  # of other columns than were read then
            outcomes = journal.outcomes_of(query.id, run)
            content = outcomes[0] if len(outcomes) == 1 else None
            said = journal.turns(query.id)
            if said not in (None, query.turns):
                query = replace(query, turns=said)
        if content is None and not replies:
            return None
        outcome = None if content is None else Outcome(**content)
        return Entry(query, key, outcome, replies, self._grade(query))

    def _of_journal(self, name: str) -> Iterator[Entry]:
        journal, run = self.journal, self.run
        replies, turns = list(journal.replies(name, run)), journal.turns(name) or []
        outcomes = [Outcome(**content) for content in journal.outcomes_of(name, run)]
        for i, outcome in enumerate(outcomes or ([None] if replies else [])):
            given = [] if outcome is None else outcome.given
            query = plain_query(name, turns, replies, proposals=given)
            yield Entry(query, f"{i} {name}".encode(), outcome, replies, UNKNOWN)


def source_of(journal: Journal, path: Path, data: str | None) -> Source:
    """Return what there is to be read beside a journal: of an output its run, else the last one.

    Args:
        journal: Open to be read.
        path: What was named: an output or the journal.
        data: The rows, if they were named.

    Raises:
        UsageError: If it is no journal of a run.
    """
    output = path if path != journal.path else Path(str(path).removesuffix(".journal"))
    summary = read_summary(output)
    run = summary.get("run") if path != journal.path else None
    kept = json.loads(journal.settings(run) or "{}")
    if run is not None and not kept:  # of another journal, or of a version that named it otherwise
        raise UsageError(f"{journal.path}: the run that left {path} is not in it")
    command = kept.get("command")
    if journal.last_run() is None and next(journal.ids(), None) is None:
        raise UsageError(f"{journal.path}: {NOT_BEGUN}")
    if command not in COMMANDS:
        told = f"that of {command_of(command)}" if command else "one that keeps no settings"
        raise UsageError(
            f"{journal.path}: expected the journal of `aft run` or `aft eval`, got {told}"
        )
    settings = kept_settings(journal.path, COMMANDS[command](), (), run)
    run = run or journal.last_run() or ""
    if isinstance(settings, EvalSettings):
        if data is not None:
            raise UsageError(
                "--data: an evaluation has its own rows in requests.jsonl; leave it out"
            )
        asked = output.with_name("requests.jsonl")
        rows = str(asked) if asked.exists() else None
        return Source(output.name, journal, settings, summary, rows, run)
    rows = data or summary.get("input")
    if data is None and not (rows and Path(rows).exists()):
        rows = str(output) if summary else None
    return Source(output.name, journal, settings, summary, rows, run)


def open_journal(path: Path) -> Journal:
    """Open the journal of an output, or a journal, to be read.

    Raises:
        UsageError: If there is none.
    """
    journal = journal_of(path)
    if not journal.exists():
        raise UsageError(f"{journal}: no such journal; of an output that was moved, name its own")
    return Journal(journal, read_only=True)
