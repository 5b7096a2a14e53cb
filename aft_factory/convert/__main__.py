"""The command `python -m aft_factory.convert`: parse, call, print."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from tqdm import tqdm

from aft_factory.convert import pipeline
from aft_factory.convert.pipeline import Conversion, ReadRow, Summary
from aft_factory.convert.proposals import read_proposals
from aft_factory.convert.register import check_registration, register
from aft_factory.convert.targets import TARGETS
from aft_factory.convert.ultrafeedback import is_truthful_qa, read_ultrafeedback
from aft_factory.errors import AftError, RecordError, UsageError
from aft_factory.fitting import Fitter, load_tokenizer, resolve_chat_template
from aft_factory.prompts import Aggregation, load_template
from aft_factory.records import Columns, Record
from aft_factory.tables import Line, Rejects, TableWriter, read_rows

SOURCES: dict[str, ReadRow] = {"ultrafeedback": read_ultrafeedback, "proposals": read_proposals}

EXAMPLES = """\
examples:
  # UltraFeedback's own completions as off-policy proposals, from the hub
  python -m aft_factory.convert ultrafeedback openbmb/UltraFeedback --output uf.jsonl

  # a training file for LLaMA-Factory with the plugin, every row fitted to 4096 tokens
  python -m aft_factory.convert proposals drafts.jsonl --output data/my_aft.jsonl \\
      --tokenizer meta-llama/Llama-3.1-8B --cutoff-len 4096 --register data

  # the same for stock LLaMA-Factory, and a look at two conversations
  python -m aft_factory.convert proposals drafts.jsonl --target sharegpt --output data/my_aft.jsonl --preview 2

  # the SFT baseline: query -> best response
  python -m aft_factory.convert ultrafeedback uf.parquet --target sft --output data/my_sft.jsonl
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; flags are named as the options they set."""
    parser = argparse.ArgumentParser(
        prog="python -m aft_factory.convert",
        description="Turn UltraFeedback, sampled proposals or other rows into records and training files.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", choices=SOURCES, help="layout of the input rows")
    add("inputs", nargs="+", metavar="INPUT", help="file (.jsonl, .json, .gz, .zst, .parquet), `datasets` folder or hub name")
    add("--output", type=Path, help="file to write (.jsonl, .json, .gz, .zst, .parquet); optional with --preview")
    add("--target", choices=TARGETS, default="aggregation", help="what to write (default: aggregation)")
    add("--template", default="paper", help="aggregator prompt: paper, moa, release or the path of a .jinja file")
    add("--max-proposals", type=int, metavar="K", help="keep the first K proposals of a row")
    add("--shuffle-proposals", action="store_true", help="shuffle the proposals of each row, by --seed and its id")
    add("--seed", type=int, default=42, help="of the shuffle (default: 42)")
    add("--column", action="append", default=[], metavar="FIELD=NAME", help="read a field from another column, such as proposals=drafts")
    add("--truthfulqa", choices=("keep", "drop"), default="keep", help="rows taken from TruthfulQA (ultrafeedback)")
    add("--split", default="train", help="split of a hub data set or saved DatasetDict (default: train)")
    add("--tokenizer", metavar="DIR_OR_NAME", help="measure rows with this tokenizer instead of estimating")
    add("--cutoff-len", type=int, metavar="N", help="shorten proposals so that every row fits N tokens (needs --tokenizer)")
    add("--chat-template", default="auto", help="to measure with: llama3, mistral, own (the tokenizer's) or a path (default: auto)")
    add("--rejects", type=Path, help="file for rows that could not be used (default: OUTPUT.rejects.jsonl)")
    add("--register", type=Path, metavar="DATASET_DIR", help="add the output to that folder's dataset_info.json")
    add("--name", help="name of the entry (default: the output's name)")
    add("--limit", type=int, metavar="N", help="read only the first N rows")
    add("--preview", type=int, default=0, metavar="N", help="print N rendered conversations")
    add("--overwrite", action="store_true", help="replace an existing output or entry")
    add("--strict", action="store_true", help="exit with 1 if any row was rejected")
    add("--quiet", action="store_true", help="no progress bar")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1 (rejected rows and --strict), 2 (usage)."""
    args = build_parser().parse_args(argv)
    try:
        return run(args)
    except AftError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    return 2


