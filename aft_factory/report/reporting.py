"""From a run to its page: every query once, in a stream; the numbers are of all of them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from aft_factory.engines.sampling import Usage
from aft_factory.errors import UsageError
from aft_factory.evaluate.settings import EvalSettings
from aft_factory.push.shown_settings import shown_settings
from aft_factory.report.describing import described
from aft_factory.report.layers import Layer, agreement, flags_of
from aft_factory.report.page import Page
from aft_factory.report.source import Entry, Source
from aft_factory.run.replaying import Replays
from aft_factory.stage.totals import Totals, summary

NOTHING = asdict(Usage())  # of a layer that asks nobody, such as that of the rows' own proposals
SNIPPET = 160  # characters of a query in the list
FLAGS = (
    *("right", "wrong", "fixed", "broke", "agree", "cut", "resampled", "shortened"),
    *("rejected", "unfinished"),
)
# Settings that say what a run did, whatever they are.
ALWAYS = ("model", "strategy", "template", "seed", "temperature", "top_p", "max_tokens", "drafts")


@dataclass(slots=True)
class Numbers:
    """What all queries of a run add up to."""

    totals: Totals = field(default_factory=Totals)
    layers: dict[tuple[int, int], Layer] = field(default_factory=dict)
    seconds: dict[tuple[int, int], float | None] = field(default_factory=dict)
    requests: Counter[tuple[int, int]] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    grading: Counter[str] = field(default_factory=Counter)

    def add(self, entry: Entry, query: dict[str, Any]) -> bool:
        """Count a query; return whether it is no repetition of an earlier one."""
        totals = self.totals
        totals.read += 1
        if entry.outcome is None:
            totals.unfinished += 1
        elif not totals.count(entry.outcome, entry.key):
            totals.read -= 1
            return False
        elif (problem := entry.outcome.problem) is not None:
            about = entry.outcome.about or "row"
            count, first = totals.rejects.get(about, (0, problem))
            totals.rejects[about] = (count + 1, first)
            totals.rejected += 1
        else:
            totals.written += 1
        for layer in query["layers"]:
            place = (layer["turn"], layer["layer"])
            drafts = [draft for draft in layer["drafts"] if not draft.get("lost")]
            told = [draft.get("told") for draft in drafts]
            self.layers.setdefault(place, Layer()).add(told, query["target"])
            self.requests[place] += layer["requests"]
            before, seconds = self.seconds.get(place, 0.0), layer["seconds"]
            both = before is not None and (seconds is not None or not layer["requests"])
            self.seconds[place] = (before or 0.0) + (seconds or 0.0) if both else None
        self.flags.update(query["flags"])
        self.grading[query["grading"]] += 1
        return True


def write_page(source: Source, page: Page, progress: Any) -> Numbers:
    """Go through a run, and write its page.

    Args:
        source: The run.
        page: To be written.
        progress: Goes through what it is given, and shows how far it is.

    Raises:
        UsageError: If there is no query.
    """
    numbers = Numbers()
    with Replays(source.settings) as replays:
        for entry in progress(source.entries()):
            found = replays.of(entry.query, entry.replies)
            query = described(entry.query, entry.outcome, found, entry.grading)
            query["flags"] = flags_of(query)
            if numbers.add(entry, query):
                page.add(query, _listed(query))
    if not numbers.totals.read:
        raise UsageError(f"{source.journal.path}: its last run has no query yet")
    page.end(head_of(source, numbers, page))
    return numbers


def _listed(query: dict[str, Any]) -> list[Any]:
    """Return what the list needs: id, words, flags, tokens, agreement, right drafts."""
    words = " ".join(str(query["turns"][0][-1]["content"])[: 4 * SNIPPET].split())[:SNIPPET]
    flags = sum(1 << i for i, name in enumerate(FLAGS) if name in query["flags"])
    written = [layer["written"] for layer in query["layers"]]
    tokens = None if None in written else sum(written)
    drafts = query["layers"][0]["drafts"] if query["layers"] else []
    first = [draft.get("told") for draft in drafts if not draft.get("lost")]
    right = None
    if query["target"] is not None and first:
        right = round(first.count(query["target"]) / len(first), 3)
    spread = agreement(first)
    name = query["id"] if query["seed"] is None else f"{query['id']}, seed {query['seed']}"
    return [name, words, flags, tokens, spread and round(spread, 3), right]


def head_of(source: Source, numbers: Numbers, page: Page) -> dict[str, Any]:
    """Return what the head of the page tells."""
    totals, settings = numbers.totals, source.settings
    plain = asdict(type(settings)())
    own = asdict(settings) | settings.options() | {"final": asdict(settings.final())}
    shown, left_out = shown_settings(json.loads(json.dumps(own, default=str)))
    told = summary(totals, source.summary.get("flops"), {})
    counted = {(row["turn"], row["layer"]): row for row in told["layers"]}
    return {
        "name": source.name,
        "flags": FLAGS,
        "counts": numbers.flags,
        "grading": numbers.grading.most_common(),
        "strategy": settings.strategy,
        "settings": [
            [name, value, name in ALWAYS or plain.get(name) != value]
            for name, value in shown.items()
            if value not in (None, [], {})
        ],
        "left_out": [name for name in left_out if own.get(name) not in (None, [], {}, (), "")],
        "queries": totals.read,
        "in_page": page.queries,
        "full": page.full,
        "answered": totals.written,
        "rejected": totals.rejected,
        "unfinished": totals.unfinished,
        "repeated": totals.repeated,
        "unread": source.unread,
        "not_begun": source.not_begun,
        "elsewhere": source.elsewhere if source.rows is not None else 0,
        "rejects": told["rejects"],
        "events": told["events"],
        "finish_reasons": told["finish_reasons"],
        "sessions": source.journal.sessions(source.fingerprint),
        "total": told["total"],
        "models": told["models"],
        "reward": told["reward"],
        "flops": told["flops"],
        "layers": [
            {
                **counted.get(place, {} if numbers.requests[place] else NOTHING),
                "turn": place[0],
                "layer": place[1],
                "seconds": numbers.seconds.get(place),
                **layer.row(),
            }
            for place, layer in sorted(numbers.layers.items())
        ],
    }


def told(source: Source, numbers: Numbers, page: Page, output: object) -> list[str]:
    """Return what the command prints."""
    totals = numbers.totals
    all_ = totals.read + source.not_begun
    lines = [f"{output}: {page.queries:,} queries, {totals.written:,} of all {all_:,} answered"]
    rows = {
        "unread": f"{source.unread} rows cannot be read",
        "not_begun": f"{source.not_begun} rows are not begun",
        "elsewhere": f"{source.elsewhere} queries of the run are not in {source.rows}",
    }
    lines += [text for name, text in rows.items() if getattr(source, name)]
    if source.rows is None and not isinstance(source.settings, EvalSettings):
        lines.append("the rows are not known: --data FILE brings their references and their order")
    return lines
