"""What is in records, in numbers: counted one row at a time, printed by `stats` and `push`.

Reads lines of any table; writes nothing. Exact values in memory that hardly grows with the rows: a
count per different length, and 24 bytes a row to find duplicates. Knows no tokenizer: tokens are
estimated from bytes here.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from aft_factory.engines.endings import is_cut_off, is_filtered
from aft_factory.errors import RecordError
from aft_factory.prompts.estimating import HOW, estimated_row, estimated_tokens
from aft_factory.prompts.rendering import load_template
from aft_factory.prompts.selection import whole_target
from aft_factory.records.columns import USUAL_COLUMNS, Columns
from aft_factory.records.fields import OBJECT, is_list
from aft_factory.records.record import Record, note_beside, record_from_row
from aft_factory.records.rejects import Rejects
from aft_factory.records.repeats import Repeats, said
from aft_factory.records.tables import Line
from aft_factory.stats.distributions import Distribution, Lengths

LIMITS = (2048, 4096, 8192)  # tokens; the first is LLaMA-Factory's own cutoff_len
MOST_NAMES = 1000  # counted by themselves; a source per row would fill the memory
OTHERS = "(others)"
SUMS = ("read", "usable", "_equal_proposals")
PARTS = ("query", "proposal", "aggregation")
_MARKS = bytes(ord(" " if chr(i).isspace() else "x") for i in range(256))


class Counts:
    """Everything that can be counted in records without a model.

    Args:
        columns: Names of the columns, where they are not the usual ones.
        template: Aggregator prompt of the estimated training rows.
    """

    def __init__(self, columns: Columns = USUAL_COLUMNS, template: str = "paper") -> None:
        self.read = self.usable = 0
        self.rejects = Rejects(None)
        self.proposals_per_row = Distribution()
        self.characters, self.words = Lengths(*PARTS), Lengths(*PARTS)
        self.tokens = Lengths(*PARTS, "row")
        self.scores = Distribution()
        self.sources: Counter[str] = Counter()
        self.models: Counter[str] = Counter()
        self._columns = columns
        self._template = load_template(template)
        self._seen = {name: Repeats() for name in ("ids", "queries", "queries_and_proposals")}
        self._empty: Counter[str] = Counter()
        self._scores: Counter[str] = Counter()
        self._truncated: Counter[str] = Counter()
        self._equal_proposals = 0
        self._beside: set[str] = set()
        self._first: dict[str, int] = {}  # by field, the number of the first row it makes unusable
        self.measured = Lengths(*PARTS, "row")  # in tokens, by who has a tokenizer
        self.refused: Counter[str] = Counter()  # rows, by why the chat template refuses them

    def read_line(self, line: Line) -> Record | None:
        """Count a line and return its record; None if it is none, which is counted too."""
        self.read += 1
        try:
            if line.problem is not None:
                raise RecordError("row", line.problem)
            record = record_from_row(line.value, self._columns)
            note_beside(record, line.value, self._beside)
            self._add(record)
        except RecordError as error:
            self._reject(line, error.problem, error.field)
            return None
        except TypeError as error:  # such as keys that are no texts
            self._reject(line, f"cannot be read: {error}", "row")
            return None
        self.usable += 1
        return record

    def _reject(self, line: Line, problem: str, field: str) -> None:
        self.rejects.add(line, problem, field)
        for name in self.rejects.by_field.keys() - self._first:
            self._first[name] = self.read - 1

    def _add(self, record: Record) -> None:
        query = record.messages[-1]["content"]
        conversation, proposals = said(record.messages), tuple(record.proposals)
        self._seen["ids"].add(record.id)
        self._seen["queries"].add(*conversation)
        parts = (str(len(conversation)), *conversation, *proposals)
        self._seen["queries_and_proposals"].add(*parts)
        if len(set(map(len, proposals))) < len(proposals):  # else none are equal
            self._equal_proposals += len(set(proposals)) < len(proposals)
        self.proposals_per_row.add(len(proposals))

        self._add_lengths("query", query)
        for text in proposals:
            self._add_lengths("proposal", text)
        if record.aggregation is not None:
            self._add_lengths("aggregation", record.aggregation)
        target = whole_target(record)
        row = estimated_row(record.messages, proposals, target, self._template)
        self.tokens.parts["row"].add(row)

        kept = sum(not _blank(text) for text in proposals)
        self._empty["proposals"] += len(proposals) - kept
        self._empty["rows_without_proposals"] += not kept
        self._empty["aggregations"] += _blank(record.aggregation)
        self._empty["references"] += _blank(record.reference)
        _count_name(self.sources, record.source)
        for model in record.proposal_models or ():
            _count_name(self.models, model or "")
        if record.scores:
            self._add_scores(record.scores)
        if (cut := _cut_off(record.meta)) is not None:
            self._truncated["rows_that_tell"] += 1
            self._truncated["rows"] += cut

    def _add_lengths(self, part: str, text: str) -> None:
        self.characters.parts[part].add(len(text))
        self.words.parts[part].add(count_words(text))
        self.tokens.parts[part].add(estimated_tokens(text))

    def _add_scores(self, scores: Iterable[float | None]) -> None:
        row = list(scores)
        known = [s for s in row if s is not None and math.isfinite(s)]
        self._scores["missing"] += len(row) - len(known)
        for score in known:
            # So that different ones stay few; the zero below zero is no other one.
            self.scores.add(float(f"{score:.4g}") + 0.0)
        if len(known) > 1:
            best = max(known)
            self._scores["rows"] += 1
            self._scores["best_is_first"] += row[0] == best
            self._scores["best_is_tied"] += known.count(best) > 1

    def to_json(self, shard: slice) -> dict[str, Any]:
        """Return what adds up to the counts of all shards; see `added`."""
        return {
            "sums": {name: getattr(self, name) for name in SUMS},
            "counters": {
                str(number): {json.dumps(value): count for value, count in counter.items()}
                for number, counter in enumerate(self._counters())
            },
            "seen": {name: bytes(seen).hex() for name, seen in self._seen.items()},
            "beside": dict.fromkeys(map(str, self._beside), 1),
            "rejects": {
                field: {"count": count, "first": [shard.start + first * shard.step, reason]}
                for field, (count, reason) in self.rejects.by_field.items()
                for first in [self._first[field]]
            },
        }

    def add_json(self, content: Mapping[str, Any]) -> None:
        """Take over what `to_json` gave."""
        for name in SUMS:
            setattr(self, name, content["sums"][name])
        for counter, found in zip(self._counters(), content["counters"].values(), strict=True):
            counter.update({json.loads(value): count for value, count in found.items()})
        self._seen = {name: Repeats(bytes.fromhex(text)) for name, text in content["seen"].items()}
        self._beside = set(content["beside"])
        for field, about in sorted(content["rejects"].items(), key=lambda one: one[1]["first"]):
            self.rejects.by_field[field] = (about["count"], about["first"][1])
            self.rejects.count += about["count"]

    def _counters(self) -> list[Counter[Any]]:
        kinds = (self.characters, self.words, self.tokens, self.measured)
        return [
            *(part.counts for lengths in kinds for part in lengths.parts.values()),
            *(self.proposals_per_row.counts, self.scores.counts, self.sources, self.models),
            *(self._empty, self._scores, self._truncated, self.refused),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON has them."""
        fields = sorted(self.rejects.by_field.items(), key=lambda item: -item[1][0])
        unusable = {field: {"rows": count, "first": first} for field, (count, first) in fields}
        return {
            "rows": {
                "read": self.read,
                "usable": self.usable,
                "unusable": self.rejects.count,
                "unusable_by_field": unusable,
            },
            "proposals_per_row": {
                str(n): count for n, count in sorted(self.proposals_per_row.counts.items())
            },
            "tokens": tokens_dict(self.tokens, HOW),
            "characters": self.characters.summary(),
            "words": self.words.summary(),
            "duplicates": {name: seen.count for name, seen in self._seen.items()},
            "rows_with_equal_proposals": self._equal_proposals,
            "empty": dict(self._empty),
            "scores": {**self.scores.summary(), **self._scores},
            "sources": ranked(self.sources),
            "proposal_models": ranked(self.models),
            "truncated": dict(self._truncated),
            "in_no_prompt": sorted(map(str, self._beside)),
        }


