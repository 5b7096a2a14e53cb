"""The account of a record file for a person, and its lengths in tokens."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from aft_factory.prompts.fitting import Fitter
from aft_factory.prompts.selection import Aggregation, select, whole_target
from aft_factory.prompts.shortening import DoesNotFit
from aft_factory.records.fields import short
from aft_factory.records.record import Record, told_beside
from aft_factory.stats.counts import LIMITS, PARTS
from aft_factory.stats.distributions import Lengths

CHUNK = 128  # rows tokenized as one parallel batch
MOST_SHOWN = 10
HEADS = ("min", "p5", "p25", "p50", "p75", "p95", "p99", "max", "mean")


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
        refused: How many rows the chat template refuses, by the reason.
    """

    def __init__(self, fitter: Fitter, options: Aggregation, sample: int) -> None:
        self.rows = 0
        self.refused: Counter[str] = Counter()
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
            rows.append((record.messages, proposals, whole_target(record)))
        core = self._fitter.tokenizer.backend_tokenizer
        encoded = core.encode_batch_fast([text for _, text in texts], add_special_tokens=False)
        for (part, _), encoding in zip(texts, encoded, strict=True):
            self.lengths.parts[part].add(len(encoding))
        for measured in self._fitter.fit_all(rows):
            if isinstance(measured, DoesNotFit):
                self.refused[str(measured)] += 1
            else:
                self.lengths.parts["row"].add(measured.tokens)
        self.rows += len(records)


def describe(numbers: dict[str, Any]) -> str:
    """Return the numbers as a text for a person."""
    return "\n".join(_lines(numbers))


def _lines(numbers: dict[str, Any]) -> Iterator[str]:
    rows, tokens = numbers["rows"], numbers["tokens"]
    shard = f" of shard {numbers['shard']}" if numbers["shard"] else ""
    yield f"{rows['read']} rows{shard} read, {rows['usable']} usable, {rows['unusable']} unusable"
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
    for reason, count in islice(tokens.get("refusals", {}).items(), MOST_SHOWN):
        yield f"  {count} rows have no whole: {reason}"
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
    if beside := numbers["in_no_prompt"]:
        yield told_beside(beside)
    if cut := numbers["truncated"]:
        yield f"rows with a cut-off answer: {cut['rows']} of {cut['rows_that_tell']} that tell"


def _listed(counts: dict[str, int]) -> str:
    shown = [f"{name} {count}" for name, count in islice(counts.items(), MOST_SHOWN)]
    return ", ".join(shown) + (
        f" and {len(counts) - len(shown)} more" if len(counts) > len(shown) else ""
    )


def _table(title: str, parts: dict[str, Any], names: Sequence[str]) -> Iterator[str]:
    rows = {
        name: [f"{parts[name][head]:.6g}" for head in HEADS]
        for name in names
        if parts[name]["count"]
    }
    width = max([7, *(len(cell) for cells in rows.values() for cell in cells)]) + 1
    yield title
    yield " " * 13 + "".join(f"{head:>{width}}" for head in HEADS)
    for name, cells in rows.items():
        yield f"  {name:11}" + "".join(f"{cell:>{width}}" for cell in cells)
