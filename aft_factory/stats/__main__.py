"""The command `python -m aft_factory.stats`: parse, call, print."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import orjson

from aft_factory.convert.arguments import column_names
from aft_factory.errors import UsageError
from aft_factory.prompts.fitting import Fitter
from aft_factory.prompts.rendering import load_template
from aft_factory.prompts.selection import Aggregation
from aft_factory.prompts.tokenizer import load_tokenizer, resolve_chat_template
from aft_factory.records.files import check_writable, write_whole
from aft_factory.records.record import Columns
from aft_factory.records.tables import read_rows
from aft_factory.stage.console import guarded
from aft_factory.stage.progress import progress_bar
from aft_factory.stats.counts import Counts, tokens_dict
from aft_factory.stats.plot import plot_files, write_plot
from aft_factory.stats.report import CHUNK, TokenCounts, describe

EXAMPLES = """\
examples:
  # rows, proposals, estimated lengths, duplicates, scores
  python -m aft_factory.stats data/my_aft.jsonl

  # tokens of the rows as they will be trained on, in 1000 of them
  python -m aft_factory.stats data/my_aft.jsonl --tokenizer meta-llama/Llama-3.1-8B

  # of every row; all numbers as JSON, and lengths.png, lengths.svg and lengths.csv
  python -m aft_factory.stats data/my_aft.jsonl --tokenizer meta-llama/Llama-3.1-8B \\
      --sample 0 --json stats.json --plot lengths.png
"""
SAMPLE = 1000  # rows: some seconds; 95% of shares are then within 3.1 points of all rows'


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        prog="python -m aft_factory.stats",
        description="Tell what is in a file of records.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "input",
        metavar="FILE",
        help="records (.jsonl, .json, .gz, .zst, .parquet, `datasets` folder or hub name)",
    )
    add("--tokenizer", metavar="DIR_OR_NAME", help="count tokens with it instead of estimating")
    add("--template", default="paper", help="aggregator prompt of the rows (default: paper)")
    add(
        "--chat-template",
        default="auto",
        help="of the rows: llama3, mistral, own (the tokenizer's) or a path (default: auto)",
    )
    add(
        "--sample",
        type=int,
        default=SAMPLE,
        metavar="N",
        help=f"count tokens of N rows, drawn by their ids; 0 takes all (default: {SAMPLE})",
    )
    add(
        "--column",
        action="append",
        default=[],
        metavar="FIELD=NAME",
        help="read a field from another column, such as proposals=drafts",
    )
    add("--split", default="train", help="of a hub data set or saved DatasetDict (default: train)")
    add("--limit", type=int, metavar="N", help="read only the first N rows")
    add("--json", type=Path, metavar="OUT", help="write all numbers there")
    add("--plot", type=Path, metavar="OUT.png", help="draw token lengths; also .svg and .csv")
    add("--overwrite", action="store_true", help="replace existing outputs")
    add("--quiet", action="store_true", help="no progress bar")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1 (no usable row), 2 (usage), 130."""
    args = build_parser().parse_args(argv)
    return guarded(lambda: run(args), "interrupted; nothing was written")


def run(args: argparse.Namespace) -> int:
    """Count as the arguments say, print the text and write what was asked for."""
    _check(args)
    tokens = None
    if args.tokenizer is not None:
        tokenizer = load_tokenizer(args.tokenizer)
        chat = resolve_chat_template(args.chat_template, tokenizer)
        fitter = Fitter(tokenizer, chat, None, load_template(args.template))
        tokens = TokenCounts(fitter, Aggregation(template=args.template), args.sample)
    counts = Counts(Columns.from_mapping(column_names(args)), args.template)
    path = Path(args.input)
    total = path.stat().st_size if path.is_file() and args.limit is None else None
    shown = {"total": total, "unit": "B", "unit_scale": True, "desc": "read"}
    with progress_bar(quiet=args.quiet, **shown) as bar:
        lines = read_rows(args.input, split=args.split, on_bytes=bar.update)
        for line in islice(lines, args.limit):
            record = counts.read_line(line)
            if tokens is not None and record is not None:
                tokens.add(record)
    numbers = {"file": args.input, **counts.to_dict()}
    lengths = counts.tokens
    if tokens is not None:
        shown = {"unit": f" x {CHUNK} rows", "desc": "tokens"}
        for chunk in progress_bar(tokens.rest(), quiet=args.quiet, **shown):
            tokens.measure(chunk)
        lengths = tokens.lengths
        how = "all" if tokens.rows == counts.usable else f"{tokens.rows} of {counts.usable}"
        numbers["tokens"] = tokens_dict(lengths, f"counted in {how} rows by {args.tokenizer}")
        numbers["tokens"] |= {"refused": len(tokens.refused), "first_refusal": tokens.refused[:1]}
    if args.json is not None:
        write_whole(args.json, orjson.dumps(numbers, option=orjson.OPT_INDENT_2) + b"\n")
    if args.plot is not None:
        write_plot(args.plot, lengths.parts, numbers["tokens"]["how"])
    print(describe(numbers), flush=True)
    return 0 if counts.usable else 1


def _check(args: argparse.Namespace) -> None:
    """Refuse what cannot be meant, before any work."""
    for flag, value, least in (("--limit", args.limit, 1), ("--sample", args.sample, 0)):
        if value is not None and not least <= value <= sys.maxsize:
            raise UsageError(f"{flag}: expected a number from {least}, got {value}")
    outputs = [] if args.json is None else [args.json]
    if args.plot is not None:
        outputs += plot_files(args.plot)
    for path in outputs:
        if os.path.realpath(path) == os.path.realpath(args.input):
            raise UsageError(f"{path} is the input; name another file")
        check_writable(path, overwrite=args.overwrite)
    if len({os.path.realpath(path) for path in outputs}) < len(outputs):
        raise UsageError("--json and --plot would write one file; name another")


if __name__ == "__main__":
    sys.exit(main())
