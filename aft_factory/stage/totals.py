"""What the queries of a job add up to: counts, tokens, FLOPs; for the summary and for a person."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from aft_factory.engines.endings import is_cut_off, is_filtered
from aft_factory.engines.sampling import Usage
from aft_factory.inference.accounting import ModelShape
from aft_factory.inference.outcome import Outcome
from aft_factory.inference.strategy import Strategy
from aft_factory.records.record import Row

SET_BY = {  # by what became of a draft
    "unfinished": " (--on-unfinished; --max-tokens gives thoughts more room)",
    "truncated": " (--on-truncated; --max-tokens gives answers more room)",
    "all the same": " (the server draws samples of a request alike: see --split-samples)",
    "empty": " (--on-empty)",
    "filtered": " (--on-filtered)",
}


class FirstTimes:
    """Tells the first time of a key from the others; on disk, so that there may be millions."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)  # a file without a name
        self._db.execute("CREATE TABLE seen (key BLOB PRIMARY KEY) WITHOUT ROWID")

    def __call__(self, key: bytes) -> bool:
        """Tell whether this is the first time of a key."""
        return self._db.execute("INSERT OR IGNORE INTO seen VALUES (?)", (key,)).rowcount == 1


@dataclass(slots=True)
class Totals:
    """What the queries of a run add up to; `read = written + rejected + unfinished`.

    Attributes:
        read: Input rows.
        unfinished: Queries that have not ended yet.
        repeated: Rows that ask what an earlier one asks: what that took is counted once.
        marked: Rows of a benchmark's file for which an empty answer stands.
        unnamed: Rows that it does not have, as what its scorer knows them by is missing.
        correct: Rows that are answered rightly, where that can be told.
        answers: To the turns of the queries.
        usage: By (turn, layer), of answered and rejected queries.
        by_model: The same by model, where several were asked; the run's own is "".
        scored: What a reward model read.
        given: Proposals of the rows that were drafts of the first layer, and of how many rows.
        of_drafts: Whether drafts are what is made, and not final answers.
        finish_reasons: Of what is made.
        events: Uses of policies.
        rejects: By what they are about: how many, and the first reason.
    """

    read: int = 0
    written: int = 0
    rejected: int = 0
    unfinished: int = 0
    repeated: int = 0
    marked: int = 0
    unnamed: int = 0
    correct: int | None = None
    answers: int = 0
    of_drafts: bool = False
    usage: dict[tuple[int, int], Usage] = field(default_factory=dict)
    by_model: dict[str, Usage] = field(default_factory=dict)
    scored: Usage | None = None
    given: tuple[int, int] = (0, 0)
    finish_reasons: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    rejects: dict[str, tuple[int, str]] = field(default_factory=dict)
    first_time: FirstTimes = field(default_factory=FirstTimes, repr=False)

    def count(self, outcome: Outcome, key: bytes) -> bool:
        """Add the outcome of one query, unless one of this key was; return whether it was added."""
        if not self.first_time(key):
            self.repeated += 1
            return False
        self.answers += len(outcome.answers)
        for place, usage in outcome.layer_usage.items():
            self.usage[place] = self.usage.get(place, Usage()) + usage
        for model, usage in outcome.model_usage.items():
            self.by_model[model] = self.by_model.get(model, Usage()) + usage
        if outcome.scored is not None:
            self.scored = (self.scored or Usage()) + Usage(**outcome.scored)
        if outcome.given:
            self.given = (self.given[0] + len(outcome.given), self.given[1] + 1)
        self.events.update(event["event"] for event in outcome.events)
        if outcome.problem is None and self.of_drafts:
            drafts = [draft for layer in outcome.layers for draft in layer["drafts"]]
            self.finish_reasons.update(draft["finish_reason"] for draft in drafts)
        elif outcome.problem is None:
            self.finish_reasons.update(outcome.finish_reasons)
        return True

    @property
    def is_empty(self) -> bool:
        """Whether there were rows, and none is written."""
        return bool(self.read and not self.written)

    @property
    def prefix_cache(self) -> float | None:
        """The share of the prompts' tokens that the engine had computed before, if it tells."""
        total = self.total
        return total.cached / total.prompt if total.prompt and total.cached is not None else None

    @property
    def total(self) -> Usage:
        """The usage of all layers."""
        return sum(self.usage.values(), Usage())

    @property
    def accuracy(self) -> float | None:
        """The share of the rows that are done whose answer is right; a rejected one is wrong."""
        done = self.read - self.unfinished
        return None if self.correct is None or not done else self.correct / done

    def flops(
        self,
        shapes: Mapping[str, ModelShape | None],
        reward: ModelShape | None,
        strategy: Strategy,
        options: Mapping[str, Any],
    ) -> dict[str, float | None]:
        """Return the FLOPs of the run: `exact` by its tokens, and by `appendix_c`.

        Args:
            shapes: Of the models asked, as far as they are known; the run's own is "".
            reward: Of the reward model.
            strategy: What asked.
            options: All of its options.
        """
        parts = [
            _exact(shapes.get(model), usage)
            for model, usage in (self.by_model or {"": self.total}).items()
        ]
        if self.scored is not None:
            parts.append(_exact(reward, self.scored))
        known = [part for part in parts if part is not None]
        exact = sum(known) if len(known) == len(parts) else None
        return {"exact": exact, "appendix_c": self._appendix_c(shapes.get(""), strategy, options)}

    def _appendix_c(
        self, shape: ModelShape | None, strategy: Strategy, options: Mapping[str, Any]
    ) -> float | None:
        total = self.total
        # A sample stands behind its layer's prompt, however many requests carried that.
        behind: list[float | None] = [
            None if usage.prompt is None else usage.samples * usage.prompt / usage.requests
            for usage in self.usage.values()
            if usage.requests
        ]
        known = (
            self.answers and total.samples and total.completion is not None and None not in behind
        )
        # Of drafts that were given it does not tell, and rows may bring any number.
        if shape is None or strategy.flops is None or not known or any(self.given):
            return None
        assert total.completion is not None
        written = total.completion / total.samples
        context = sum(filter(None, behind)) / total.samples + written / 2
        return strategy.flops(**options) * shape.appendix_c(written, context) * self.answers


