"""What is in a record file, `python -m aft_factory.stats`: rows, lengths, duplicates, scores.

Reads any table whose rows are records; prints a text, and writes all numbers as JSON and a
histogram of lengths if asked. Counts tokens with a tokenizer or estimates them from bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
from tqdm import tqdm

from aft_factory.console import guarded
from aft_factory.convert.arguments import column_names
from aft_factory.counts import LIMITS, PARTS, Counts, Lengths, tokens_dict
from aft_factory.errors import UsageError
from aft_factory.fields import short
from aft_factory.files import check_writable, write_whole
from aft_factory.fitting import Fitter
from aft_factory.prompts import load_template
from aft_factory.records import Columns, Record
from aft_factory.selection import Aggregation, select
from aft_factory.shortening import DoesNotFit
from aft_factory.stats_plot import plot_files, write_plot
from aft_factory.tables import read_rows
from aft_factory.tokenizer import load_tokenizer, resolve_chat_template

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
CHUNK = 128  # rows tokenized as one parallel batch
SAMPLE = 1000  # rows: some seconds; 95% of shares are then within 3.1 points of all rows'
MOST_SHOWN = 10
HEADS = ("min", "p5", "p25", "p50", "p75", "p95", "p99", "max", "mean")


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
    hidden = args.quiet or None
    with tqdm(total=total, unit="B", unit_scale=True, desc="read", disable=hidden) as bar:
        lines = read_rows(args.input, split=args.split, on_bytes=bar.update)
        for line in islice(lines, args.limit):
            record = counts.read_line(line)
            if tokens is not None and record is not None:
                tokens.add(record)
    numbers = {"file": args.input, **counts.to_dict()}
    lengths = counts.tokens
    if tokens is not None:
        for chunk in tqdm(tokens.rest(), unit=f" x {CHUNK} rows", desc="tokens", disable=hidden):
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


class TokenCounts:
    """Lengths in tokens of a sample of records, or of all.

    Args:
        fitter: Counts the tokens of whole training rows.
        options: How the rows are made.
        sample: How many records; 0 for all. Those whose ids have the smallest hashes are taken, so
            that the same file gives the same sample in any order.

    Attributes:
        rows: How many were measured.
        lengths: Of their parts, and of whole training rows.
        refused: Why the chat template refuses a row, of each that it does.
    """

    def __init__(self, fitter: Fitter, options: Aggregation, sample: int) -> None:
        self.rows = 0
        self.refused: list[str] = []
        self.lengths = Lengths(*PARTS, "row")
        self._fitter, self._options, self._sample = fitter, options, sample
        self._kept: list[tuple[int, int, Record]] = []  # a heap, the largest hash first
        self._number = 0

    def add(self, record: Record) -> None:
        """Take a record into the sample or leave it; without a limit, count its tokens soon."""
        self._number += 1
        if not self._sample:
            self._kept.append((0, self._number, record))
            if len(self._kept) == CHUNK:
                self.measure([kept[2] for kept in self._kept])
                self._kept = []
            return
        digest = hashlib.blake2b(record.id.encode("utf-8", "replace"), digest_size=8).digest()
        key = -int.from_bytes(digest)
        if len(self._kept) < self._sample:
            heapq.heappush(self._kept, (key, self._number, replace(record, meta={})))
        elif key > self._kept[0][0]:
            heapq.heapreplace(self._kept, (key, self._number, replace(record, meta={})))

    def rest(self) -> list[list[Record]]:
        """Return the records still to measure, in chunks and in the order of the file."""
        records = [kept[2] for kept in sorted(self._kept, key=lambda kept: kept[1])]
        return [records[i : i + CHUNK] for i in range(0, len(records), CHUNK)]

    def measure(self, records: Sequence[Record]) -> None:
        """Count the tokens of records."""
        markers = self._fitter.markers
        texts: list[tuple[str, str]] = []  # which part, the text
        rows = []
        for record in (select(record, self._options) for record in records):
            proposals = [markers.sanitise(text) for text in record.proposals]
            texts.append(("query", record.messages[-1]["content"]))
            texts.extend(("proposal", text) for text in proposals)
            if record.aggregation is not None:
                texts.append(("aggregation", record.aggregation))
            rows.append((record.messages, proposals, record.aggregation))
        core = self._fitter.tokenizer.backend_tokenizer
        encoded = core.encode_batch_fast([text for _, text in texts], add_special_tokens=False)
        for (part, _), encoding in zip(texts, encoded, strict=True):
            self.lengths.parts[part].add(len(encoding))
        for measured in self._fitter.fit_all(rows):
            if isinstance(measured, DoesNotFit):
                self.refused.append(str(measured))
            else:
                self.lengths.parts["row"].add(measured.tokens)
        self.rows += len(records)


def describe(numbers: dict[str, Any]) -> str:
    """Return the numbers as a text for a person."""
    return "\n".join(_lines(numbers))


def _lines(numbers: dict[str, Any]) -> Iterator[str]:
    rows, tokens = numbers["rows"], numbers["tokens"]
    yield f"{rows['read']} rows read, {rows['usable']} usable, {rows['unusable']} unusable"
    for field, problem in islice(rows["unusable_by_field"].items(), MOST_SHOWN):
        yield f"  {problem['rows']} x {field}: {problem['first']}"
    if not rows["usable"]:
        return
    per_row = numbers["proposals_per_row"]
    yield f"proposals per row: {_listed({f'{n} in': count for n, count in per_row.items()})} rows"
    if list(per_row) == ["0"]:
        yield "  none has proposals: name their column (--column proposals=NAME) or convert first"
    yield ""
    yield from _table(f"tokens, {tokens['how']}", tokens, (*PARTS, "row"))
    if tokens["how"].startswith("estimated"):
        yield "  (--tokenizer counts)"
    elif tokens["rows"] < rows["usable"]:
        yield "  (--sample 0 counts all)"
    if refused := tokens.get("refused"):
        yield f"  {refused} rows have no whole: {tokens['first_refusal'][0]}"
    shares = [f"{tokens['over'][str(limit)]:.1%} than {limit}" for limit in LIMITS]
    yield f"rows longer: {', '.join(shares)} tokens"
    for name in ("characters", "words"):
        yield ""
        yield from _table(name, numbers[name], PARTS)
    yield ""
    seen, empty = numbers["duplicates"], numbers["empty"]
    yield (
        f"rows that repeat an earlier one's: id {seen['ids']}, query {seen['queries']}, "
        f"query and proposals {seen['queries_and_proposals']}"
    )
    yield f"rows with equal proposals inside: {numbers['rows_with_equal_proposals']}"
    yield (
        f"empty or missing: {empty['proposals']} proposals, {empty['aggregations']} aggregations, "
        f"{empty['references']} references; rows without a proposal: "
        f"{empty['rows_without_proposals']}"
    )
    scores = numbers["scores"]
    if scores["count"]:
        yield from ("", *_table("scores", {"score": scores}, ("score",)))
    if of := scores.get("rows"):
        first, tied = scores["best_is_first"] / of, scores["best_is_tied"] / of
        yield f"of {of} rows with two scores or more: best first {first:.1%}, best tied {tied:.1%}"
    for title, key in (("sources", "sources"), ("models of proposals", "proposal_models")):
        if names := numbers[key]:
            yield f"{title}: {_listed({short(name): n for name, n in names.items()})}"
    if cut := numbers["truncated"]:
        yield f"rows with a cut-off answer: {cut['rows']} of {cut['rows_that_tell']} that tell"


def _listed(counts: dict[str, int]) -> str:
    shown = [f"{name} {count}" for name, count in islice(counts.items(), MOST_SHOWN)]
    return ", ".join(shown) + (
        f" and {len(counts) - len(shown)} more" if len(counts) > len(shown) else ""
    )


def _table(title: str, parts: dict[str, Any], names: Sequence[str]) -> Iterator[str]:
    yield title
    yield " " * 13 + "".join(f"{head:>8}" for head in HEADS)
    for name in names:
        if parts[name]["count"]:
            yield f"  {name:11}" + "".join(f"{parts[name][head]:8.6g}" for head in HEADS)


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
