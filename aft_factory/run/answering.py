"""STAGE 5, `python -m aft_factory.run`: a data set through propose-and-aggregate.

Reads queries; writes one row per query in the input's order, what could not be answered to a
rejects file, and a summary. Everything answered is in the journal at once: a run can be killed at
any moment, and the same command goes on where it was.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from aft_factory.errors import RecordError, UsageError
from aft_factory.inference.outcome import Outcome
from aft_factory.inference.queries import (
    NOT_USED,
    Query,
    drawing,
    read_record,
    read_with_proposals,
    starting,
)
from aft_factory.inference.scoring import Longest
from aft_factory.inference.strategies import STRATEGIES
from aft_factory.inference.strategy import Strategy
from aft_factory.inference.tasks import TASKS, read_as
from aft_factory.records.record import Row
from aft_factory.records.table_writer import TableWriter
from aft_factory.records.tables import Line
from aft_factory.run.decoding import decoded, decoding_told, used
from aft_factory.run.settings import RunSettings
from aft_factory.stage.engines import (
    OpenEngines,
    Proposer,
    dry_run_engines,
    dry_run_note,
    open_engines,
)
from aft_factory.stage.rehearsing import filler
from aft_factory.stage.reward import with_scores
from aft_factory.stage.stage import Stage

_log = logging.getLogger(__name__)


def build_stage(settings: RunSettings, name: str, first: Any = None) -> Stage:
    """Return what a run does with a row of a task, of which this is the first."""
    task = TASKS[name]
    if problems := settings.output_problems(name, first):
        raise UsageError(*problems)
    for told in decoding_told(settings, name):
        _log.warning("%s", told)
    strategy = STRATEGIES[settings.strategy]
    longest = Longest() if "score" in strategy.needs else None
    pretended = dry_run_engines(settings, proposers_of(settings), longest and longest.score_each)
    if longest is not None:
        pretended = replace(pretended, count=longest.count, reward_shape=settings.reward_shape)
    generator = settings.generator or settings.model or "aft"
    write = task.write_row
    read = reading(settings, name)
    _tell_of_proposals(first, read, strategy)
    return Stage(
        read_row=read,
        strategy=strategy,
        options=settings.options(),
        drafting=settings.drafting,
        write_row=lambda query, outcome: output_row(query, outcome, settings, task.taken),
        keep_drafts=settings.keep_drafts,
        use_proposals=settings.use_proposals,
        open=lambda: open_run(settings, proposers_of(settings), strategy.needs),
        dry_run=pretended,
        dry_run_note=dry_run_note(settings),
        task_row=write and (lambda query, answers: write(query, answers, generator)),
        unread=task.unread,
        is_right=task.is_right,
        columns=task.known_columns,
        used=used(settings, name),
        following=lambda output: ("aft", "run", "--inspect", output),
    )


def _without(columns: Collection[str], read_row: Callable[[Row], Query], row: Any) -> Query:
    """Read a row without some of its columns; they are in the output nevertheless."""
    if not isinstance(row, dict):
        return read_row(row)
    return replace(read_row({k: row[k] for k in row if k not in columns}), row=row)


def reading(settings: RunSettings, name: str) -> Callable[[Any], Query]:
    """Return how a row of a task becomes a query, decoded as the task says.

    Raises:
        UsageError: If the task's rows are not what the settings want.
    """
    task, strategy = TASKS[name], STRATEGIES[settings.strategy]

    def as_task(read: Callable[[Any], Query]) -> Callable[[Any], Query]:
        return lambda row: decoded(read(row), settings, task)

    if name != "records":
        if settings.use_proposals:
            raise UsageError(
                f"use_proposals: the layout of {name} is known; --task records takes it"
            )
        if set(settings.column) - {"ignore"}:
            raise UsageError(
                f"column: the layout of {name} is known, it takes only ignore=NAME; "
                "--task records takes all"
            )
        ignored = settings.column.get("ignore", "").split(",")
        read = partial(_without, ignored, partial(read_as, name))
        return as_task(lambda row: drawing(read(row)))
    columns = settings.columns()
    if settings.use_proposals and strategy.first is not None:
        most = strategy.first(**settings.options())
        return as_task(lambda row: starting(read_with_proposals(row, columns), most))
    return as_task(lambda row: drawing(read_record(row, columns)))


def _tell_of_proposals(row: Any, read: Callable[[Any], Query], strategy: Strategy) -> None:
    """Tell of proposals that are not used before anything is paid for."""
    with contextlib.suppress(RecordError):
        if any(event["event"] == NOT_USED for event in read(row).events):
            able = "; --use-proposals starts from them" if strategy.first is not None else ""
            _log.warning("the first row brings proposals, and drafts are drawn anew%s", able)


def proposers_of(settings: RunSettings) -> dict[str, Proposer]:
    """Return the models that draft beside the run's own."""
    urls, keys = settings.proposer_urls, settings.proposer_key_env
    return {
        name: Proposer(
            [str(urls[name])] if name in urls else [],
            keys.get(name),
            settings.proposer_tokenizer(name),
        )
        for name in settings.proposers
    }


