"""What the commands that ask a model have in common: settings, engines, the job, its outputs.

A command is a `Stage` (how a row becomes a query, the strategy, how an outcome becomes a row) and a
class of settings; `Job` does the rest, so that resume, seeds, rejects and accounts are one code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aft_factory.inference.drafting_options import DraftingOptions
from aft_factory.inference.outcome import Outcome
from aft_factory.inference.queries import Query
from aft_factory.inference.strategy import Strategy
from aft_factory.records.record import Row

if TYPE_CHECKING:
    from aft_factory.stage.engines import OpenEngines


class Tally:
    """Counts what a stage finds in its rows; this one counts nothing."""

    def on_problem(self, outcome: Outcome) -> None:
        """Be told of a query that has no answer, and so no row."""

    def summary(self) -> Row:
        """Return what was counted, for the summary."""
        return {}

    def describe(self) -> list[str]:
        """Return the same for a person, in lines."""
        return []


@dataclass(frozen=True, slots=True)
class Stage:
    """What a command does with a row.

    Attributes:
        read_row: Row to query; raises RecordError for a row it cannot use.
        strategy: From a query to its answer.
        options: All options of the strategy.
        drafting: Gives prompts, sampling, seed and policies; not called where nothing is asked.
        write_row: From a query and its outcome to the output row; may raise RecordError.
        keep_drafts: Whether outcomes hold all drafts.
        use_proposals: Whether a row's proposals are the drafts of the first layer.
        of_drafts: Whether drafts are what it makes, and not a final answer.
        tally: Counts what `write_row` and problems tell.
        open: Opens what it asks.
        dry_run: What it asks in a dry run.
        dry_run_note: What a dry run reckons with, in words.
        task_row: From a query and its answers to the row of a benchmark's own file.
        unread: From a row that `read_row` refuses to a query that `task_row` can name.
        is_right: Whether the answers to a query are right, where that can be told.
        columns: What the rows of a benchmark are known to hold.
        used: DraftingOptions that were used where none were given, for the summary.
        following: From its output to the command that comes next, in words.
        exports: Whether the command has `--export`.
    """

    read_row: Callable[[Any], Query]
    strategy: Strategy
    options: Mapping[str, Any]
    drafting: Callable[[], DraftingOptions]
    write_row: Callable[[Query, Outcome], Row]
    open: Callable[[], AbstractAsyncContextManager[OpenEngines]]
    dry_run: OpenEngines
    dry_run_note: str
    keep_drafts: bool = False
    use_proposals: bool = False
    of_drafts: bool = False
    tally: Tally = field(default_factory=Tally)
    task_row: Callable[[Query, list[str]], Row] | None = None
    unread: Callable[[Any], Query | None] = lambda _: None
    is_right: Callable[[Query, list[str]], bool] | None = None
    columns: frozenset[str] = frozenset()
    used: Mapping[str, Any] = field(default_factory=dict)
    following: Callable[[Path], Sequence[str | Path]] = lambda _: ()
    exports: bool = True


@dataclass(frozen=True, slots=True)
class Files:
    """What a job reads and writes.

    Attributes:
        source: File, folder or hub name of the input.
        output: File to write; None only for a dry run.
        task_output: A benchmark's own file.
        overwrite: Whether existing files may be replaced.
        quiet: No progress bar.
    """

    source: str
    output: Path | None
    task_output: Path | None = None
    overwrite: bool = False
    quiet: bool = False
