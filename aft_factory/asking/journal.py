"""The journal: what was asked and answered, in one SQLite file. Resume is replay.

A reply is kept under the hash of its request (`Request.key`) the moment it arrives, so a run that
was killed asks nothing twice; so is the outcome of every finished query. Nothing in it depends on
the order of the input. Runs of equal settings are one run, known by the number of its first
session. Knows no engine, strategy or prompt.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from aft_factory.asking.journal_file import JournalFile
from aft_factory.engines.sampling import Completion, Reply, Request, Usage
from aft_factory.network import without_secrets
from aft_factory.records.messages import Message


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a run a request belongs.

    Attributes:
        query: Id of the query.
        turn: Which of the query's turns it answers, from 0.
        layer: Round of the strategy, from 0.
        slot: Of its first sample.
        attempt: 0, or which resampling.
    """

    query: str
    turn: int
    layer: int
    slot: int
    attempt: int = 0


class Journal(JournalFile):
    """An open journal. One process writes it at a time; others may read it meanwhile."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        super().__init__(path, read_only=read_only)
        self._session = self._run = 0

    def find(self, key: bytes) -> Reply | None:
        """Return the reply to a request, if it was answered."""
        query = "SELECT reply, run FROM replies WHERE key = ?"
        found = self._db.execute(query, (key,)).fetchone()
        if found is None:
            return None
        reply, run = found
        if run != self._run:
            self._db.execute("INSERT OR IGNORE INTO taken VALUES (?, ?)", (key, self._run))
        return _reply(orjson.loads(self._expand(reply)))

    def keep(
        self,
        key: bytes,
        place: Place,
        model: str,
        request: Request,
        reply: Reply,
        seconds: float | None = None,
    ) -> None:
        """Write a reply down, and how long it took; it is safe when this returns."""
        extra = without_secrets(dict(request.sampling.extra))
        sampling = replace(request.sampling, extra=extra)
        row = (
            *(key, place.query, place.turn, place.layer, place.slot, place.attempt),
            *(model, request.n, request.seed, orjson.dumps(sampling).decode()),
            *(self._squeeze(_dump_reply(reply, seconds)), self._run),
        )
        with self._db:  # all of it or nothing, at the price of one write
            self._db.execute("BEGIN")
            marks = ", ".join("?" * len(row))
            self._db.execute(f"INSERT OR IGNORE INTO replies VALUES ({marks})", row)
            self.note_time(asked=reply.usage.requests)

    def keep_query(self, query: str, turns: list[list[Message]]) -> None:
        """Note what a query says, so that its drafts can be read beside it."""
        row = (query, self._squeeze(orjson.dumps(turns)))
        self._db.execute("INSERT OR REPLACE INTO queries VALUES (?, ?)", row)

    def keep_outcome(self, key: bytes, content: object, *, done: bool, query: str = "") -> None:
        """Write down how a query ended, as JSON: with an answer (`done`) or with a problem."""
        row = (key, done, self._squeeze(orjson.dumps(content)))
        with self._db:
            self._db.execute("BEGIN")
            self._db.execute("INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?)", row)
            values = (query, self._run, key)
            self._db.execute("INSERT OR IGNORE INTO endings VALUES (?, ?, ?)", values)
            self.note_time()

    def outcome(self, key: bytes) -> dict[str, Any] | None:
        """Return how a query ended, if it has."""
        found = self._db.execute("SELECT content FROM outcomes WHERE key = ?", (key,)).fetchone()
        return None if found is None else orjson.loads(self._expand(found[0]))

    def has_outcome(self, key: bytes) -> bool:
        """Tell whether a query has ended."""
        found = self._db.execute("SELECT 1 FROM outcomes WHERE key = ?", (key,)).fetchone()
        return found is not None

    def forget_problems(self) -> None:
        """Forget which queries failed, so that they are tried again; their replies stay."""
        self._db.execute("DELETE FROM outcomes WHERE NOT done")

    def begin_run(
        self, fingerprint: str, began: float | None = None, settings: str | None = None
    ) -> None:
        """Note that a session of a run of these settings (as JSON) began, now or at that time."""
        with self._db:
            self._db.execute("BEGIN")
            self._db.execute("INSERT INTO runs (fingerprint) VALUES (?)", (fingerprint,))
            query = "SELECT max(number), min(number) FROM runs WHERE fingerprint = ?"
            self._session, self._run = self._db.execute(query, (fingerprint,)).fetchone()
            times = (began or time.time(), time.time())
            self._db.execute("INSERT INTO sessions VALUES (?, ?, ?, 0)", (self._session, *times))
            values = (self._session, settings)
            self._db.execute("INSERT INTO settings VALUES (?, ?)", values)

    def note_time(self, asked: int = 0) -> None:
        """Note that the session lasts until now at least, and asked so many requests more."""
        query = "UPDATE sessions SET last = ?, asked = asked + ? WHERE number = ?"
        self._db.execute(query, (time.time(), asked, self._session))

    def last_run(self) -> str | None:
        """Return the fingerprint of the run that began last."""
        query = "SELECT fingerprint FROM runs ORDER BY number DESC LIMIT 1"
        found = self._db.execute(query).fetchone()
        return None if found is None else str(found[0])

    def run_of(self, fingerprint: str) -> int:
        """Return the run of a fingerprint, which is there."""
        query = "SELECT min(number) FROM runs WHERE fingerprint = ?"
        return int(self._db.execute(query, (fingerprint,)).fetchone()[0])

    def settings(self, fingerprint: str | None = None) -> str | None:
        """Return the settings that the last session of a run was begun with; None if it kept none.

        Args:
            fingerprint: Of the run; None of the last one.
        """
        query = (
            "SELECT content FROM settings WHERE number = "
            "(SELECT max(number) FROM runs WHERE ?1 IS NULL OR fingerprint = ?1)"
        )
        found = self._db.execute(query, (fingerprint,)).fetchone()
        return None if found is None else found[0]

    def sessions(self, fingerprint: str | None = None) -> list[dict[str, Any]]:
        """Return what each session of a run (the last one) took, as far as it lived."""
        query = (
            "SELECT began, round(max(last - began, 0), 3), asked "
            "FROM sessions JOIN runs USING (number) WHERE fingerprint = ? ORDER BY number"
        )
        names = ("began", "seconds", "requests_asked")
        rows = self._db.execute(query, (fingerprint or self.last_run(),))
        return [dict(zip(names, row, strict=True)) for row in rows]

    def runs_of(self, query: str) -> list[int]:
        """Return the runs that had a query, the one that was last at work at the end."""
        rows = self._db.execute(
            "SELECT run FROM "
            "(SELECT run FROM endings WHERE query = ?1 UNION "
            "SELECT run FROM replies WHERE query = ?1 UNION "
            "SELECT taken.run FROM taken JOIN replies USING (key) WHERE query = ?1) "
            "JOIN runs AS first ON first.number = run JOIN runs AS each USING (fingerprint) "
            "GROUP BY run ORDER BY max(each.number)",
            (query,),
        )
        return [run for (run,) in rows]

    def outcomes_of(self, query: str, run: int) -> list[dict[str, Any]]:
        """Return how a query ended in a run: several, if several rows have its id."""
        rows = self._db.execute(
            "SELECT content FROM endings JOIN outcomes USING (key) WHERE query = ? AND run = ?",
            (query, run),
        )
        return [orjson.loads(self._expand(content)) for (content,) in rows]

    def turns(self, query: str) -> list[list[Message]] | None:
        """Return what a query says."""
        found = self._db.execute("SELECT turns FROM queries WHERE id = ?", (query,)).fetchone()
        return None if found is None else orjson.loads(self._expand(found[0]))

    def ids(self) -> Iterator[str]:
        """Go through the ids of all queries."""
        for (name,) in self._db.execute("SELECT id FROM queries ORDER BY id"):
            yield name

    def replies(
        self, query: str | None = None, run: int | None = None
    ) -> Iterator[tuple[Place, dict[str, Any], Reply]]:
        """Go through the replies by place: (place, request, reply); of one query, of one run."""
        taken = "SELECT 1 FROM taken WHERE taken.key = replies.key AND taken.run = :run"
        conditions = {"query = :query": query, f"(run = :run OR EXISTS ({taken}))": run}
        wanted = [text for text, value in conditions.items() if value is not None]
        rows = self._db.execute(
            "SELECT query, turn, layer, slot, attempt, key, model, n, seed, sampling, reply "
            f"FROM replies WHERE {' AND '.join(wanted) or 'TRUE'} "
            "ORDER BY query, turn, layer, slot, attempt, key",
            {"query": query, "run": run},
        )
        for *place, key, model, n, seed, sampling, reply in rows:
            request = {"key": key, "model": model, "n": n, "seed": seed}
            request["sampling"] = orjson.loads(sampling)
            content = orjson.loads(self._expand(reply))
            request["seconds"] = content.get("seconds")  # None in older journals
            yield Place(*place), request, _reply(content)


def _dump_reply(reply: Reply, seconds: float | None) -> bytes:
    completions = list(map(_values, reply.completions))
    content = {"usage": _values(reply.usage), "completions": completions, "seconds": seconds}
    return orjson.dumps(content)


def _values(of: Completion | Usage) -> list[Any]:
    """Return the values of its fields: `astuple` would copy each, for a tenth of a run's time."""
    return [getattr(of, name) for name in of.__dataclass_fields__]


def _reply(content: dict[str, Any]) -> Reply:
    completions = tuple(Completion(*values) for values in content["completions"])
    return Reply(completions, Usage(*content["usage"]))
