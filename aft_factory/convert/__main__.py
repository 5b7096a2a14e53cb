"""The command `python -m aft_factory.convert`: parse, call, print."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from tqdm import tqdm

from aft_factory.convert import converting
from aft_factory.convert.arguments import (
    SOURCES,
    build_parser,
    check_arguments,
    column_names,
    rejects_path,
)
from aft_factory.convert.converting import Conversion, ReadRow, Summary
from aft_factory.convert.register import check_registration, dataset_entry, register
from aft_factory.convert.ultrafeedback import is_truthful_qa
from aft_factory.errors import RecordError
from aft_factory.prompts.fitting import Fitter
from aft_factory.prompts.rendering import load_template
from aft_factory.prompts.selection import Aggregation
from aft_factory.prompts.tokenizer import load_tokenizer, resolve_chat_template
from aft_factory.records.record import Columns, Record
from aft_factory.records.rejects import Rejects
from aft_factory.records.tables import Line, TableWriter, read_rows
from aft_factory.stage.console import guarded


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1 (rejected rows and --strict), 2 (usage)."""
    args = build_parser().parse_args(argv)
    return guarded(lambda: run(args), "interrupted; nothing was written")


def run(args: argparse.Namespace) -> int:
    """Convert as the arguments say and print the summary."""
    check_arguments(args)
    conversion = build_conversion(args)
    output: Path | None = args.output
    register_as, entry = "", {}
    if args.register is not None and output is not None:
        register_as = output.stem if args.name is None else args.name
        entry = dataset_entry(args.register, output, args.target, conversion.options)
        check_registration(args.register, register_as, output, args.overwrite, entry)

    previews: list[str] = []

    def keep_preview(record: Record) -> None:
        if len(previews) < args.preview:
            previews.append(
                converting.preview(record, args.target, conversion.options, conversion.markers)
            )

    # The output appears last: where it is, all is there, and where it is not, the same command is
    # given once more.
    with contextlib.ExitStack() as until, contextlib.ExitStack() as stack:
        table = None
        if output is not None:
            table = stack.enter_context(TableWriter(output, overwrite=args.overwrite))
        replace_rejects = args.overwrite or args.rejects is None
        rejects = stack.enter_context(
            Rejects(rejects_path(args), overwrite=replace_rejects, until=until)
        )
        lines = stack.enter_context(_lines(args))
        summary = conversion.run(lines, table, rejects, keep_preview)
        if output is not None and entry and summary.written:
            register(args.register, register_as, output, entry)
    text = [*previews, describe(summary, conversion, rejects, output)]
    if entry and summary.written:
        text.append(f"registered as {register_as!r} in {args.register / 'dataset_info.json'}")
    _show("\n".join(text))
    return 1 if (args.strict and summary.rejected) or (summary.read and not summary.written) else 0


def build_conversion(args: argparse.Namespace) -> Conversion:
    """Check the options all at once and build what they describe."""
    options = Aggregation(
        template=args.template,
        max_proposals=args.max_proposals,
        shuffle_proposals=args.shuffle_proposals,
        seed=args.seed,
        ablation="without_proposals" if args.without_proposals else "none",
        min_proposals=args.min_proposals,
        mix_plain=args.mix_plain,
    )
    columns = Columns.from_mapping(column_names(args))
    fitter = None
    if args.tokenizer is not None:
        tokenizer = load_tokenizer(args.tokenizer)
        chat = resolve_chat_template(args.chat_template, tokenizer)
        fitter = Fitter(tokenizer, chat, args.cutoff_len, load_template(args.template))
    read_row = SOURCES[args.source]
    return Conversion(
        read_row=_without_truthful_qa(read_row) if args.truthfulqa == "drop" else read_row,
        target=args.target,
        options=options,
        columns=columns,
        fitter=fitter,
        cutoff=args.cutoff_len or converting.DEFAULT_CUTOFF,
    )


def describe(
    summary: Summary, conversion: Conversion, rejects: Rejects, output: Path | None
) -> str:
    """Return the summary for a person: counts that reconcile, what was cut, what is at risk."""
    place = f" to {output}" if output else ""
    counts = f"{summary.written} written{place}, {summary.rejected} rejected"
    text = [f"read {summary.read} rows: {counts}"]
    if summary.plain:
        text.append(f"  {summary.plain} rows written once more without proposals (--mix-plain)")
    if summary.rejected:
        text[0] += f" ({rejects.path})" if rejects.path else ""
        ranked = sorted(rejects.by_field.items(), key=lambda item: -item[1][0])
        text += [f"  {count} x {name}: {first}" for name, (count, first) in ranked[:10]]
    text += [f"  {count} x {note}" for note, count in summary.notes.most_common()]
    if summary.with_history and conversion.target != "aggregation":
        text.append(
            f"warning: {summary.with_history} rows hold earlier answers. Set mask_history: true in "
            "the training's settings, or stock LLaMA-Factory trains on these answers as well"
        )
    fitter, cutoff = conversion.fitter, conversion.cutoff
    if fitter is not None and fitter.limit is not None:
        share = summary.tokens_removed / max(summary.tokens_before, 1)
        text.append(
            f"fitted to {cutoff} tokens: {summary.cut_proposals} proposals shortened in "
            f"{summary.cut_rows} rows ({summary.tokens_removed} tokens, {share:.1%} of these "
            "rows); no query, instruction or target was cut"
        )
    elif summary.over:
        share = summary.over / summary.written
        how = "measured" if fitter else "estimated; --tokenizer measures"
        default = " (its default)" if cutoff == converting.DEFAULT_CUTOFF else ""
        text.append(
            f"warning: {share:.1%} of rows ({summary.over}) are longer than {cutoff} tokens "
            f"({how}). "
            f"LLaMA-Factory cuts such rows at cutoff_len{default}, and the query is lost first. "
            "Pass --tokenizer and --cutoff-len to fit them."
        )
    return "\n".join(text)


@contextlib.contextmanager
def _lines(args: argparse.Namespace) -> Iterator[Iterator[Line]]:
    """Open all inputs, one after the other, under a progress bar over their bytes."""
    sizes = [path.stat().st_size for path in map(Path, args.inputs) if path.is_file()]
    total = sum(sizes) if len(sizes) == len(args.inputs) and args.limit is None else None
    with tqdm(
        total=total, unit="B", unit_scale=True, desc="convert", disable=args.quiet or None
    ) as bar:
        tables = [read_rows(name, split=args.split, on_bytes=bar.update) for name in args.inputs]
        yield islice(chain.from_iterable(tables), args.limit)


def _show(text: str) -> None:
    try:
        print(text, flush=True)
    except OSError as error:
        # Nothing more can be printed, and Python would try once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # such as `| head`, which has seen enough
            raise


def _without_truthful_qa(read_row: ReadRow) -> ReadRow:
    def checked(row: object, columns: Columns, notes: Counter[str]) -> Record:
        if is_truthful_qa(row):
            raise RecordError("source", "from TruthfulQA (--truthfulqa drop)")
        return read_row(row, columns, notes)

    return checked


if __name__ == "__main__":
    sys.exit(main())
