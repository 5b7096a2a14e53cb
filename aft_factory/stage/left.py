"""What is left to pay of a job: what its journal has is paid for. For a dry run."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aft_factory.asking.journal import Journal
from aft_factory.engines.sampling import Usage
from aft_factory.inference.outcome import Outcome
from aft_factory.inference.queries import Query
from aft_factory.inference.runner import Runner
from aft_factory.stage.job_settings import JobSettings
from aft_factory.stage.kept import PLACES, command_of, keepable

# What decides no answer: how fast it comes, and which rows are read.
PACE = {
    *PLACES,
    *("shard", "ray", "replicas", "by_flag", "admit", "timeout", "retries", "in_flight"),
    *("draft_tokens", "price_in", "price_out"),
}
INDIFFERENT = PACE | {"split", "limit", "generator"}


@dataclass(slots=True)
class Left:
    """What is left to pay.

    Attributes:
        journal: What was answered.
        fingerprint: Of the run that answered it; "" where that was none of these settings.
        run: Its number.
        other: What the last run's settings differ in.
        done: Queries that have ended.
        usage: Of the others.
    """

    journal: Journal
    fingerprint: str = ""
    run: int = 0
    other: str = ""
    done: int = 0
    usage: Usage = field(default_factory=Usage)

    def count(self, query: Query, outcome: Outcome) -> None:
        """Add a query, by what is expected of it."""
        kept: Counter[tuple[int, int]] = Counter()
        if self.fingerprint:
            found = self.journal.outcome(Runner.outcome_key(query, self.fingerprint))
            if found is not None and found["problem"] is None:
                self.done += 1
                return
            for at, _, reply in self.journal.replies(query.id, self.run):
                kept[at.turn, at.layer] += reply.usage.requests
        for place, usage in outcome.layer_usage.items():
            self.usage += _rest(usage, min(kept[place], usage.requests))

    def describe(self, rows: int) -> list[str]:
        """Return what is left for a person, in lines; `rows` are all that can be asked."""
        path = self.journal.path
        if self.other:
            return [
                f"{path} is of a run with other settings ({self.other}): what of it is used again "
                "is not reckoned with"
            ]
        if self.done == rows:
            return [f"left to pay: nothing; all {rows:,} rows are done in {path}"]
        usage = self.usage
        return [
            f"left to pay: {usage.requests:,} requests, {usage.prompt:,} tokens read, "
            f"{usage.completion:,} written; {self.done:,} of {rows:,} rows are done in {path}"
        ]


def _rest(usage: Usage, kept: int) -> Usage:
    share = 1 - kept / usage.requests if usage.requests else 1.0
    prompt, written = usage.prompt or 0, usage.completion or 0
    tokens = {"prompt": round(prompt * share), "completion": round(written * share)}
    return Usage(requests=usage.requests - kept, **tokens)


@contextlib.contextmanager
def open_left(path: Path | None, settings: JobSettings) -> Iterator[Left | None]:
    """Open what a journal leaves to pay; None where there is no journal yet."""
    if path is None or not path.is_file():
        yield None
        return
    with Journal(path, read_only=True) as journal:
        fingerprint, kept = journal.last_run(), journal.settings()
        if fingerprint is None or kept is None:
            yield None
            return
        then, now = json.loads(kept), json.loads(keepable(settings))
        if other := difference(then, now, INDIFFERENT):
            yield Left(journal, other=other)
        else:
            yield Left(journal, fingerprint, journal.run_of(fingerprint))


def difference(
    then: Mapping[str, Any], now: Mapping[str, Any], indifferent: Collection[str]
) -> str:
    """Return the first setting that two runs differ in, in words; "" where there is none.

    Args:
        then: The kept settings of one; see `kept.keepable`.
        now: Those of the other.
        indifferent: What may differ.
    """
    if then["command"] != now["command"]:
        return command_of(then["command"])
    old, new = then["settings"], now["settings"]
    # A model at a server is known by its name, wherever that server is.
    may = {*indifferent, *(["base_url"] if new.get("model") and new.get("base_url") else [])}
    differ = [key for key in new if key not in may and old.get(key) != new[key]]
    return f"{differ[0]} {old.get(differ[0])!r}, now {new[differ[0]]!r}" if differ else ""
