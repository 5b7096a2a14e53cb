"""The way of a row: read, made a record, selected, fitted, written; or rejected with its reason.

Rows and rejects stand in the order of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from aft_factory.convert.settings import ConvertSettings
from aft_factory.convert.sources import SOURCES, ReadRow, without_truthful_qa
from aft_factory.convert.summary import Summary
from aft_factory.convert.targets import TARGETS, aggregation_target
from aft_factory.errors import RecordError
from aft_factory.prompts.estimating import estimated_row
from aft_factory.prompts.fitting import Conversation, Fitter
from aft_factory.prompts.markers import Markers, known_markers
from aft_factory.prompts.prelude import chat_templates
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
from aft_factory.prompts.tokenizer import known_vocabulary, resolve_chat_template
from aft_factory.records import exact_json
from aft_factory.records.columns import Columns
from aft_factory.records.fields import OBJECT, names_of
from aft_factory.records.record import Record, note_beside, required_aggregation
from aft_factory.records.rejects import Rejects
from aft_factory.records.repeats import said
from aft_factory.records.table_writer import TableWriter
from aft_factory.records.tables import Line

DEFAULT_CUTOFF = 2048  # LLaMA-Factory's own default of cutoff_len
FIT_CHUNK = 128  # rows tokenized as one parallel batch

Found = Record | tuple[str, str | None]  # or why a row is none, and in which field


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

    def chat(self, asked: str) -> str | None:
        """Return the chat template to train with; None where the tokenizer's is none of ours."""
        if asked in chat_templates():
            return asked
        return "llama3" if self.fitter is None else known_vocabulary(self.fitter.tokenizer)

    def run(
        self,
        lines: Iterable[Line],
        table: TableWriter | None,
        rejects: Rejects,
        on_record: Callable[[Record], object] = lambda _: None,
    ) -> Summary:
        """Convert every line; without a table, only go through the motions."""
        summary, to_row = Summary(), TARGETS[self.target][1]

        def write(record: Record) -> None:
            row = to_row(record, self.options, self.markers)
            exact_json.dump(row) if table is None else table.write(row)
            on_record(record)
            summary.rows[-1] += 1

        for line, record, tokens in self._fitted(self._records(lines, summary), summary):
            summary.rows.append(0)
            if not isinstance(record, Record):
                rejects.add(line, *record)
                continue
            try:
                write(record)
            except RecordError as error:
                rejects.add(line, error.problem, error.field)
                continue
            except TypeError as error:  # JSON has no form for it: a lone surrogate, a huge integer
                rejects.add(line, f"cannot be written: {error}", "row")
                continue
            summary.queries.add(*said(record.messages))
            summary.bare += not record.proposals
            summary.unread = summary.unread or bool(record.meta)
            summary.untrainable += not (record.aggregation or "").strip()
            summary.with_history += len(record.messages) > 2
            summary.over += (self._estimate(record) if tokens is None else tokens) > self.cutoff
            # Only part of the row just written, so that it can be written too, and fits too.
            if record.proposals and self.target != "sft" and is_plain(record, self.options):
                write(replace(plain(record), id=record.id + PLAIN))
        return summary

    def _records(self, lines: Iterable[Line], summary: Summary) -> Iterator[tuple[Line, Found]]:
        for number, line in enumerate(lines):
            if line.problem is not None:
                yield line, (line.problem, None)
                continue
            if not summary.columns[1] and isinstance(line.value, OBJECT):
                summary.columns = (number, names_of(line.value))
            try:
                record = self.read_row(line.value, self.columns, summary.notes)
                note_beside(record, line.value, summary.beside, self.columns)
                self.target_text(record)
                if self.target == "sft" or self.options.ablation != "none":
                    refuse_copy(record)
                record = select(record, self.options)
                if self.registered:  # a template may fail for the proposals of a row
                    selected_conversation(record, self.options, self.markers)
            except RecordError as error:
                yield line, (error.problem, error.field)
            except TypeError as error:
                yield line, (f"cannot be read: {error}", "row")
            except Exception as error:  # the program's own; its traceback ends with the row
                error.add_note(f"{line.place}: at this row, whose faults are told by RecordError")
                raise
            else:
                yield line, record

    def _fitted(
        self, rows: Iterator[tuple[Line, Found]], summary: Summary
    ) -> Iterator[tuple[Line, Found, int | None]]:
        if self.fitter is None:
            for line, found in rows:
                yield line, found, None
            return
        while chunk := list(islice(rows, FIT_CHUNK)):
            inputs = [self._conversation(one) for _, one in chunk if isinstance(one, Record)]
            all_fitted = iter(self.fitter.fit_all(inputs))
            for line, found in chunk:
                if not isinstance(found, Record):
                    yield line, found, None
                    continue
                fitted = next(all_fitted)
                if isinstance(fitted, DoesNotFit):
                    yield line, (str(fitted), fitted.field), None
                    continue
                if fitted.cut:
                    summary.cut_rows += 1
                    summary.cut_proposals += fitted.cut
                    summary.tokens_before += fitted.tokens + fitted.tokens_removed
                    summary.tokens_removed += fitted.tokens_removed
                    shorter = [self.markers.restore(text) for text in fitted.proposals]
                    found = replace(found, proposals=shorter)
                yield line, found, fitted.tokens

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


def preview(record: Record, conversion: Conversion) -> str:
    """Return one rendered conversation for a person to read, or why there is none."""
    if not (record.aggregation or "").strip():
        record = replace(record, aggregation="(no aggregation yet)")
    try:
        to_row = TARGETS["sft" if conversion.target == "sft" else "sharegpt"][1]
        row = to_row(record, conversion.options, conversion.markers)
    except RecordError as error:  # the row itself was written without its prompt
        return f"{'=' * 30} {record.id}\n(cannot be rendered: {error})\n"
    turns = [f"[{turn['from']}]\n{turn['value']}" for turn in row["conversations"]]
    return f"{'=' * 30} {record.id}\n" + "\n\n".join(turns) + "\n"
