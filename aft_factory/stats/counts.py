"""What is in records, in numbers: counted one row at a time, printed by `stats` and `push`.

Reads lines of any table; writes nothing. Exact values in memory that hardly grows with the rows: a
count per different length, and 24 bytes a row to find duplicates. Knows no tokenizer: tokens are
estimated from bytes here.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

from aft_factory.engines.endings import is_cut_off, is_filtered
from aft_factory.errors import RecordError
from aft_factory.prompts.estimating import HOW, estimated_row, estimated_tokens
from aft_factory.prompts.rendering import load_template
from aft_factory.prompts.selection import whole_target
from aft_factory.records.columns import USUAL_COLUMNS, Columns
from aft_factory.records.fields import LIST, OBJECT
from aft_factory.records.record import Record, note_beside, record_from_row
from aft_factory.records.rejects import Rejects
from aft_factory.records.repeats import Repeats, said
from aft_factory.records.tables import Line

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
LIMITS = (2048, 4096, 8192)  # tokens; the first is LLaMA-Factory's own cutoff_len
MOST_NAMES = 1000  # counted by themselves; a source per row would fill the memory
OTHERS = "(others)"
PARTS = ("query", "proposal", "aggregation")
_MARKS = bytes(ord(" " if chr(i).isspace() else "x") for i in range(256))


class Distribution:
    """How often each value came up."""

    def __init__(self) -> None:
        self.counts: Counter[float] = Counter()

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[value] += 1

    @property
    def total(self) -> int:
        """How many values there were."""
        return self.counts.total()

    def summary(self) -> dict[str, float]:
        """Return count, min, quantiles, max and mean; quantiles are values that came up."""
        total = self.total
        if not total:
            return {"count": 0}
        values = sorted(self.counts)
        ends = list(accumulate(self.counts[value] for value in values))
        quantiles = {
            f"p{round(100 * share)}": values[bisect_left(ends, math.ceil(share * total))]
            for share in QUANTILES
        }
        mean = math.fsum(value * count for value, count in self.counts.items()) / total
        extremes = {"max": values[-1], "mean": mean}
        return {"count": total, "min": values[0], **quantiles, **extremes}

    def over(self, limit: float) -> float:
        """Return the share of the values that are larger than the limit."""
        larger = sum(count for value, count in self.counts.items() if value > limit)
        return larger / max(self.total, 1)


class Lengths:
    """Distributions of the lengths of a record's parts and of whole training rows."""

    def __init__(self, *names: str) -> None:
        self.parts = {name: Distribution() for name in names}

    def summary(self) -> dict[str, dict[str, float]]:
        """Return the summary of each part."""
        return {name: part.summary() for name, part in self.parts.items()}


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
            self.rejects.add(line, error.problem, error.field)
            return None
        except TypeError as error:  # such as keys that are no texts
            self.rejects.add(line, f"cannot be read: {error}", "row")
            return None
        self.usable += 1
        return record

    def _add(self, record: Record) -> None:
        query = record.messages[-1]["content"]
        conversation, proposals = said(record.messages), tuple(record.proposals)
        self._seen["ids"].add(record.id)
        self._seen["queries"].add(*conversation)
        parts = (str(len(conversation)), *conversation, *proposals)
        self._seen["queries_and_proposals"].add(*parts)
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
            self.scores.add(float(f"{score:.4g}"))  # so that different ones stay few
        if len(known) > 1:
            best = max(known)
            self._scores["rows"] += 1
            self._scores["best_is_first"] += row[0] == best
            self._scores["best_is_tied"] += known.count(best) > 1

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON has them."""
        ranked = sorted(self.rejects.by_field.items(), key=lambda item: -item[1][0])
        unusable = {field: {"rows": count, "first": first} for field, (count, first) in ranked}
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
            "sources": dict(self.sources.most_common()),
            "proposal_models": dict(self.models.most_common()),
            "truncated": dict(self._truncated),
            "in_no_prompt": sorted(map(str, self._beside)),
        }


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
    return list(value) if isinstance(value, LIST) and not isinstance(value, str) else [value]
