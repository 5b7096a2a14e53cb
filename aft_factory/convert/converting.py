"""The way of a row: read, made a record, selected, fitted, written; or rejected with its reason.

Every row read is written or rejected: `Summary.read == Summary.written + Summary.rejected`. With
`mix_plain`, `Summary.plain` of the written ones are written once more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

from aft_factory.convert.settings import ConvertSettings
from aft_factory.convert.sources import SOURCES, ReadRow, left_thoughts, without_truthful_qa
from aft_factory.convert.targets import TARGETS, aggregation_target
from aft_factory.errors import RecordError
from aft_factory.prompts.estimating import estimated_row
from aft_factory.prompts.fitting import Conversation, Fitter
from aft_factory.prompts.markers import Markers, known_markers
from aft_factory.prompts.selection import (
    PAPER,
    PLAIN,
    Aggregation,
    is_plain,
    plain,
    refuse_copy,
    select,
    selected_conversation,
    whole_target,
)
from aft_factory.prompts.shortening import DoesNotFit
from aft_factory.prompts.tokenizer import resolve_chat_template
from aft_factory.records import exact_json
from aft_factory.records.columns import Columns
from aft_factory.records.fields import OBJECT, names_of
from aft_factory.records.record import Record, Row, note_beside, required_aggregation
from aft_factory.records.rejects import Rejects
from aft_factory.records.repeats import Repeats, said
from aft_factory.records.table_writer import TableWriter
from aft_factory.records.tables import Line

DEFAULT_CUTOFF = 2048  # LLaMA-Factory's own default of cutoff_len
FIT_CHUNK = 128  # rows tokenized as one parallel batch


@dataclass(slots=True)
class Summary:
    """What a conversion did, in numbers that reconcile.

    Attributes:
        read: Rows read; `written + rejected`.
        plain: Rows written once more without proposals (`mix_plain`).
        bare: Those of `written` that have no proposals.
        untrainable: Those of `written` that have no aggregation yet.
        columns: Of the first row that is read.
        unread: Whether a row has a column that no field of a record was read from.
        with_history: Those of `written` that hold earlier answers.
        over: Those of `written` that are longer than the cutoff (estimated without a tokenizer).
        cut_rows: Rows with proposals shortened; `tokens_removed` of `tokens_before` in these rows.
        notes: What sources repaired or left out.
        beside: Columns of rows that were read as no part of a record.
    """

    read: int = 0
    written: int = 0
    plain: int = 0
    bare: int = 0
    untrainable: int = 0
    columns: str = ""
    unread: bool = False
    rejected: int = 0
    with_history: int = 0
    over: int = 0
    cut_rows: int = 0
    cut_proposals: int = 0
    tokens_before: int = 0
    tokens_removed: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    beside: set[str] = field(default_factory=set)

    @property
    def is_empty(self) -> bool:
        """Whether there were rows, and none is written."""
        return bool(self.read and not self.written)

    @property
    def told_untrainable(self) -> str:
        """Say what is missing for a training."""
        return f"{self.untrainable} rows without aggregation, not trainable yet"


@dataclass(frozen=True, slots=True)
class Conversion:
    """What to convert rows to.

    Attributes:
        read_row: The source: from a row to a record.
        target: A key of `targets.TARGETS`.
        options: Which proposals, and under which aggregator prompt.
        columns: Column names that differ from the usual ones.
        fitter: Measures rows, and fits them if it has a limit; None estimates.
        cutoff: The length that rows are compared with.
        registered: Whether the rows will be trained on as they are: then each must be one that can.
    """

    read_row: ReadRow
    target: str
    options: Aggregation = PAPER
    columns: Columns = Columns()  # noqa: RUF009 - frozen
    fitter: Fitter | None = None
    cutoff: int = DEFAULT_CUTOFF
    registered: bool = False

    @property
    def target_text(self) -> Callable[[Record], str | None]:
        """Return what gives the text to train on; it may refuse a record that has none."""
        text = TARGETS[self.target][0]
        return required_aggregation if self.registered and text is aggregation_target else text

    @property
    def markers(self) -> Markers:
        """What is broken in texts: the tokenizer's own control tokens, where it is known."""
        return known_markers() if self.fitter is None else self.fitter.markers

    def run(
        self,
        lines: Iterable[Line],
        table: TableWriter | None,
        rejects: Rejects,
        on_record: Callable[[Record], object] = lambda _: None,
    ) -> Summary:
        """Convert every line; without a table, only go through the motions."""
        summary, queries = Summary(), Repeats()
        rows = self._fitted(self._records(lines, rejects, summary), rejects, summary)
        to_row = TARGETS[self.target][1]

        def write(record: Record) -> None:
            row = to_row(record, self.options, self.markers)
            exact_json.dump(row) if table is None else table.write(row)
            on_record(record)

        for line, record, tokens in rows:
            try:
                write(record)
            except RecordError as error:
                rejects.add(line, error.problem, error.field)
                continue
            except TypeError as error:  # JSON has no form for it: a lone surrogate, a huge integer
                rejects.add(line, f"cannot be written: {error}", "row")
                continue
            summary.written += 1
            queries.add(said(record.messages))
            summary.bare += not record.proposals
            summary.unread = summary.unread or bool(record.meta)
            summary.untrainable += not (record.aggregation or "").strip()
            summary.with_history += len(record.messages) > 2
            summary.over += (self._estimate(record) if tokens is None else tokens) > self.cutoff
            # Only part of the row just written, so that it can be written too, and fits too.
            if record.proposals and self.target != "sft" and is_plain(record, self.options):
                write(replace(plain(record), id=record.id + PLAIN))
                summary.plain += 1
        summary.rejected = rejects.count
        if queries.count:
            summary.notes["queries that an earlier row has"] = queries.count
        return summary

    def _records(
        self, lines: Iterable[Line], rejects: Rejects, summary: Summary
    ) -> Iterator[tuple[Line, Record]]:
        for line in lines:
            summary.read += 1
            if line.problem is not None:
                rejects.add(line, line.problem)
                continue
            if not summary.columns and isinstance(line.value, OBJECT):
                summary.columns = names_of(line.value)
            try:
                record = self.read_row(line.value, self.columns, summary.notes)
                summary.notes.update(
                    f"answers taken without their {name}" for name in left_thoughts(line.value)
                )
                if record.meta:
                    note_beside(record, line.value, summary.beside, self.columns)
                self.target_text(record)
                if self.target == "sft" or self.options.ablation != "none":
                    refuse_copy(record)
                record = select(record, self.options)
                if self.registered:  # a template may fail for the proposals of a row
                    selected_conversation(record, self.options, self.markers)
            except RecordError as error:
                rejects.add(line, error.problem, error.field)
            except TypeError as error:
                rejects.add(line, f"cannot be read: {error}", "row")
            except Exception as error:  # the program's own; its traceback ends with the row
                error.add_note(f"{line.place}: at this row, whose faults are told by RecordError")
                raise
            else:
                yield line, record

    def _fitted(
        self, rows: Iterator[tuple[Line, Record]], rejects: Rejects, summary: Summary
    ) -> Iterator[tuple[Line, Record, int | None]]:
        if self.fitter is None:
            for line, record in rows:
                yield line, record, None
            return
        while chunk := list(islice(rows, FIT_CHUNK)):
            inputs = [self._conversation(record) for _, record in chunk]
            for (line, record), fitted in zip(chunk, self.fitter.fit_all(inputs), strict=True):
                if isinstance(fitted, DoesNotFit):
                    rejects.add(line, str(fitted), fitted.field)
                    continue
                if fitted.cut:
                    summary.cut_rows += 1
                    summary.cut_proposals += fitted.cut
                    summary.tokens_before += fitted.tokens + fitted.tokens_removed
                    summary.tokens_removed += fitted.tokens_removed
                    shorter = [self.markers.restore(text) for text in fitted.proposals]
                    record = replace(record, proposals=shorter)
                yield line, record, fitted.tokens

    def _estimate(self, record: Record) -> int:
        try:
            return estimated_row(*self._conversation(record), self.options.loaded)
        except RecordError:  # the template fails for its proposals: it will not be trained on
            return 0

    def _conversation(self, record: Record) -> Conversation:
        """Return the messages, proposals and target of a row, as they will be trained on."""
        if self.target == "sft":
            return record.messages, [], self.target_text(record)
        return record.messages, record.proposals, whole_target(record)