def run(args: argparse.Namespace) -> int:
    """Convert as the arguments say and print the summary."""
    conversion = build_conversion(args)
    output: Path | None = args.output
    if output is None and not args.preview:
        raise UsageError("--output is missing (it is optional only with --preview)")
    if args.register is not None and output is not None:
        name = args.name or output.name.split(".")[0]
        check_registration(args.register, name, output, args.overwrite)
    rejects_path = args.rejects or pipeline.default_rejects(output or Path("preview"))

    previews: list[Record] = []
    with contextlib.ExitStack() as stack:
        rejects = stack.enter_context(Rejects(rejects_path))
        table = stack.enter_context(TableWriter(output, overwrite=args.overwrite)) if output else None
        lines = stack.enter_context(_lines(args))
        summary = conversion.run(
            lines, table, rejects, lambda record: previews.append(record) if len(previews) < args.preview else None
        )
    for record in previews:
        print(pipeline.preview(record, args.target, conversion.options))
    print(describe(summary, conversion, rejects, output))
    if args.register is not None and output is not None:
        register(args.register, name, output, args.target, conversion.options)
        print(f"registered as {name!r} in {args.register / 'dataset_info.json'}")
    return 1 if (args.strict and summary.rejected) or (summary.read and not summary.written) else 0


def build_conversion(args: argparse.Namespace) -> Conversion:
    """Check the options all at once and build what they describe."""
    options = Aggregation(
        template=args.template,
        max_proposals=args.max_proposals,
        shuffle_proposals=args.shuffle_proposals,
        seed=args.seed,
    )
    columns = Columns.from_mapping(dict(_pair(text) for text in args.column))
    if args.cutoff_len is not None and args.cutoff_len < 1:
        raise UsageError(f"--cutoff-len: expected a number from 1, got {args.cutoff_len}")
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
        cutoff=args.cutoff_len or pipeline.DEFAULT_CUTOFF,
    )


def describe(summary: Summary, conversion: Conversion, rejects: Rejects, output: Path | None) -> str:
    """Return the summary for a person: counts that reconcile, what was cut, what is at risk."""
    text = [f"read {summary.read} rows: {summary.written} written{f' to {output}' if output else ''}, {summary.rejected} rejected"]
    if summary.rejected:
        text[0] += f" ({rejects.path})"
        ranked = sorted(rejects.by_field.items(), key=lambda item: -item[1][0])
        text += [f"  {count} x {name}: {first}" for name, (count, first) in ranked[:10]]
    text += [f"  {count} x {note}" for note, count in summary.notes.most_common()]
    fitter, cutoff = conversion.fitter, conversion.cutoff
    if fitter is not None and fitter.limit is not None:
        share = summary.tokens_removed / max(summary.tokens_before, 1)
        text.append(
            f"fitted to {cutoff} tokens: {summary.cut_proposals} proposals shortened in {summary.cut_rows} rows "
            f"({summary.tokens_removed} tokens, {share:.1%} of these rows); no query, instruction or target was cut"
        )
    elif summary.over:
        how = "measured" if fitter else "estimated; --tokenizer measures"
        text.append(
            f"warning: {summary.over / summary.written:.0%} of rows ({summary.over}) are longer than {cutoff} tokens ({how}). "
            f"LLaMA-Factory cuts such rows at cutoff_len{' (its default)' if cutoff == pipeline.DEFAULT_CUTOFF else ''}, "
            "and the query is lost first. Pass --tokenizer and --cutoff-len to fit them."
        )
    return "\n".join(text)


@contextlib.contextmanager
def _lines(args: argparse.Namespace) -> Iterator[Iterator[Line]]:
    """Open all inputs, one after the other, under a progress bar over their bytes."""
    sizes = [path.stat().st_size for path in map(Path, args.inputs) if path.is_file()]
    total = sum(sizes) if len(sizes) == len(args.inputs) and args.limit is None else None
    with tqdm(total=total, unit="B", unit_scale=True, desc="convert", disable=args.quiet or None) as bar:
        tables = [read_rows(name, split=args.split, on_bytes=bar.update) for name in args.inputs]
        yield islice(chain.from_iterable(tables), args.limit)


def _without_truthful_qa(read_row: ReadRow) -> ReadRow:
    def checked(row: object, columns: Columns, notes: pipeline.Counter[str]) -> Record:
        if is_truthful_qa(row):
            raise RecordError("source", "from TruthfulQA (--truthfulqa drop)")
        return read_row(row, columns, notes)

    return checked


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--column {text}: expected FIELD=NAME, such as proposals=drafts")
    return name, value


if __name__ == "__main__":
    sys.exit(main())
