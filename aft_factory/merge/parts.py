"""The parts of a job: the journals of its shards, which must be all of one and the same job."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar

from aft_factory.asking.journal import Journal
from aft_factory.errors import UsageError
from aft_factory.records.tables import Line
from aft_factory.run.inspection import journal_of
from aft_factory.stage.kept import NOT_BEGUN
from aft_factory.stage.left import PACE, difference
from aft_factory.stage.output import read_report
from aft_factory.stage.reading import read_shard
from aft_factory.stage.shard import shard_path


class Shard(Protocol):
    """What a shard has left: its output, and which shard it is."""

    @property
    def path(self) -> Path:
        """Its output, as named."""

    @property
    def shard(self) -> str:
        """Which of the shards it is."""


P = TypeVar("P", bound=Shard)


@dataclass(frozen=True, slots=True)
class Part:
    """A shard that has run.

    Attributes:
        path: Its output, as named.
        journal: What it answered.
        kept: Command and settings of its last run.
        fingerprint: Of that run.
        input: What it read; None where its summary is not there to tell.
    """

    path: Path
    journal: Journal
    kept: dict[str, Any]
    fingerprint: str
    input: str | None

    @property
    def shard(self) -> str:
        """Which of the shards it is."""
        return str(self.kept["settings"]["shard"])


class Parts:
    """All parts of a job, in the order of their shards; stands in for the journal of one run.

    Args:
        parts: In any order.

    Raises:
        UsageError: If one is missing, is there twice, or is another job's.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        for part in parts:
            _check_same(parts[0], part)
        self.all = in_order(parts)
        self._at = self.all[0]
        self._line: Line | None = None

    def dealt(self, lines: Iterator[Line]) -> Iterator[Line]:
        """Go through all rows of the input; `outcome` is then of the part that had the row."""
        for number, self._line in enumerate(lines):
            self._at = self.all[number % len(self.all)]
            yield self._line

    def outcome(self, key: bytes) -> dict[str, Any]:
        """Return how the query of the row at hand ended.

        Raises:
            UsageError: If it has not.
        """
        found = self._at.journal.outcome(key)
        if found is None:
            assert self._line is not None
            raise UsageError(
                f"{self._at.path}: shard {self._at.shard} is not done: it has no answer to "
                f"{self._line.place} as that row is now; give its command again"
            )
        return found

    def last_run(self) -> str:
        """Return the fingerprint of the job."""
        return self.all[0].fingerprint

    def sessions(self) -> list[dict[str, Any]]:
        """Return what each session of each part took."""
        return list(chain.from_iterable(part.journal.sessions() for part in self.all))


def in_order(parts: Sequence[P]) -> list[P]:
    """Return the parts of one whole in the order of their shards.

    Raises:
        UsageError: If one is missing, or is there twice.
    """
    first = parts[0]
    by_shard: dict[str, P] = {}
    for part in parts:
        if (other := by_shard.setdefault(part.shard, part)) is not part:
            raise UsageError(f"{other.path} and {part.path} are both shard {part.shard}")
    count = read_shard(first.shard).step
    names = [f"{index}/{count}" for index in range(count)]
    if wrong := [part for part in parts if part.shard not in names]:
        told = f"{wrong[0].path} is shard {wrong[0].shard}, {first.path} {first.shard}"
        raise UsageError(f"{told}: not parts of one whole")
    if missing := [name for name in names if name not in by_shard]:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise UsageError(
            f"{len(missing)} of {count} parts are missing: the output of shard {shown}; name it "
            "too, or run it by the command of the others with that --shard"
        )
    return [by_shard[name] for name in names]


@contextlib.contextmanager
def open_parts(paths: Sequence[Path]) -> Iterator[Parts]:
    """Open the parts of a job by the outputs of its shards.

    Raises:
        UsageError: If they are not that.
    """
    with contextlib.ExitStack() as stack:
        yield Parts([_open(path, stack) for path in paths])


def _open(path: Path, stack: contextlib.ExitStack) -> Part:
    journal = journal_of(path)
    if not journal.is_file():
        raise UsageError(
            f"{path}: no part of a job: expected the journal of a shard at {journal} (of convert "
            f"and stats: {shard_path(path)})"
        )
    opened = stack.enter_context(Journal(journal, read_only=True))
    kept, fingerprint = opened.settings(), opened.last_run()
    if kept is None or fingerprint is None:
        raise UsageError(f"{path}: {NOT_BEGUN}")
    part = Part(path, opened, json.loads(kept), fingerprint, read_report(path).get("input"))
    if part.kept["settings"].get("shard") is None:
        raise UsageError(f"{path}: the output of a whole job, and no part that --shard made")
    return part


def _check_same(first: Part, part: Part) -> None:
    """Refuse a part of another job."""
    if found := difference(first.kept, part.kept, PACE):
        told = f"{part.path} is of other settings than {first.path}"
        raise UsageError(f"{told}: {found}" if "now" in found else f"{told}: {found} made that")
    if part.fingerprint != first.fingerprint:
        raise UsageError(
            f"{part.path} and {first.path}: of equal settings, but another model, template or "
            "version of aft-factory answered. A model in a folder is known by its path and its "
            "files' sizes and times: share one folder, or copy it by cp -a to the same place"
        )
