"""What a job leaves behind: rows in the input's order, rejects, a benchmark's file, a summary.

Written from the journal once all queries have ended, or, with `--export`, from what is there.
Every row read is written, rejected or (with `--export`) not done yet.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from aft_factory.accounting import LayerUsage, ModelShape
from aft_factory.errors import RecordError
from aft_factory.files import write_whole
from aft_factory.records import Row
from aft_factory.runner import Outcome
from aft_factory.tables import Line, Rejects, TableWriter
from aft_factory.tasks import Query


class Once:
    """Tells the first time of a key from the others; on disk, so that there may be millions."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)  # a file without a name
        self._db.execute("CREATE TABLE seen (key BLOB PRIMARY KEY) WITHOUT ROWID")

    def __call__(self, key: bytes) -> bool:
        """Tell whether this is the first time of a key."""
        return self._db.execute("INSERT OR IGNORE INTO seen VALUES (?)", (key,)).rowcount == 1


@dataclass(slots=True)
class Totals:
    """What the queries of a run add up to; `read = written + rejected + unfinished`.

    Attributes:
        read: Input rows.
        unfinished: Queries that have not ended yet.
        repeated: Rows that ask what an earlier one asks: what that took is counted once.
        answers: To the turns of the queries.
        usage: By (turn, layer), of answered and rejected queries.
        of_drafts: Whether drafts are what is made, and not final answers.
        finish_reasons: Of what is made.
        events: Uses of policies.
        rejects: By what they are about: how many, and the first reason.
    """

    read: int = 0
    written: int = 0
    rejected: int = 0
    unfinished: int = 0
    repeated: int = 0
    answers: int = 0
    of_drafts: bool = False
    usage: dict[tuple[int, int], LayerUsage] = field(default_factory=dict)
    finish_reasons: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    rejects: dict[str, tuple[int, str]] = field(default_factory=dict)
    first_time: Once = field(default_factory=Once, repr=False)

    def count(self, outcome: Outcome, key: bytes) -> None:
        """Add the outcome of one query, unless one of this key was added before."""
        if not self.first_time(key):
            self.repeated += 1
            return
        self.answers += len(outcome.answers)
        for place, usage in outcome.layer_usage.items():
            self.usage[place] = self.usage.get(place, LayerUsage()) + usage
        self.events.update(event["event"] for event in outcome.events)
        if outcome.problem is None and self.of_drafts:
            drafts = [draft for layer in outcome.layers for draft in layer["drafts"]]
            self.finish_reasons.update(draft["finish_reason"] for draft in drafts)
        elif outcome.problem is None:
            self.finish_reasons.update(outcome.finish_reasons)

    @property
    def prefix_cache(self) -> float | None:
        """The share of the prompts' tokens that the engine had computed before, if it tells."""
        total = self.total
        return total.cached / total.prompt if total.prompt and total.cached is not None else None

    @property
    def total(self) -> LayerUsage:
        """The usage of all layers."""
        return sum(self.usage.values(), LayerUsage())

    def flops(
        self, shape: ModelShape, strategy: str, options: Mapping[str, Any]
    ) -> dict[str, float | None]:
        """Return the FLOPs of the run: `exact` by its tokens, and by `appendix_c`."""
        total = self.total
        exact = formula = None
        if total.computed is not None and total.attended is not None:
            exact = shape.flops(total.computed, total.attended)
        if total.samples and total.prompt is not None and total.completion is not None:
            written = total.completion / total.samples
            context = total.prompt / total.requests + written / 2
            width, layers = options.get("width", 1), options.get("layers", 1)
            one = shape.appendix_c(strategy, width, layers, written, context)
            formula = one and one * self.answers
        return {"exact": exact, "appendix_c": formula}


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where a job's rows go.

    Attributes:
        table: The output file.
        rejects: Rows without answer.
        write_row: From a query and its outcome to the output row; may raise RecordError.
        task_table: A benchmark's own file, if there is one.
        task_row: From a query and its answers to its row.
        on_problem: Told of each query that has no answer.
        of_drafts: Whether drafts are what is made, and not final answers.
    """

    table: TableWriter
    rejects: Rejects
    write_row: Callable[[Query, Outcome], Row]
    task_table: TableWriter | None = None
    task_row: Callable[[Query, list[str]], Row] | None = None
    on_problem: Callable[[Outcome], object] = lambda _: None
    of_drafts: bool = False

    def write(
        self,
        lines: Iterable[Line],
        read: Callable[[Line], Query],
        key_of: Callable[[Query], bytes],
        outcome_of: Callable[[bytes], Outcome | None],
    ) -> Totals:
        """Write every row, in the order of the input.

        Args:
            lines: The input.
            read: Line to query; raises RecordError.
            key_of: Names the outcome of a query.
            outcome_of: How the query of this key ended, None if it has not.
        """
        totals = Totals(of_drafts=self.of_drafts)
        for line in lines:
            totals.read += 1
            try:
                query = read(line)
                key = key_of(query)
                outcome = outcome_of(key)
                if outcome is None:
                    totals.unfinished += 1
                    continue
                totals.count(outcome, key)
                if outcome.problem is not None:
                    self.on_problem(outcome)
                    raise RecordError(outcome.about or "row", outcome.problem)
                row = self.write_row(query, outcome)
            except RecordError as error:
                self.rejects.add(line, error.problem, error.field)
                continue
            _write(self.table, row)
            if self.task_table is not None and self.task_row is not None:
                _write(self.task_table, self.task_row(query, outcome.answers))
        totals.written = self.table.rows
        totals.rejected = self.rejects.count
        totals.rejects = dict(self.rejects.by_field)
        return totals


def _write(table: TableWriter, row: Row) -> None:
    try:
        table.write(row)
    except TypeError:  # an input column of a type that JSON has not; the answer was paid for
        table.write(json.loads(json.dumps(row, default=str)))


def summary(totals: Totals, flops: dict[str, float | None] | None, more: Row) -> Row:
    """Return the summary of a run, for the JSON file beside its output."""
    return {
        "read": totals.read,
        "written": totals.written,
        "rejected": totals.rejected,
        "unfinished": totals.unfinished,
        "repeated": totals.repeated,
        "rejects": {
            name: {"count": count, "first": first}
            for name, (count, first) in totals.rejects.items()
        },
        "total": asdict(totals.total),
        "layers": [
            {"turn": turn, "layer": layer, **asdict(usage)}
            for (turn, layer), usage in sorted(totals.usage.items())
        ],
        "prefix_cache": totals.prefix_cache,
        "flops": flops,
        "finish_reasons": dict(totals.finish_reasons),
        "events": dict(totals.events),
        **more,
    }


def describe(
    totals: Totals, flops: dict[str, float | None] | None, *, measured: bool = True
) -> list[str]:
    """Return the account for a person: a line per layer, and what there is to know.

    Args:
        totals: What to tell.
        flops: Of them, if they are known.
        measured: Whether a model was asked; a dry run cannot know what it would find cached.
    """
    total = totals.total
    if not total.requests:
        return _described_events(totals)
    head = f"{'turn':>5}{'layer':>6}{'requests':>10}{'samples':>9}{'prompt':>12}{'cached':>12}"
    text = [head + f"{'written':>12}   tokens"]
    rows = [
        *((f"{turn:>5}{layer:>6}", usage) for (turn, layer), usage in sorted(totals.usage.items())),
        (f"{'all':>11}", total),
    ]
    for place, usage in rows:
        tokens = "".join(
            f"{'?' if n is None else format(n, ','):>12}"
            for n in (usage.prompt, usage.cached, usage.completion)
        )
        text.append(f"{place}{usage.requests:>10,}{usage.samples:>9,}{tokens}")
    if totals.repeated:
        text.append(f"{totals.repeated:,} rows ask what an earlier one asks, and take nothing more")
    if measured and totals.prefix_cache is not None:
        text.append(f"prefix cache: {totals.prefix_cache:.0%} of the prompts' tokens")
    if flops is not None:
        exact, formula = flops["exact"], flops["appendix_c"]
        shown = [f"{exact:.3g} by the tokens computed"] if exact is not None else []
        shown += [f"{formula:.3g} by the paper's appendix C"] if formula is not None else []
        text += [f"FLOPs: {', '.join(shown)}"] if shown else []
    text += _described_events(totals)
    if cut_off := totals.finish_reasons["length"]:
        what = "drafts" if totals.of_drafts else "final answers"
        text.append(f"warning: max_tokens cut off {cut_off} {what}")
    return text


def _described_events(totals: Totals) -> list[str]:
    events = ", ".join(f"{count} x {name}" for name, count in totals.events.most_common())
    return [f"drafts: {events}"] if events else []


def write_summary(path: Path, content: Row) -> None:
    """Write the summary beside the output."""
    write_whole(path, orjson.dumps(content, option=orjson.OPT_INDENT_2, default=str) + b"\n")