def build_conversion(settings: ConvertSettings) -> Conversion:
    """Build what the settings describe; load the tokenizer, if one is named."""
    fitter, options = None, settings.options()
    if settings.tokenizer is not None:
        tokenizer = settings.loaded(settings.tokenizer)
        chat = resolve_chat_template(settings.chat_template, tokenizer)
        fitter = Fitter(tokenizer, chat, settings.cutoff_len, options.loaded)
    read_row = SOURCES[settings.source]
    return Conversion(
        read_row=without_truthful_qa(read_row) if settings.truthfulqa == "drop" else read_row,
        target=settings.target,
        options=options,
        columns=settings.columns(),
        fitter=fitter,
        cutoff=settings.cutoff_len or DEFAULT_CUTOFF,
        registered=settings.register is not None,
    )


def rehearse(settings: ConvertSettings, lines: Iterator[Line], table: TableWriter) -> str:
    """Convert; but nothing is shortened, as that takes a tokenizer; tell what cannot be used."""
    conversion = build_conversion(replace(settings, tokenizer=None, cutoff_len=None))
    rejects = Rejects(None)
    done = conversion.run(lines, table, rejects)
    told = [rejects.unusable(done.read)]
    if settings.target == "aggregation" and done.untrainable:
        told.append(done.told_untrainable)
    return "\n".join(told)


def preview(record: Record, target: str, options: Aggregation, markers: Markers) -> str:
    """Return one rendered conversation for a person to read, or why there is none."""
    if not (record.aggregation or "").strip():
        record = replace(record, aggregation="(no aggregation yet)")
    try:
        row: Row = TARGETS["sft" if target == "sft" else "sharegpt"][1](record, options, markers)
    except RecordError as error:  # the row itself was written without its prompt
        return f"{'=' * 30} {record.id}\n(cannot be rendered: {error})\n"
    turns = [f"[{turn['from']}]\n{turn['value']}" for turn in row["conversations"]]
    return f"{'=' * 30} {record.id}\n" + "\n\n".join(turns) + "\n"