def _exact(shape: ModelShape | None, usage: Usage) -> int | None:
    if shape is None or usage.computed is None or usage.attended is None:
        return None
    return shape.flops(usage.computed, usage.attended)


def summary(totals: Totals, flops: dict[str, float | None] | None, more: Row) -> Row:
    """Return the summary of a run, for the JSON file beside its output."""
    known = totals.correct is not None
    grades: Row = {"correct": totals.correct, "accuracy": totals.accuracy} if known else {}
    return {
        "read": totals.read,
        "written": totals.written,
        "rejected": totals.rejected,
        "unfinished": totals.unfinished,
        "repeated": totals.repeated,
        **grades,
        "rejects": {
            name: {"count": count, "first": first}
            for name, (count, first) in totals.rejects.items()
        },
        "total": asdict(totals.total),
        "layers": [
            {"turn": turn, "layer": layer, **asdict(usage)}
            for (turn, layer), usage in sorted(totals.usage.items())
        ],
        "models": [
            {"model": name or None, **asdict(usage)}
            for name, usage in sorted(totals.by_model.items())
        ],
        "reward": totals.scored
        and {
            "pairs": totals.scored.requests,
            "tokens": totals.scored.prompt,
            "attended": totals.scored.attended,
        },
        "given": dict(zip(("drafts", "rows"), totals.given, strict=True)),
        "prefix_cache": totals.prefix_cache,
        "flops": flops,
        "finish_reasons": dict(totals.finish_reasons),
        "events": dict(totals.events),
        **more,
    }


def describe(
    totals: Totals, flops: dict[str, float | None] | None, *, measured: bool = True
) -> list[str]:
    """Return the account for a person: a line per layer, and what there is to know.

    Args:
        totals: What to tell.
        flops: Of them, if they are known.
        measured: Whether a model was asked; a dry run cannot know what it would find cached.
    """
    total = totals.total
    graded = []
    if totals.accuracy is not None:
        done = totals.read - totals.unfinished
        graded = [f"accuracy: {totals.accuracy:.1%} ({totals.correct} of {done} rows)"]
    if not total.requests:
        return [*graded, *_described_events(totals)]
    head = f"{'turn':>5}{'layer':>6}{'requests':>10}{'samples':>9}{'prompt':>12}{'cached':>12}"
    text = [head + f"{'written':>12}   tokens"]
    rows = [
        *((f"{turn:>5}{layer:>6}", usage) for (turn, layer), usage in sorted(totals.usage.items())),
        (f"{'all':>11}", total),
    ]
    for place, usage in rows:
        tokens = "".join(
            f"{'?' if n is None else format(n, ','):>12}"
            for n in (usage.prompt, usage.cached, usage.completion)
        )
        text.append(f"{place}{usage.requests:>10,}{usage.samples:>9,}{tokens}")
    if total.thought:
        text.append(f"thoughts: {total.thought:,} of the tokens written")
    if totals.repeated:
        text.append(f"{totals.repeated:,} rows ask what an earlier one asks, and take nothing more")
    if any(totals.given):
        drafts, owners = totals.given
        text.append(f"first layer: {drafts:,} proposals that {owners:,} rows bring, none drawn")
    if measured and totals.prefix_cache is not None:
        text.append(f"prefix cache: {totals.prefix_cache:.0%} of the prompts' tokens")
    if totals.scored is not None:
        read = totals.scored.prompt
        told = "?" if read is None else format(read, ",")
        text.append(f"reward model: {totals.scored.requests:,} drafts scored, {told} tokens read")
    if flops is not None:
        exact, formula = flops["exact"], flops["appendix_c"]
        shown = [f"{exact:.3g} by the tokens computed"] if exact is not None else []
        shown += [f"{formula:.3g} by the paper's appendix C"] if formula is not None else []
        text += [f"FLOPs: {', '.join(shown)}"] if shown else []
    text += _described_events(totals)
    what = "drafts" if totals.of_drafts else "final answers"
    for cut, by in ((is_cut_off, "max_tokens"), (is_filtered, "a filter of contents")):
        if count := sum(n for reason, n in totals.finish_reasons.items() if cut(reason)):
            text.append(f"warning: {by} cut off {count} {what}")
    return text + graded


def _described_events(totals: Totals) -> list[str]:
    events = ", ".join(
        f"{count} x {name}{SET_BY.get(name, '')}" for name, count in totals.events.most_common()
    )
    return [f"drafts: {events}"] if events else []