def added(one: Any, other: Any) -> Any:
    """Add up what two shards have found; of two places with what is there, the first counts."""
    if isinstance(one, dict):
        both = {name: added(one[name], other[name]) for name in one if name in other}
        return one | other | both
    return min(one, other) if isinstance(one, list) else one + other


def ranked(counter: Counter[str]) -> dict[str, int]:
    """Return the most frequent first, and equals in an order that is not that of the rows."""
    return dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))


def count_words(text: str) -> int:
    """Return `len(text.split())`, of ASCII in half the time."""
    if not text.isascii():
        return len(text.split())
    marks = text.encode().translate(_MARKS)
    return marks.count(b" x") + marks.startswith(b"x")


def tokens_dict(tokens: Lengths, how: str) -> dict[str, Any]:
    """Return lengths in tokens, and the shares of rows that are longer than the usual limits."""
    rows = tokens.parts["row"]
    over = {str(limit): rows.over(limit) for limit in LIMITS}
    return {"how": how, "rows": rows.total, **tokens.summary(), "over": over}


def _blank(text: str | None) -> bool:
    return not text or text.isspace()


def _count_name(counts: Counter[str], name: str) -> None:
    counts[name if name in counts or len(counts) < MOST_NAMES else OTHERS] += 1


def _cut_off(meta: dict[str, Any]) -> bool | None:
    """Tell whether a row says that an answer in it was cut off; None if it says nothing of it."""
    flags = []
    for about in (meta, meta.get("sampling"), meta.get("aggregating")):  # as our stages tell
        if isinstance(about, OBJECT):
            flags += [flag is True for flag in _listed(about.get("truncated"))]
            for key in ("finish_reason", "finish_reasons"):
                reasons = _listed(about.get(key))
                flags += [is_cut_off(reason) or is_filtered(reason) for reason in reasons]
            if "gates" in about:
                flags.append("truncated" in _listed(about["gates"]))
    return any(flags) if flags else None


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if is_list(value) else [value]