@contextlib.asynccontextmanager
async def open_run(
    settings: RunSettings, proposers: Mapping[str, Proposer], needs: Collection[str]
) -> AsyncIterator[OpenEngines]:
    """Open what a run asks, and close it in the end.

    Args:
        settings: Name it.
        proposers: Further models, by name.
        needs: What its strategies need; see `Strategy.needs`.
    """
    async with contextlib.AsyncExitStack() as stack:
        engines = await stack.enter_async_context(
            open_engines(
                settings, settings.template, proposers, aggregates=drafts_read(settings) > 0
            )
        )
        warn_of_room(settings, engines.engines[""].context, fitted="" in engines.fitters)
        if "score" in needs:
            scoring = with_scores(
                engines, settings, settings.timeout, settings.retries, settings.ray
            )
            engines = await stack.enter_async_context(scoring)
        yield engines


def drafts_read(settings: RunSettings) -> int:
    """Return the most drafts that an aggregation reads; 0 where there is none."""
    return STRATEGIES[settings.strategy].reads(**settings.options())


def warn_of_room(settings: RunSettings, context: int | None, *, fitted: bool = True) -> None:
    """Warn where drafts as long as they may be do not fit the context beside an answer."""
    read = drafts_read(settings)
    longest = max(sampling.max_tokens for sampling in (settings.proposal(), settings.middle()))
    need = read * longest + settings.final().max_tokens
    if context is not None and read and need > context:
        _log.warning(
            "%d drafts of up to %d tokens and an answer of %d do not fit the context of %d: %s; "
            "--max-tokens and --width make room",
            *(read, longest, settings.final().max_tokens, context),
            "long drafts will be shortened" if fitted else "--tokenizer shortens long drafts",
        )


def rehearse(settings: RunSettings, lines: Iterator[Line], table: TableWriter) -> str:
    """Write the rows that it would leave."""
    for line in lines:
        if isinstance(line.value, dict):
            table.write(line.value | {"response": filler(settings)})
    return ""


def output_row(
    query: Query, outcome: Outcome, settings: RunSettings, taken: Collection[str] = ()
) -> Row:
    """Return a row: the input's columns, the response, and how it came about.

    Args:
        query: What was asked.
        outcome: How it ended.
        settings: Of the run.
        taken: Names that the input's columns are not to have here.
    """
    own: Row = {"response": outcome.answers[-1]}
    if len(query.turns) > 1:
        own["responses"] = outcome.answers
    own["finish_reasons"] = outcome.finish_reasons
    if any(outcome.details):
        own["details"] = outcome.details
    own |= {"seed": settings.seed, "usage": outcome.usage, "events": outcome.events}
    if settings.keep_drafts:
        own["layers"] = outcome.layers
    columns: Row = {}
    for name, value in query.row.items():
        if name == "id" and (value in (None, "") or str(value) == query.id):
            continue
        while name in own or name == "id" or name in columns or name in taken:
            name = f"input_{name}"
        columns[name] = value
    return {"id": query.id, **columns, **own}
